"""A part of a model that is quantized by itself while the rest stays as it is: a detector's backbone, say, or its head.

What the part takes is seen by a hook while the whole model looks at images.  Where that is one tensor, the part is
captured as any network; several tensors (the feature maps that a head reads) are packed side by side into the rows of
one, (N, sum of their sizes), which a thin module around the part divides again.
"""

from __future__ import annotations

import copy
import dataclasses
import difflib
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn

from clcalib.capture.failures import first_sentence
from clcalib.capture.placing import home_of
from clcalib.capture.trace import check_is_on_one_device
from clcalib.errors import ArgumentError

_BATCH = 8  # images that the whole model sees at a time
_PLAIN = pytree.treespec_dumps(pytree.tree_structure(((0,), {})))


@dataclasses.dataclass(frozen=True)
class InputForm:
    """What a part takes.

    Attributes:
        shapes: of each leaf without the batch, None where the leaf is None.
        structure: of (args, kwargs), as ``torch.utils._pytree.treespec_dumps`` writes it.
    """

    shapes: tuple[tuple[int, ...] | None, ...]
    structure: str

    @classmethod
    def of(cls, path: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> InputForm:
        """The form of one call.

        Raises:
            ArgumentError: there is something else than tensors with the batch first, or there are several tensors that
                are not all float32, such as a mask beside the images: side by side they would lose their types.
        """
        leaves, structure = pytree.tree_flatten((tuple(args), dict(kwargs)))
        sizes = {len(leaf) if leaf.dim() else 0 for leaf in leaves if isinstance(leaf, Tensor)}
        odd = [type(leaf).__name__ for leaf in leaves if leaf is not None and not isinstance(leaf, Tensor)]
        if odd or len(sizes) != 1:
            got = odd[0] if odd else f"tensors with the first dimensions {sorted(sizes)}" if sizes else "no tensor"
            remedy = "name a module inside or around it"
            raise ArgumentError(
                "submodule", "one whose inputs are tensors with the batch first", f"{path}: {got}", remedy
            )
        types = [leaf.dtype for leaf in leaves if leaf is not None]
        if len(types) > 1 and set(types) != {torch.float32}:
            got = f"{path}: tensors of {', '.join(sorted(str(kind).removeprefix('torch.') for kind in set(types)))}"
            remedy = "name a module inside or around it"
            raise ArgumentError("submodule", "one whose inputs are one tensor, or several in float32", got, remedy)
        shapes = tuple(None if leaf is None else tuple(int(size) for size in leaf.shape[1:]) for leaf in leaves)
        return cls(shapes, pytree.treespec_dumps(structure))

    @property
    def is_one_tensor(self) -> bool:
        """Whether the part takes one tensor by position and nothing else."""
        return self.structure == _PLAIN

    def pack(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor:
        """The inputs of one call as one tensor: the only one as it is, else (N, sum of sizes)."""
        tensors = [leaf for leaf in pytree.tree_leaves((tuple(args), dict(kwargs))) if leaf is not None]
        return tensors[0] if self.is_one_tensor else torch.cat([tensor.flatten(1) for tensor in tensors], 1)

    def unpack(self, packed: Tensor) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The inverse of ``pack``."""
        if self.is_one_tensor:
            return (packed,), {}
        shapes = [shape for shape in self.shapes if shape is not None]
        pieces = iter(torch.split(packed, [torch.Size(shape).numel() for shape in shapes], 1))
        leaves = [None if shape is None else next(pieces).reshape(-1, *shape) for shape in self.shapes]
        args, kwargs = pytree.tree_unflatten(leaves, pytree.treespec_loads(self.structure))
        return args, kwargs


class Unpacked(nn.Module):
    """A part whose inputs come packed; the part keeps its own name inside."""

    def __init__(self, name: str, part: nn.Module, form: InputForm) -> None:
        super().__init__()
        self.add_module(name, part)
        self.name, self.form = name, form

    def forward(self, packed: Tensor) -> Any:
        args, kwargs = self.form.unpack(packed)
        return self.get_submodule(self.name)(*args, **kwargs)


class InPlace(nn.Module):
    """A network in the place of the part: takes what the part takes, in the one form that it was captured for."""

    def __init__(self, path: str, network: nn.Module, form: InputForm) -> None:
        super().__init__()
        self.path, self.network, self.form = path, network, form

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        form = InputForm.of(self.path, args, kwargs)
        if form != self.form:
            remedy = "let the model bring all images to one size"
            raise ArgumentError(self.path, f"inputs of shape {_shown(self.form)}", _shown(form), remedy)
        return self.network(self.form.pack(args, kwargs))


@dataclasses.dataclass(frozen=True)
class Part:
    """One submodule of a model.

    Attributes:
        model: the whole model, a copy in eval mode.
        path: of the submodule.
        form: what it takes.
    """

    model: nn.Module
    path: str
    form: InputForm

    @classmethod
    def of(cls, model: nn.Module, path: str, images: Tensor) -> tuple[Part, Tensor]:
        """The part, and its inputs while the model sees ``images`` (N, ...): rows (M, ...) for ``part.module``.

        A part that is called on more rows than there are images (boxes of a detector) gives as many as there are
        images, evenly drawn.

        Args:
            model: takes a tensor of images or a list of single ones; it is left untouched.
            path: of the submodule.
            images: as the model takes them.

        Raises:
            ArgumentError: there is no such submodule, the model is on several devices, the part is not called, or it
                does not always get the same shapes.
        """
        find(model, path)
        check_is_on_one_device(model)
        own = _copied(model).eval()
        form, rows = _gather(own, path, images, None)
        return cls(own, path, form), rows

    @classmethod
    def with_form(cls, model: nn.Module, path: str, form: InputForm) -> Part:
        """The part of a model of which it is known what the part takes."""
        find(model, path)
        return cls(_copied(model).eval(), path, form)

    @property
    def module(self) -> nn.Module:
        """What is captured: the part itself, or with its inputs packed."""
        part = self.model.get_submodule(self.path)
        name = self.path.rpartition(".")[2]
        return part if self.form.is_one_tensor else Unpacked(name, part, self.form).eval()

    def rows(self, images: Tensor) -> Tensor:
        """Its inputs while the model sees other images."""
        return _gather(self.model, self.path, images, self.form)[1]

    def put_back(self, network: nn.Module) -> nn.Module:
        """A copy of the whole model with ``network`` in the place of the part, on the device of ``network``."""
        result = _copied(self.model)
        result.set_submodule(self.path, InPlace(self.path, network, self.form))
        return result.to(home_of(network)).eval()


def _copied(model: nn.Module) -> nn.Module:
    """A copy.  Where a part of the model is an earlier result, torch 2.11 warns of a class of its own."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*LeafSpec", FutureWarning)
        return copy.deepcopy(model)


def find(model: nn.Module, path: str) -> nn.Module:
    """The submodule at a path.

    Raises:
        ArgumentError: there is none; the error tells the nearest.
    """
    paths = [name for name, _ in model.named_modules() if name]
    if path not in paths:
        near = difflib.get_close_matches(path, paths, 3, 0.0)
        remedy = f"nearest: {', '.join(near)}" if near else ""
        raise ArgumentError("submodule", f"the path of a module in {type(model).__name__}", repr(path), remedy)
    return model.get_submodule(path)


@torch.no_grad()
def _gather(model: nn.Module, path: str, images: Tensor, form: InputForm | None) -> tuple[InputForm, Tensor]:
    """The form of the part's inputs, and the rows; ``form`` is what they must have, None what the first call has."""
    seen: list[Tensor] = []
    forms = [] if form is None else [form]

    def look(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        own = InputForm.of(path, args, kwargs)
        forms.append(own)
        if own != forms[0]:
            remedy = "let the model bring all images to one size, or name another module"
            expected = f"one that always gets the same shapes, {_shown(forms[0])} at first"
            raise ArgumentError("submodule", expected, _shown(own), remedy)
        seen.append(own.pack(args, kwargs).cpu())

    device = next(model.parameters(), images).device
    handle = model.get_submodule(path).register_forward_pre_hook(look, with_kwargs=True)
    parts: list[Tensor] = []
    try:
        feed = feed_of(model, images[:1].to(device))
        for start in range(0, len(images), _BATCH):
            seen.clear()
            batch = images[start : start + _BATCH].to(device)
            feed(batch)
            parts += [_evenly(torch.cat(seen), len(batch))] if seen else []
    finally:
        handle.remove()
    rows = torch.cat(parts) if parts else torch.empty(0)
    if not len(rows):
        raise ArgumentError("submodule", "one that the model calls on these images", f"{path}, which gets no input")
    return forms[0], rows


def feed_of(model: nn.Module, images: Tensor, argument: str = "calibration") -> Callable[[Tensor], Any]:
    """How the model takes images: as one tensor, or as a list; ``argument`` is what an error calls them.

    Raises:
        ArgumentError: it takes neither.
    """

    def listed(batch: Tensor) -> Any:
        return model(list(batch))

    for feed in (model, listed):
        try:
            feed(images)
            return feed
        except ArgumentError:
            raise
        except Exception as error:
            says = f"the model says: {first_sentence(error)}"
    shape = f"images of shape {tuple(images.shape[1:])}"
    raise ArgumentError(argument, f"images that {type(model).__name__} takes, as a tensor or a list", shape, says)


def _evenly(rows: Tensor, count: int) -> Tensor:
    if len(rows) <= count:
        return rows
    return rows[torch.linspace(0, len(rows) - 1, count).round().long()]


def _shown(form: InputForm) -> str:
    return ", ".join("none" if shape is None else str(shape) for shape in form.shapes)
