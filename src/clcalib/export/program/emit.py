"""A quantized chain as a program of PyTorch's own: quantize and dequantize operators around those of the float graph.

This is the reference form that PyTorch's compilers take: each layer reads ``dequantize(quantize(x))`` and
``dequantize(codes)`` of int8 codes that lie in the file, and a compiler that has an integer kernel for ``dequantize ->
convolution -> relu -> quantize`` takes all of it in.  Run as it is, the program computes in float what the simulation
does; PyTorch multiplies by 1 / s where the simulation divides by s, so that a value in the middle of two codes may go
to either.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx
from torch.export import Dim, ExportedProgram

from clcalib.capture.chain import Chain
from clcalib.capture.graph import input_node, is_convolution, is_linear, module_path, value_of
from clcalib.errors import ArgumentError, UnsupportedOperatorError
from clcalib.export.program.operators import operators
from clcalib.quant.insert import QuantizedChain, Unquantized
from clcalib.quant.modules import ActivationQuantizer, IntegerWeight
from clcalib.quant.placement import MOVES, clamp_limits, pads_with_numbers, plain_name
from clcalib.quant.spec import PerChannel, QuantSpec

MARK = "clcalib.quantizer"  # in a node's custom metadata: the quantizer whose codes it makes; compilers hand it on
_OF_THIS_MACHINE = ("stack_trace", "from_node")  # paths of source files, which a file that is given away need not tell


@dataclass(frozen=True)
class Grid:
    """What both operators of an activation are called with, behind the tensor.

    Attributes:
        shift: of the codes, against the quantizer's own.
    """

    scale: float
    zero_point: int
    q_min: int
    q_max: int
    dtype: torch.dtype
    shift: int

    @property
    def arguments(self) -> tuple[float, int, int, int, torch.dtype]:
        return self.scale, self.zero_point, self.q_min, self.q_max, self.dtype

    def covers(self, limits: tuple[float, float]) -> bool:
        """Whether a clamp has no effect on the codes: its bounds lie at the first and the last code, or beyond."""
        low, high = (limit / self.scale + self.zero_point for limit in limits)
        return low <= self.q_min + 0.5 and high >= self.q_max - 0.5


@torch.no_grad()
def emit_program(
    quantized: QuantizedChain,
    *,
    is_signed: bool = False,
    largest_batch: int | None = None,
    returned_codes: Sequence[str] = (),
) -> ExportedProgram:
    """Write a calibrated chain in reference form, with a free batch dimension.

    Args:
        quantized: calibrated, on the CPU; not changed.
        is_signed: whether codes of activations are int8, -128 .. 127, instead of uint8; the grid is the same.
        largest_batch: that the program must take; None for any.
        returned_codes: nodes of activation quantizers (``grids_of``) whose codes the program returns too, in this
            order, in front of its outputs.

    Returns:
        The program.  Codes of weights are int8, their scales float32, biases as they are.

    Raises:
        ArgumentError: a quantizer has no range yet.
        UnsupportedOperatorError: the operators cannot express a quantizer.
        MissingPackageError: PyTorch has the operators no more.
    """
    module = reference_module(quantized, is_signed=is_signed)
    if returned_codes:
        module = _with_codes(module, returned_codes)
    return _exported(module, quantized.chain, largest_batch)


@torch.no_grad()
def emit_float_program(chain: Chain) -> ExportedProgram:
    """A float chain on the CPU as a program with a free batch dimension."""
    return _exported(chain.module, chain)


def grids_of(quantized: QuantizedChain, *, is_signed: bool = False) -> dict[str, Grid]:
    """Of each node of an activation quantizer, the grid that it has in the program."""
    found = {}
    for node in quantized.chain.module.graph.nodes:
        inner = _inner(quantized.chain.module, node)
        if isinstance(inner, ActivationQuantizer):
            found[node.name] = _grid(inner, is_signed)
    return found


def reference_module(quantized: QuantizedChain, *, is_signed: bool = False) -> fx.GraphModule:
    """The graph of ``emit_program`` before it is exported."""
    source = quantized.chain.module
    _check(source)
    module = copy.deepcopy(source)
    grids: dict[fx.Node, Grid] = {}
    for node in list(module.graph.nodes):
        inner = _inner(module, node)
        if isinstance(inner, IntegerWeight):
            _write_weight(module, node, inner)
        elif isinstance(inner, ActivationQuantizer):
            _write_activation(module.graph, node, _grid(inner, is_signed), grids)
    _quantize_behind_moves(module.graph, grids)
    module.graph.eliminate_dead_code()
    module.graph.lint()
    # Built anew from the graph, the module holds what the graph reads and nothing else.
    return fx.GraphModule(module, module.graph, class_name="Quantized").eval()


def _with_codes(module: fx.GraphModule, names: Sequence[str]) -> fx.GraphModule:
    """The same graph, which returns the codes that quantizers make too."""
    makers = {(node.meta.get("custom") or {}).get(MARK): node for node in module.graph.nodes}
    end = module.graph.output_node()
    own = end.args[0] if isinstance(end.args[0], list | tuple) else (end.args[0],)
    end.args = ((*(makers[name] for name in names), *own),)
    return fx.GraphModule(module, module.graph, class_name="Quantized").eval()


def _exported(module: fx.GraphModule, chain: Chain, largest_batch: int | None = None) -> ExportedProgram:
    image = value_of(input_node(chain.module.graph))
    # Compilers that plan memory may take the example's size for typical, and a smaller batch than it for possible.
    example = torch.zeros(largest_batch or 2, *image.shape[1:], dtype=image.dtype)
    program = torch.export.export(module, (example,), dynamic_shapes=({0: Dim("batch", max=largest_batch)},))
    for node in program.graph.nodes:
        for key in _OF_THIS_MACHINE:
            node.meta.pop(key, None)
    return program


def _inner(module: fx.GraphModule, node: fx.Node) -> object:
    return module.get_submodule(str(node.target)) if node.op == "call_module" else None


def _check(module: fx.GraphModule) -> None:
    """Raise where a quantizer is not calibrated, or has no counterpart."""
    problems = []
    for node in module.graph.nodes:
        inner = _inner(module, node)
        if isinstance(inner, Unquantized):
            raise ArgumentError("quantized", "quantizers with a range", f"none in {node.target}", "calibrate it first")
        if isinstance(inner, ActivationQuantizer) and inner.spec.grid != "uniform":
            problems.append(f"codes on the grid {inner.spec.grid} in {module_path(node) or 'the model itself'}")
        if isinstance(inner, IntegerWeight) and _largest(inner.spec) > 127 and bool(inner.zero_point.any()):
            problems.append(f"a weight of {inner.spec.bits} bits with a zero point, {node.target}")
    if problems:
        raise UnsupportedOperatorError("the network cannot be written as a program of PyTorch", problems)


def _grid(quantizer: ActivationQuantizer, is_signed: bool) -> Grid:
    spec = quantizer.spec
    dtype = torch.int8 if is_signed else torch.uint8
    if spec.is_signed == is_signed:
        shift = 0
    else:
        half = 1 << (spec.bits - 1)
        shift = -half if is_signed else half
    zero_point = int(quantizer.zero_point) + shift
    return Grid(float(quantizer.scale), zero_point, spec.q_min + shift, spec.q_max + shift, dtype, shift)


def _write_activation(graph: fx.Graph, node: fx.Node, grid: Grid, grids: dict[fx.Node, Grid]) -> None:
    """One quantize, and for each reader a dequantize of its own: compilers match reader by reader."""
    (tensor,) = node.args
    assert isinstance(tensor, fx.Node)
    limits = clamp_limits(tensor)
    # Kernels have few clamps of their own, relu foremost; another one is left out where the codes' bounds do its work.
    is_free = limits is not None and plain_name(tensor) != "relu" and grid.covers(limits)
    source = tensor.args[0] if is_free else tensor
    with graph.inserting_before(node):
        codes = graph.call_function(operators().quantize, (source, *grid.arguments))
    codes.meta = {**node.meta, "custom": {MARK: node.name}}
    for reader in list(node.users):
        if not isinstance(value_of(reader), Tensor) and reader.op != "output":
            reader.replace_input_with(node, tensor)  # it wants the shape
            continue
        with graph.inserting_before(reader):
            values = graph.call_function(operators().dequantize, (codes, *grid.arguments))
        values.meta = dict(node.meta)
        grids[values] = grid
        reader.replace_input_with(node, values)
    graph.erase_node(node)


def _largest(spec: QuantSpec) -> int:
    """The largest size of a code less its zero point."""
    return spec.q_max - spec.q_min


def _write_weight(module: fx.GraphModule, node: fx.Node, weight: IntegerWeight) -> None:
    axis = weight.spec.granularity.axis if isinstance(weight.spec.granularity, PerChannel) else 0
    stem = f"{node.target}_"
    channels = weight.codes.shape[axis]
    if not hasattr(module, f"{stem}codes"):
        # Kernels know no zero points of weights; less than 8 bits leave room to take them off the codes.
        module.register_buffer(f"{stem}codes", (weight.codes - weight.zero_point).to(torch.int8))
        module.register_buffer(f"{stem}scale", weight.scale.flatten().expand(channels).clone())
        module.register_buffer(f"{stem}zero_point", torch.zeros(channels, dtype=torch.int64))
    call = module.graph.call_function
    with module.graph.inserting_before(node):
        if any("transpose" in plain_name(user) for user in node.users):
            # Compilers take any convolution that reads the operator below for one that their kernels compute.
            codes, scale = module.graph.get_attr(f"{stem}codes"), module.graph.get_attr(f"{stem}scale")
            shape = [channels if place == axis else 1 for place in range(weight.codes.ndim)]
            values = call(torch.ops.aten.mul.Tensor, (codes, call(torch.ops.aten.view.default, (scale, shape))))
        else:
            numbers = [module.graph.get_attr(f"{stem}{part}") for part in ("codes", "scale", "zero_point")]
            ends = -_largest(weight.spec), _largest(weight.spec)
            limits = (*(ends if bool(weight.zero_point.any()) else (weight.spec.q_min, weight.spec.q_max)), torch.int8)
            values = call(operators().dequantize_weight, (*numbers, axis, *limits))
    values.meta = dict(node.meta)
    node.replace_all_uses_with(values)
    module.graph.erase_node(node)


def _quantize_behind_moves(graph: fx.Graph, grids: dict[fx.Node, Grid]) -> None:
    """Quantize again what layers and sums read behind operators that only move values.

    It changes no value, as all of them lie on the grid; but compilers look for a dequantize right in front.
    """
    found: dict[fx.Node, fx.Node] = {}
    for node in list(graph.nodes):
        is_layer = is_convolution(node) or is_linear(node)
        for tensor in node.all_input_nodes[:1] if is_layer else node.all_input_nodes if _is_sum(node) else ():
            origin = tensor
            while origin not in grids and plain_name(origin) in MOVES and not pads_with_numbers(origin):
                (origin, *_) = origin.all_input_nodes
            grid = grids.get(origin)
            if grid is None or origin is tensor:
                continue
            meta = {key: value for key, value in tensor.meta.items() if key != "custom"}
            if tensor not in found:
                with graph.inserting_after(tensor):
                    found[tensor] = graph.call_function(operators().quantize, (tensor, *grid.arguments))
                found[tensor].meta = dict(meta)
            with graph.inserting_before(node):
                values = graph.call_function(operators().dequantize, (found[tensor], *grid.arguments))
            values.meta = meta
            node.replace_input_with(tensor, values)


def _is_sum(node: fx.Node) -> bool:
    return plain_name(node) == "add" and any(is_convolution(operand) for operand in node.all_input_nodes)
