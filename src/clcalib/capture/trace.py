"""A module becomes a functional dataflow graph with a dynamic batch: ``torch.export``, checked before and after."""

from __future__ import annotations

import contextlib
import inspect
import io
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, fx, nn
from torch.export import Dim, ExportedProgram

from clcalib.capture.failures import capture_error, capture_errors, first_sentence, frames_in, frames_of, user_line
from clcalib.capture.functional import functional
from clcalib.capture.graph import symbol_of
from clcalib.capture.offenders import find_offenders
from clcalib.capture.unlift import unlift
from clcalib.errors import ArgumentError, CaptureError, NumericalError, TrainModeWarning

_TOLERANCE = 1e-4  # of the largest output; the same kernels run, so any real difference is far larger


def trace(model: nn.Module, example: Tensor) -> fx.GraphModule:
    """Capture what ``model`` computes in eval mode as a graph of aten operators, in execution order.

    The graph is functional (in-place operators are written out of place), owns copies of the parameters under their
    original names, and takes any batch.  The model, its train/eval flags, the global random state and the grad mode are
    left as they were.

    Args:
        model: takes one image tensor, returns one tensor or several in any structure; then the graph returns a flat
            tuple of them (:func:`clcalib.capture.outputs.whole` makes the structure again).
        example: images, shape (N, C, H, W) or any (N, ...), or the numbers of tokens; the first two are used.

    Raises:
        ArgumentError: the model refuses the example (wrong channel count, wrong size), or is not in float32.
        CaptureError: the model cannot be captured; the message names the line, and all modules that are at fault.
        NumericalError: a parameter or buffer is not finite.
    """
    _check_example(example)
    _check_signature(model)
    _check_tensors(model)
    if any(part.training for part in model.modules()):
        warnings.warn("the model is in train mode; it is captured in eval mode", TrainModeWarning, stacklevel=2)
    device = next(model.parameters(), example).device
    images = example.detach()[:2].to(device, copy=True)
    if len(images) == 1:  # export takes a batch of one for a fixed size
        images = torch.cat((images, images))
    with _quiet(model, images):
        expected = _run(model, images)
        module = unlift(*_export(model, images))
        _check_result(module, images, expected)
    return module


@contextmanager
def _silent_torch() -> Iterator[None]:
    """On failure torch logs and prints whole graphs; the one error that names the line replaces them.

    What is warned of in here is torch's matter, or was warned of when the model itself was run; a caller who turns
    warnings into errors must not get another result.
    """
    logger = logging.getLogger("torch.fx.experimental.symbolic_shapes")
    was_disabled = logger.disabled
    try:
        logger.disabled = True
        with contextlib.redirect_stderr(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.disabled = was_disabled


def _check_example(example: object) -> None:
    if not isinstance(example, Tensor):
        raise ArgumentError("example", "a tensor of images", type(example).__name__)
    is_number = example.is_floating_point() or example.dtype in (torch.int32, torch.int64)
    if not is_number or example.dim() < 2 or example.numel() == 0:
        got = f"{example.dtype} of shape {tuple(example.shape)}"
        raise ArgumentError(
            "example", "at least one image of floating point numbers, (N, C, H, W), or tokens, (N, T) int64", got
        )


def _check_signature(model: nn.Module) -> None:
    parameters = inspect.signature(model.forward).parameters.values()
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD, p.VAR_POSITIONAL)]
    required = [p.name for p in parameters if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    if len(required) > 1 or not positional:
        listed = ", ".join(required) or "nothing"
        raise CaptureError(
            f"{type(model).__name__}.forward takes {listed}; only one image tensor is supported: wrap the model in a "
            "module with one input, or name the part of it to be quantized as submodule"
        )


def _check_tensors(model: nn.Module) -> None:
    """Raise for values that are not there, not on one device or not finite, and for parameters of another type."""
    check_is_on_one_device(model)
    for kind, tensors in (("parameter", model.named_parameters()), ("buffer", model.named_buffers())):
        for name, tensor in tensors:
            if not tensor.is_floating_point():
                continue
            if kind == "parameter" and tensor.dtype != torch.float32:
                got = f"{str(tensor.dtype).removeprefix('torch.')} in the parameter `{name}`"
                raise ArgumentError("model", "parameters in float32", got, "convert it with model.float()")
            if tensor.device.type == "meta":
                raise ArgumentError("model", "trained values", f"no values in the {kind} `{name}`", "load the weights")
            if not bool(torch.isfinite(tensor.detach()).all()):
                raise NumericalError(f"the {kind} `{name}` of the model holds a value that is not finite")


def check_is_on_one_device(model: nn.Module) -> None:
    """Raise where parameters or buffers are on several devices; the error names the first one on each.

    Raises:
        ArgumentError: see above.
    """
    devices: dict[torch.device, str] = {}
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        devices.setdefault(tensor.device, name)
    if len(devices) > 1:
        got = ", ".join(f"`{name}` on {device}" for device, name in devices.items())
        is_empty = any(device.type == "meta" for device in devices)
        remedy = "load the weights of what is on meta" if is_empty else "move it with model.to(device)"
        raise ArgumentError("model", "all of it on one device", got, remedy)


@contextmanager
def _quiet(model: nn.Module, images: Tensor) -> Iterator[None]:
    """Eval mode, no gradients, private random state, no warnings from torch's own code; all put back at the end."""
    flags = [(part, part.training) for part in model.modules()]
    fast_path = torch.backends.mha.get_fastpath_enabled()
    devices = [images.device.index or 0] if images.device.type == "cuda" else []
    try:
        for part, _ in flags:
            part.training = False
        torch.backends.mha.set_fastpath_enabled(False)  # its fused operator would hide the linear layers
        with torch.random.fork_rng(devices), torch.no_grad(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"torch(\..*)?$")
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
        for part, training in flags:
            part.training = training


def _run(model: nn.Module, images: Tensor) -> list[Any]:
    """The leaves of the model's own answer, computed on copies of its buffers."""
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    try:
        result = torch.func.functional_call(model, buffers, (images.clone(),))
    except Exception as error:
        line = user_line(frames_of(error))
        remedy = f"the model says: {first_sentence(error)}" + (f" at {line}" if line else "")
        shape = f"images of shape {tuple(images.shape[1:])}"
        raise ArgumentError("example", f"images that {type(model).__name__} takes", shape, remedy) from error
    leaves = pytree.tree_leaves(result)
    tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    if not tensors:
        kind = type(result).__name__
        raise CaptureError(f"{type(model).__name__} returns a {kind} without a tensor in it; return tensors")
    for tensor in tensors:
        if tensor.dim() == 0 or len(tensor) != len(images):
            shape = f"{tuple(tensor.shape)} for {len(images)} images"
            raise CaptureError(
                f"{type(model).__name__} returns the shape {shape}; the first dimension must be the batch"
            )
    return leaves


def _export(model: nn.Module, images: Tensor) -> tuple[ExportedProgram, fx.Graph]:
    try:
        return _exported(model, (images,), ({0: Dim.AUTO},))
    except Exception as error:
        failure = error
    raise _refused(model, images, failure) from failure  # out here, so that other modules' errors are not caused by it


def _exported(model: nn.Module, tensors: tuple[Tensor, ...], shapes: Any) -> tuple[ExportedProgram, fx.Graph]:
    """The program and its functional graph."""
    with _silent_torch():
        program = torch.export.export(model, tensors, dynamic_shapes=shapes, strict=False)
        graph = functional(program)
        if graph is None:
            program = program.run_decompositions({})  # writes in-place operators out of place
            graph = program.graph
    inputs = program.graph_signature.user_inputs
    for node in graph.nodes:
        if node.name in inputs[:1] and symbol_of(node.meta["val"].shape[0]) is None:
            raise _fixed_batch(graph)
    return program, graph


def _refused(model: nn.Module, images: Tensor, error: Exception) -> CaptureError:
    """The error that names every module that cannot be captured."""

    def tried(module: nn.Module, tensors: tuple[Tensor, ...]) -> Exception | None:
        sizes = [{0: Dim.AUTO} if tensor.ndim and len(tensor) == len(images) else None for tensor in tensors]
        try:
            _exported(module, tensors, (tuple(sizes),))
        except Exception as own:
            return own
        return None

    try:
        found = find_offenders(model, images, tried)
    except Exception:  # the search runs the model's own code in ways that it was not written for
        found = []
    if len(found) < 2:
        return error if isinstance(error, CaptureError) else capture_error(error)
    return capture_errors([(f"{own.path or 'the model'} ({own.kind})", own.error) for own in found])


def _fixed_batch(graph: fx.Graph) -> CaptureError:
    """The error for a model that works for one batch size only: the first node that turns a symbol into a number."""
    line = ""
    for node in graph.nodes:
        is_fixed = node.op == "call_function" and not _has_symbol(node)
        if is_fixed and any(_has_symbol(source) for source in node.all_input_nodes):
            line = user_line(frames_in(str(node.meta.get("stack_trace", ""))))
            break
    place = f" at {line}" if line else ""
    return CaptureError(f"the model fixes the batch size{place}; use x.shape[0] or -1")


def _has_symbol(node: fx.Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, Tensor) and any(isinstance(size, torch.SymInt) for size in value.shape)


def _check_result(module: fx.GraphModule, images: Tensor, expected: Sequence[Any]) -> None:
    """The graph must give the model's values, and take a batch of one."""
    try:
        results, singles = pytree.tree_leaves(module(images)), pytree.tree_leaves(module(images[:1]))
    except Exception as error:
        raise CaptureError(f"the captured graph does not run on every batch size: {first_sentence(error)}") from error
    for result, single, own in zip(results, singles, expected, strict=True):
        if not isinstance(own, Tensor):
            continue
        if own.dtype == torch.bool:  # a mask, which has no size
            result, own = result.to(torch.uint8), own.to(torch.uint8)
        scale = float(own.detach().abs().nan_to_num(posinf=0.0).max())
        if not torch.allclose(result, own, rtol=0, atol=_TOLERANCE * max(scale, 1e-12), equal_nan=True):
            raise CaptureError(
                "the captured graph gives other values than the model; is its forward random in eval mode?"
            )
        if single.shape[1:] != own.shape[1:]:
            raise CaptureError(f"the captured graph returns the shape {tuple(single.shape)} for one image")
