"""All modules of a network that cannot be captured, where ``torch.export`` stops at the first one.

A module that fails is exported again with stand-ins for those of its children that fail: if it still does, its own code
is at fault as well.  Modules inside one that can be captured are not looked at.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch.utils._pytree as pytree
from torch import Tensor, nn

SECONDS = 60.0  # after which no further module is tried
Export = Callable[[nn.Module, tuple[Tensor, ...]], Exception | None]  # what capture says of a module on these tensors


@dataclass(frozen=True)
class Offender:
    """A module whose own code cannot be captured, and what was said about it."""

    path: str
    kind: str
    error: Exception


@dataclass(frozen=True)
class _Call:
    """What a module was given and gave back, when it was first called."""

    arguments: tuple[Any, ...]
    options: dict[str, Any]
    result: Any


def find_offenders(model: nn.Module, images: Tensor, export: Export) -> list[Offender]:
    """The modules of a network whose own code cannot be captured, in the order of the module tree.

    Args:
        model: in eval mode; what is changed while it is looked at is put back.
        images: that it runs on  # shape: (N, ...)
        export: tries to capture a module that takes tensors by position.
    """
    search = _Search(_calls(model, images), export, time.monotonic() + SECONDS)
    return search.inside(model, "")[0]


class _Search:
    def __init__(self, calls: dict[nn.Module, _Call], export: Export, end: float) -> None:
        self._calls, self._export, self._end = calls, export, end
        self._seen = set[nn.Module]()

    def inside(self, module: nn.Module, path: str) -> tuple[list[Offender], list[nn.Module]]:
        """The offenders in a module, itself included, and the modules that stand-ins can take the place of.

        Both are empty where the module can be captured.
        """
        if module in self._seen or time.monotonic() > self._end:
            return [], []
        self._seen.add(module)
        call = self._calls.get(module)
        error = None if call is None else self._tried(module, call)
        if call is not None and error is None:
            return [], []
        found, failing = list[Offender](), list[nn.Module]()
        for name, child in module.named_children():
            inner, parts = self.inside(child, f"{path}.{name}".lstrip("."))
            found, failing = found + inner, failing + parts
        if call is None:  # it only holds others, which its owner calls
            return found, failing
        with _stand_ins({part: self._calls[part] for part in failing}):
            own = self._tried(module, call) if failing else error
        if own is not None:
            found.append(Offender(path, type(module).__name__, own))
        return found, [module]

    def _tried(self, module: nn.Module, call: _Call) -> Exception | None:
        leaves, structure = pytree.tree_flatten((call.arguments, call.options))
        tensors = tuple(leaf for leaf in leaves if isinstance(leaf, Tensor))
        return self._export(_OnTensors(module, leaves, structure), tensors) if tensors else None


class _OnTensors(nn.Module):
    """A module as one that takes the tensors among its arguments by position; the others are as they were."""

    def __init__(self, inner: nn.Module, leaves: list[Any], structure: pytree.TreeSpec) -> None:
        super().__init__()
        self.inner = inner
        self._leaves = [None if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        self._places = [place for place, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
        self._structure = structure

    def forward(self, *tensors: Tensor) -> Any:
        leaves = list(self._leaves)
        for place, tensor in zip(self._places, tensors, strict=True):
            leaves[place] = tensor
        arguments, options = pytree.tree_unflatten(leaves, self._structure)
        return self.inner(*arguments, **options)


def _calls(model: nn.Module, images: Tensor) -> dict[nn.Module, _Call]:
    """By module, its first call when the model runs on the images."""
    calls = dict[nn.Module, _Call]()

    def note(module: nn.Module, arguments: tuple[Any, ...], options: dict[str, Any], result: Any) -> None:
        calls.setdefault(module, _Call(arguments, options, result))

    handles = [module.register_forward_hook(note, with_kwargs=True) for module in model.modules()]
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    try:
        model(images)
    finally:
        for handle in handles:
            handle.remove()
        for buffer, before in buffers:
            buffer.copy_(before)
    return calls


@contextlib.contextmanager
def _stand_ins(calls: dict[nn.Module, _Call]) -> Iterator[None]:
    """Inside, each of these modules gives the first row of what it once gave, for as many rows as it is given."""

    def stand_in(call: _Call) -> Callable[..., Any]:
        def forward(*arguments: Any, **options: Any) -> Any:
            given = [leaf for leaf in pytree.tree_leaves((arguments, options)) if isinstance(leaf, Tensor)]

            def rows(value: Any) -> Any:
                is_batch = isinstance(value, Tensor) and value.ndim > 0 and bool(given)
                return value[:1].expand(given[0].shape[0], *value.shape[1:]) if is_batch else value

            return pytree.tree_map(rows, call.result)

        return forward

    try:
        for module, call in calls.items():
            module.__dict__["forward"] = stand_in(call)
        yield
    finally:
        for module in calls:
            del module.__dict__["forward"]
