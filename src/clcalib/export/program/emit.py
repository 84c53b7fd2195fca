"""A quantized chain as a program of PyTorch's own: quantize and dequantize operators around those of the float graph.

This is the reference form that PyTorch's compilers take: each layer reads ``dequantize(quantize(x))`` and
``dequantize(codes)`` of int8 codes that lie in the file, and a compiler that has an integer kernel for ``dequantize ->
convolution -> relu -> quantize`` takes all of it in.  Run as it is, the program computes in float what the simulation
does; PyTorch multiplies by 1 / s where the simulation divides by s, so that a value in the middle of two codes may go to
either.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
import torch.ao.quantization.fx._decomposed  # registers the operators
from torch import Tensor, fx
from torch.export import Dim, ExportedProgram

from clcalib.capture.graph import input_node, is_convolution, is_linear, module_path, value_of
from clcalib.errors import ArgumentError, UnsupportedOperatorError
from clcalib.quant.insert import QuantizedChain, Unquantized
from clcalib.quant.modules import ActivationQuantizer, IntegerWeight
from clcalib.quant.placement import MOVES, plain_name
from clcalib.quant.spec import PerChannel

OPERATORS = torch.ops.quantized_decomposed
QUANTIZE = OPERATORS.quantize_per_tensor.default
DEQUANTIZE = OPERATORS.dequantize_per_tensor.default
DEQUANTIZE_WEIGHT = OPERATORS.dequantize_per_channel.default


@dataclass(frozen=True)
class _Grid:
    """What both operators of an activation are called with, behind the tensor."""

    scale: float
    zero_point: int
    q_min: int
    q_max: int
    dtype: torch.dtype

    @property
    def arguments(self) -> tuple[object, ...]:
        return self.scale, self.zero_point, self.q_min, self.q_max, self.dtype


@torch.no_grad()
def emit_program(quantized: QuantizedChain, *, is_signed: bool = False) -> ExportedProgram:
    """Write a calibrated chain in reference form, with a free batch dimension.

    Args:
        quantized: calibrated, on the CPU; not changed.
        is_signed: whether codes of activations are stored as int8, -128 .. 127, instead of as uint8; the grid is the
            same.

    Returns:
        The program.  Codes of weights are int8, scales float32, biases as they are.

    Raises:
        ArgumentError: a quantizer has no range yet.
        UnsupportedOperatorError: a quantizer is none that the operators can express.
    """
    module = reference_module(quantized, is_signed=is_signed)
    image = value_of(input_node(quantized.chain.module.graph))
    example = torch.zeros(2, *image.shape[1:], dtype=image.dtype)
    return torch.export.export(module, (example,), dynamic_shapes=({0: Dim("batch")},))


def reference_module(quantized: QuantizedChain, *, is_signed: bool = False) -> fx.GraphModule:
    """The graph of ``emit_program`` before it is exported, whose nodes bear the names of the chain's."""
    source = quantized.chain.module
    _check(source)
    module = copy.deepcopy(source)
    grids: dict[fx.Node, _Grid] = {}
    for node in list(module.graph.nodes):
        if node.op != "call_module":
            continue
        inner = module.get_submodule(str(node.target))
        if isinstance(inner, IntegerWeight):
            _write_weight(module, node, inner)
        elif isinstance(inner, ActivationQuantizer):
            _write_activation(module.graph, node, _grid(inner, is_signed), grids)
    _quantize_behind_moves(module.graph, grids)
    module.graph.eliminate_dead_code()
    module.graph.lint()
    return fx.GraphModule(module, module.graph, class_name=type(source).__name__).eval()


def _check(module: fx.GraphModule) -> None:
    """Raise where a quantizer is not calibrated, or has no counterpart."""
    problems = []
    for node in module.graph.nodes:
        if node.op != "call_module":
            continue
        inner = module.get_submodule(str(node.target))
        if isinstance(inner, Unquantized):
            raise ArgumentError("quantized", "quantizers with a range", f"none in {node.target}", "calibrate it first")
        if isinstance(inner, ActivationQuantizer) and inner.spec.grid != "uniform":
            problems.append(f"codes on the grid {inner.spec.grid} in {module_path(node) or 'the model itself'}")
        if isinstance(inner, IntegerWeight) and bool(inner.zero_point.any()):
            problems.append(f"a weight with a zero point, {node.target}")
    if problems:
        raise UnsupportedOperatorError("the network cannot be written as a program of PyTorch", problems)


def _grid(quantizer: ActivationQuantizer, is_signed: bool) -> _Grid:
    spec = quantizer.spec
    (low, high), dtype = ((-128, 127), torch.int8) if is_signed else ((0, 255), torch.uint8)
    shift = low - spec.q_min if spec.bits == 8 else (0 if spec.is_signed == is_signed else low + 128 - spec.middle)
    q_min, q_max = spec.q_min + shift, spec.q_max + shift
    assert low <= q_min and q_max <= high
    return _Grid(float(quantizer.scale), int(quantizer.zero_point) + shift, q_min, q_max, dtype)


def _write_activation(graph: fx.Graph, node: fx.Node, grid: _Grid, grids: dict[fx.Node, _Grid]) -> None:
    """One quantize, which keeps the node's name, and a dequantize for each reader: compilers match reader by reader."""
    (tensor,) = node.args
    readers, meta, name = list(node.users), dict(node.meta), node.name
    with graph.inserting_before(node):
        codes = graph.call_function(QUANTIZE, (tensor, *grid.arguments))
    codes.meta = {"stack_trace": meta.get("stack_trace", "")}
    for reader in readers:
        if not isinstance(value_of(reader), Tensor) and reader.op != "output":
            reader.replace_input_with(node, tensor)  # its shape
            continue
        with graph.inserting_before(reader):
            values = graph.call_function(DEQUANTIZE, (codes, *grid.arguments))
        values.meta = dict(meta)
        grids[values] = grid
        reader.replace_input_with(node, values)
    graph.erase_node(node)
    codes.name = name


def _write_weight(module: fx.GraphModule, node: fx.Node, weight: IntegerWeight) -> None:
    axis = weight.spec.granularity.axis if isinstance(weight.spec.granularity, PerChannel) else 0
    channels = weight.codes.shape[axis]
    stem = f"{node.target}_"
    if not hasattr(module, f"{stem}codes"):
        module.register_buffer(f"{stem}codes", weight.codes.to(torch.int8))
        module.register_buffer(f"{stem}scale", weight.scale.flatten().expand(channels).clone())
        module.register_buffer(f"{stem}zero_point", torch.zeros(channels, dtype=torch.int64))
    with module.graph.inserting_before(node):
        numbers = [module.graph.get_attr(f"{stem}{part}") for part in ("codes", "scale", "zero_point")]
        limits = (weight.spec.q_min, weight.spec.q_max, torch.int8)
        values = module.graph.call_function(DEQUANTIZE_WEIGHT, (*numbers, axis, *limits))
    values.meta = dict(node.meta)
    node.replace_all_uses_with(values)
    module.graph.erase_node(node)


def _quantize_behind_moves(graph: fx.Graph, grids: dict[fx.Node, _Grid]) -> None:
    """Quantize again what a layer reads behind operators that only move values.

    It changes no value, as all of them lie on the grid; but compilers look for a dequantize right before the layer.
    """
    for node in list(graph.nodes):
        if not (is_convolution(node) or is_linear(node)) or not isinstance(node.args[0], fx.Node):
            continue
        tensor = origin = node.args[0]
        while origin not in grids and plain_name(origin) in MOVES:
            (origin, *_) = origin.all_input_nodes
        grid = grids.get(origin)
        if grid is None or origin is tensor:
            continue
        with graph.inserting_before(node):
            codes = graph.call_function(QUANTIZE, (tensor, *grid.arguments))
            values = graph.call_function(DEQUANTIZE, (codes, *grid.arguments))
        values.meta = dict(tensor.meta)
        node.update_arg(0, values)
