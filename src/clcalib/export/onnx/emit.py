"""A chain of units, quantized or not, becomes an ONNX graph with QuantizeLinear and DequantizeLinear.

The operators of the captured graph are looked up in a table (``operators.py``); quantizers become what
``quantizers.py`` says.  Everything is written down as plain values first, so that whether a network can be emitted is
known before it is calibrated, and without the package ``onnx``.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import operator
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, fx

from clcalib.capture.chain import Chain
from clcalib.capture.graph import input_node, is_convolution, is_linear, module_path, value_of
from clcalib.capture.outputs import output_nodes
from clcalib.capture.products import find_products
from clcalib.errors import ArgumentError, UnsupportedOperatorError
from clcalib.export.onnx.call import Call, Names
from clcalib.export.onnx.codes import write_move
from clcalib.export.onnx.compact import compacted
from clcalib.export.onnx.model import Port, make_model, require_onnx
from clcalib.export.onnx.naming import port_of, value_names
from clcalib.export.onnx.operators import builder_of, title_of
from clcalib.export.onnx.quantizers import write_activation, write_weight
from clcalib.export.onnx.rules import OnnxRules
from clcalib.export.onnx.writer import UnsupportedError, Writer
from clcalib.quant.biases import bias_of, further_biases, separate_biases
from clcalib.quant.insert import Unquantized, tensor_at
from clcalib.quant.modules import ActivationQuantizer, IntegerWeight

if TYPE_CHECKING:
    from onnx import ModelProto

_DEFAULT = OnnxRules()


@dataclasses.dataclass(frozen=True)
class Emitted:
    """An ONNX graph and where to find in it what the chain holds.

    Attributes:
        model: checked; its weights are inside.
        codes: node of an activation quantizer -> tensor of its integer codes, where it is a QuantizeLinear.
        reference_codes: node of an activation quantizer of fewer bits -> tensor of its codes, as floats.
        layers: layer or product of activations -> name of its Conv, ConvTranspose, Gemm or MatMul; further calls of a
            layer are ``layer#2`` and so on.
        outputs: names of the graph's outputs, in the order of ``Chain.output_names``.
    """

    model: ModelProto
    codes: Mapping[str, str]
    reference_codes: Mapping[str, str]
    layers: Mapping[str, str]
    outputs: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Unsupported:
    """Something in a chain that cannot be emitted.

    Attributes:
        operator: "aten.grid_sampler_2d", say.
        module: the path of the module whose forward it is in; "" is the model itself.
        node: its name in the captured graph.
        reason: "" where the operator as such is unknown.
    """

    operator: str
    module: str
    node: str
    reason: str = ""

    def __str__(self) -> str:
        why = f" ({self.reason})" if self.reason else ""
        return f"{self.operator}{why} in {self.module or 'the model itself'}, node {self.node}"


def unsupported(chain: Chain, rules: OnnxRules = _DEFAULT) -> list[Unsupported]:
    """Everything in a chain that ``emit`` would refuse, in execution order; [] where it can be emitted.

    It may be asked of the float chain, before calibration; the package ``onnx`` is not needed.
    """
    return _write(chain, rules, {})[2]


def emit(
    chain: Chain,
    *,
    input_shape: Sequence[int] | None = None,
    rules: OnnxRules = _DEFAULT,
    metadata: Mapping[str, str] | None = None,
    weights: Mapping[str, str] | None = None,
) -> Emitted:
    """Write a chain as an ONNX graph with a free batch dimension.

    Args:
        chain: float, or with calibrated quantizers on any tensors.
        input_shape: of one image, without the batch; checked against what was captured.
        rules: versions, names, how integers are stored.
        metadata: goes into the file as it is, beside ``clcalib.narrow_codes``: a JSON object that says of each weight
            whose codes are narrower than their type how wide they are ("3 bits in int4").
        weights: layer -> name of its weight's module (``QuantizedChain.weights``), for the layers' names; without it
            they are the paths of their modules.

    Returns:
        The graph.  The same chain, rules and metadata give the same bytes.

    Raises:
        MissingPackageError: the package ``onnx`` is not installed.
        UnsupportedOperatorError: something in the chain has no counterpart; all of it is named.
        ArgumentError: a quantizer has no range yet, or the shape is another one.
    """
    require_onnx()
    image = input_node(chain.module.graph)
    _check_calibrated(chain)
    shape = _check_shape(image, input_shape)
    writer, names, problems = _write(chain, rules, weights or {})
    if problems:
        raise UnsupportedOperatorError("the network cannot be written as ONNX", [str(problem) for problem in problems])
    outputs = [port_of(node, names, rules) for node in output_nodes(chain.module.graph)]
    writer = compacted(writer, [name for name, _, _ in outputs])
    inputs: list[Port] = [(rules.input_name, value_of(image).dtype, (rules.batch_name, *shape))]
    model = make_model(writer, inputs, outputs, "clcalib", _narrow_codes(writer) | dict(metadata or {}))
    found = (dict(writer.codes), dict(writer.reference_codes), dict(writer.layers))
    return Emitted(model, *found, tuple(name for name, _, _ in outputs))


def with_rounded_biases(chain: Chain, rules: OnnxRules = _DEFAULT) -> Chain:
    """A copy of a quantized chain whose biases have the values that the graph adds: int32 times s_x * s_w.

    The same chain again where no bias is rounded.
    """
    writer = _write(chain, rules, {})[0]
    module = copy.deepcopy(chain.module)
    for node in list(module.graph.nodes):
        if node.name in writer.biases:
            name = f"_rounded_bias_{node.name}"
            module.register_buffer(name, writer.biases[node.name])
            with module.graph.inserting_before(node):
                bias = module.graph.get_attr(name)
            bias.meta = dict(node.args[2].meta)
            node.update_arg(2, bias)
    module.graph.eliminate_dead_code()
    module = fx.GraphModule(module, module.graph, class_name=type(chain.module).__name__).eval()
    return dataclasses.replace(chain, module=module)


def least_weight_scales(chain: Chain, rules: OnnxRules = _DEFAULT) -> dict[str, Tensor]:
    """By the name of a weight's module, the scales from which on its bias fits into an integer, where it does not.

    A channel whose weights are next to nothing has a scale s_w in whose steps s_x * s_w the bias is a number beyond
    int32.  Runtimes quantize a float bias by themselves, clip it without a word, and are then wrong by many codes.
    """
    return dict(_write(chain, rules, {})[0].least_scales)


def round_biases(chain: Chain, rules: OnnxRules = _DEFAULT) -> None:
    """The same in place, where only layers read a bias; rounding twice is rounding once.

    A layer that is called more than once gets a bias for each call (``quant/biases.py``), as their steps differ.
    """
    values = _write(chain, rules, {})[0].biases
    layers = [node for node in chain.module.graph.nodes if node.name in values]
    rounded = {str(bias_of(layer).target) for layer in layers}
    further = further_biases(chain.module)
    separate_biases(chain.module, [name for name, node in further.items() if str(bias_of(node).target) in rounded])
    targets = Counter(str(bias_of(layer).target) for layer in layers)
    for layer in layers:
        bias = bias_of(layer)
        if targets[str(bias.target)] == 1 and len(bias.users) == 1:
            tensor_at(chain.module, str(bias.target)).copy_(values[layer.name])


def _write(chain: Chain, rules: OnnxRules, weights: Mapping[str, str]) -> tuple[Writer, Names, list[Unsupported]]:
    """All nodes in execution order; where one cannot be written, the rest still are, so that every problem is found."""
    graph = chain.module.graph
    layers = {module: layer for layer, module in weights.items()}
    products = {product.node.name: product.name for product in find_products(graph)}
    writer = Writer(chain.module, rules, layers, products)
    names = value_names(graph, writer)
    problems = []
    for node in graph.nodes:
        try:
            _write_node(writer, node, names)
        except UnsupportedError as error:
            problems.append(Unsupported(title_of(node), module_path(node), node.name, str(error)))
    _end_outputs(writer, graph, names)
    return writer, names, problems


def _write_node(writer: Writer, node: fx.Node, names: Names) -> None:
    if node.op in ("placeholder", "output") or node.target is operator.getitem:
        return
    if node.op == "get_attr":
        _write_parameter(writer, node, names)
        return
    call = Call(writer, node, names)
    if node.op == "call_module":
        _write_module(call, writer.module.get_submodule(str(node.target)))
        return
    build = builder_of(node)
    if build is None:
        raise UnsupportedError("")
    if not write_move(writer, node, names, build):
        build(call)


def _write_parameter(writer: Writer, node: fx.Node, names: Names) -> None:
    target = str(node.target)
    if not isinstance(value_of(node), Tensor):
        raise UnsupportedError("control flow")
    names[node] = writer.constant(target, tensor_at(writer.module, target))


def _write_module(call: Call, module: torch.nn.Module) -> None:
    if isinstance(module, IntegerWeight):
        if any(not _is_weight_of(user, call.node) for user in call.node.users):
            call.end("Identity", write_weight(call, str(call.node.target), module))
    elif isinstance(module, ActivationQuantizer):
        write_activation(call, call.name_of(call.node.args[0]), module)
    elif isinstance(module, Unquantized):
        call.end("Identity", call.name_of(call.node.args[0]))
    else:
        raise UnsupportedError("a module that is no quantizer")


def _is_weight_of(layer: fx.Node, weight: fx.Node) -> bool:
    return (is_convolution(layer) or is_linear(layer)) and layer.args[1] is weight


def _end_outputs(writer: Writer, graph: fx.Graph, names: Names) -> None:
    """The image may be returned as it is; it then gets a name of its own."""
    image = input_node(graph)
    if image in output_nodes(graph):
        source = names[image]
        assert isinstance(source, str)
        names[image] = writer.reserve(writer.rules.output_name)
        writer.step("Identity", (source,), (str(names[image]),), "output")


def _narrow_codes(writer: Writer) -> dict[str, str]:
    """The entry of the file's metadata that tells which codes use less than the range of their type."""
    return {"clcalib.narrow_codes": json.dumps(writer.narrow, sort_keys=True)} if writer.narrow else {}


def _check_calibrated(chain: Chain) -> None:
    modules = chain.module.named_modules()
    waiting = [name for name, module in modules if isinstance(module, Unquantized)]
    if waiting:
        raise ArgumentError("chain", "quantizers with a range", f"none in {waiting[0]}", "calibrate it first")


def _check_shape(image: fx.Node, wanted: Sequence[int] | None) -> tuple[int, ...]:
    shape = tuple(int(size) for size in value_of(image).shape[1:])
    if wanted is not None and tuple(wanted) != shape:
        raise ArgumentError("input_shape", f"{shape}, as captured", tuple(wanted), "leave the batch out")
    return shape
