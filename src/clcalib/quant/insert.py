"""Chain + policy -> a quantized copy: weights as integers, quantizers behind the tensors that layers read."""

from __future__ import annotations

import copy
import dataclasses
import warnings
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, fx, nn

from clcalib.capture.chain import Chain
from clcalib.capture.describe import layer_kinds
from clcalib.capture.graph import groups_of, operator_name, weighted_nodes
from clcalib.capture.units import Unit
from clcalib.errors import ConstantChannelWarning, OutlierWarning
from clcalib.quant.modules import ActivationQuantizer, Bias, IntegerWeight
from clcalib.quant.placement import IMAGE, Placement
from clcalib.quant.policy import EDGE_BITS, Bits, EdgeBits, LayerPolicy, Overrides, build_policy
from clcalib.quant.ranges import RangeRule, has_outliers, is_constant
from clcalib.quant.reads import Read, find_reads
from clcalib.quant.rounding import nearest
from clcalib.quant.spec import Grid, PerChannel, QParams, QuantSpec
from clcalib.quant.targets import Target

Layers = Sequence[tuple[str, fx.Node]]  # in execution order


class Unquantized(nn.Module):
    """Holds the place of an activation quantizer whose range is not known yet; passes the tensor through."""

    def __init__(self, spec: QuantSpec) -> None:
        super().__init__()
        self.spec = spec

    def forward(self, x: Tensor) -> Tensor:
        return x


@dataclasses.dataclass(frozen=True)
class QuantizedChain:
    """A chain with quantizers in it.

    Attributes:
        chain: the quantized graph; its units have the names, kinds and order of the float chain's.
        weights: layer -> name of its ``IntegerWeight`` inside ``chain.module``.
        activations: layer -> name of the quantizer of the tensor that it reads.  Of layers that share one, the first
            is named; the further calls of a layer that is called more than once are ``layer#2`` and so on.  A product
            of activations reads two, its own name and ``name.right``.
        sources: layer -> path of its float weight inside the float chain's module.
        policy: the rows that it was made from.
    """

    chain: Chain
    weights: Mapping[str, str]
    activations: Mapping[str, str]
    sources: Mapping[str, str]
    policy: tuple[LayerPolicy, ...]

    def weight(self, layer: str) -> IntegerWeight:
        module = self.chain.module.get_submodule(self.weights[layer])
        assert isinstance(module, IntegerWeight)
        return module

    def activation(self, layer: str) -> ActivationQuantizer | Unquantized:
        module = self.chain.module.get_submodule(self.activations[layer])
        assert isinstance(module, (ActivationQuantizer, Unquantized))
        return module

    def replace(self, name: str, module: nn.Module) -> None:
        """Put a finished quantizer in its place; of a ``Bias``, its value in that of the parameter of this name."""
        if isinstance(module, Bias):
            tensor_at(self.chain.module, name).copy_(module.value)
        else:
            self.chain.module.set_submodule(name, module)

    def copy(self) -> QuantizedChain:
        """An independent copy."""
        chain = dataclasses.replace(self.chain, module=copy.deepcopy(self.chain.module))
        return dataclasses.replace(self, chain=chain)


def chain_policy(
    chain: Chain,
    bits: Bits,
    setting: str = "qdrop",
    overrides: Overrides | None = None,
    first_last_bits: EdgeBits = EDGE_BITS,
    grids: Mapping[str, Grid] | None = None,
    target: Target | None = None,
) -> tuple[LayerPolicy, ...]:
    """The rows of ``build_policy`` for a chain's layers and products, as ``fit_policy`` can carry them out.

    With a target they have the signs that its kernels need, and more rows for the tensors that these read and write.

    Raises:
        ArgumentError: the target has no kernel for a width; or what ``build_policy`` raises.
    """
    rows = build_policy(
        chain.layers,
        bits if target is None else target.bits(bits),
        setting,
        overrides,
        first_last_bits=first_last_bits,
        kinds=layer_kinds(chain.module),
        products=chain.products,
        is_image_quantized=target is not None and target.placement is not None,
    )
    if target is None:
        return fit_policy(chain, rows, grids)
    rows = tuple(target.fitted(row) for row in rows)
    fitted = fit_policy(chain, (*rows, *target.rows(chain, rows)), grids, target.placement)
    target.check(fitted)
    return fitted


def fit_policy(
    chain: Chain,
    policy: Sequence[LayerPolicy],
    grids: Mapping[str, Grid] | None = None,
    placement: Placement | None = None,
) -> tuple[LayerPolicy, ...]:
    """Return the rows as they can be carried out on this chain; this is the table that is shown.

    The rows come in execution order.  A tensor has one quantizer, so layers that read the same tensor share the largest
    of their widths.  The image is never quantized.  Weights of transposed convolutions have their output channels on
    axis 1 (with groups they are quantized per input channel, as no axis holds the output channels).

    Args:
        chain: the float chain.
        policy: the rows of ``build_policy``.
        grids: "softmax" or "gelu" -> the grid of the tensors that come from one; uniform where nothing is said.
        placement: of the target.
    """
    reads = find_reads(chain.module, placement)
    places = {name: place for place, name in enumerate(dict.fromkeys(read.name for read in reads))}
    transposed = {
        layer
        for layer, node in weighted_nodes(chain.module)
        if "transpose" in operator_name(node) and groups_of(node) == 1
    }
    rows = {row.layer: row for row in policy}
    fitted = []
    for row in sorted(policy, key=lambda row: places[row.layer]):
        weight, reason = row.weight, row.reason
        sides: dict[str, QuantSpec | None] = {"input": row.input, "right": row.right}
        for side, wanted in tuple(sides.items()):
            own = [read for read in reads if (read.name, read.side) == (row.layer, side)]  # several of a layer that is
            if not own:  # called more than once
                continue
            is_float_image = IMAGE not in rows and any(read.tensor.name == chain.input_name for read in own)
            others = [other for other in reads if any(other.tensor is read.tensor for read in own)]
            specs = [spec for other in others if (spec := other.spec(rows.get(other.name))) is not None]
            found = None if is_float_image else max(specs, key=lambda spec: spec.bits, default=None)
            if found != wanted:
                (other, *_) = [other.name for other in others if other.name != row.layer] or [row.layer]
                note = "image not quantized" if is_float_image else f"reads the same tensor as {other}"
                reason = f"{reason}; {note}" if reason else note
            (source, *more) = {read.source for read in own}
            grid = "uniform" if more else (grids or {}).get(source, "uniform")
            sides[side] = found if found is None or grid == "uniform" else found.on(grid)
        if weight is not None and row.layer in transposed and isinstance(weight.granularity, PerChannel):
            weight = dataclasses.replace(weight, granularity=PerChannel(1))
        fitted.append(
            dataclasses.replace(row, weight=weight, input=sides["input"], right=sides["right"], reason=reason)
        )
    return tuple(fitted)


def insert_quantizers(
    chain: Chain, policy: Sequence[LayerPolicy], weight_rule: RangeRule, placement: Placement | None = None
) -> QuantizedChain:
    """Return a quantized copy of the chain; weights are rounded to nearest, activations wait for their range.

    A tensor that a layer reads is quantized right where it is made, so every reader (a shortcut, say) sees the
    quantized values, as in the reference implementations.

    Args:
        chain: the float chain; not changed.
        policy: one row for each layer, as ``fit_policy`` returns them, and for products, which else stay in float.
        weight_rule: chooses scale and zero point of each weight.
        placement: of the target that the rows were made for.

    Warns:
        ConstantChannelWarning: an output channel's weights are all equal.
        OutlierWarning: one of an output channel's weights is far from all others.
    """
    rows = {row.layer: row for row in policy}
    module = copy.deepcopy(chain.module)
    layers = weighted_nodes(module)
    activations, renamed = _insert_activations(module, rows, placement)
    weights = _insert_weights(module, layers, rows, weight_rule)
    sources = {layer: _parameter(node) for layer, node in weighted_nodes(chain.module)}
    module.graph.eliminate_dead_code()
    # Built anew from the graph, the module holds what the graph reads and nothing else: no float weight stays behind.
    module = fx.GraphModule(module, module.graph, class_name=type(chain.module).__name__).eval()
    images = (chain.input_name, *[None] * len(chain.units))
    units = tuple(_rename(unit, renamed, image) for unit, image in zip(chain.units, images, strict=False))
    feature = renamed.get(chain.feature_name, chain.feature_name)
    quantized = dataclasses.replace(chain, module=module, units=units, feature_name=feature)
    return QuantizedChain(quantized, weights, activations, sources, tuple(policy))


def _insert_weights(
    module: fx.GraphModule, layers: Layers, rows: Mapping[str, LayerPolicy], rule: RangeRule
) -> dict[str, str]:
    names: dict[str, str] = {}
    for index, (layer, node) in enumerate(layers):
        spec = rows[layer].weight
        if spec is None:
            continue
        if layer not in names:
            names[layer] = f"weight_{index}_{_identifier(layer)}"
            weight = tensor_at(module, _parameter(node))
            module.add_submodule(names[layer], _nearest_weight(layer, weight, spec, rule))
        with module.graph.inserting_before(node):
            quantized = module.graph.call_module(names[layer])
        quantized.meta = dict(node.args[1].meta) if isinstance(node.args[1], fx.Node) else {}
        node.args = (node.args[0], quantized, *node.args[2:])
    return names


def _nearest_weight(layer: str, weight: Tensor, spec: QuantSpec, rule: RangeRule) -> IntegerWeight:
    if weight.is_meta:  # another worker has it
        return IntegerWeight(weight, QParams(weight.new_ones(()), weight.new_zeros(())), spec)
    constant = int(is_constant(weight, spec).sum())
    if constant:
        warnings.warn(
            f"{layer}.weight: {constant} output channel(s) hold one value only; they are represented exactly "
            "as far as the width allows",
            ConstantChannelWarning,
            stacklevel=2,
        )
    stretched = int(has_outliers(weight, spec).sum())
    if stretched:
        warnings.warn(
            f"{layer}.weight: in {stretched} output channel(s) more than half of the values are below 1/10,000 of the "
            "largest one, and a grid for all of them rounds those to zero; look for outliers in the weight and in the "
            "batch norm behind it, or leave the layer in float",
            OutlierWarning,
            stacklevel=2,
        )
    parameters = rule(weight, spec)
    return IntegerWeight(nearest(weight, parameters, spec), parameters, spec)


def _insert_activations(
    module: fx.GraphModule, rows: Mapping[str, LayerPolicy], placement: Placement | None
) -> tuple[dict[str, str], dict[str, str]]:
    readers: dict[fx.Node, tuple[Read, QuantSpec]] = {}
    for read in find_reads(module, placement):
        spec = read.spec(rows.get(read.name))
        if spec is not None:
            readers.setdefault(read.tensor, (read, spec))
    names: dict[str, str] = {}
    renamed: dict[str, str] = {}
    for index, (tensor, (read, spec)) in enumerate(readers.items()):
        name = f"activation_{index}_{_identifier(read.key)}"
        module.add_submodule(name, Unquantized(spec))
        with module.graph.inserting_after(tensor):
            quantized = module.graph.call_module(name, (tensor,))
        for user in [user for user in tensor.users if user is not quantized]:
            user.replace_input_with(tensor, quantized)
        quantized.meta = dict(tensor.meta)
        count = sum(key.partition("#")[0] == read.key for key in names)
        names[read.key + (f"#{count + 1}" if count else "")] = name
        renamed[tensor.name] = quantized.name
    return names, renamed


def _parameter(node: fx.Node) -> str:
    weight = node.args[1]
    assert isinstance(weight, fx.Node)
    return str(weight.target)


def _rename(unit: Unit, renamed: Mapping[str, str], image: str | None) -> Unit:
    def new(names: Sequence[str]) -> tuple[str, ...]:
        return tuple(renamed.get(name, name) for name in names)

    # Before the first unit there is none that the image's quantizer could belong to.
    made = unit.nodes if image is None else (image, *unit.nodes)
    added = tuple(renamed[name] for name in made if name in renamed)
    return dataclasses.replace(
        unit,
        nodes=(*unit.nodes, *added),
        inputs=new(unit.inputs) if image is None else unit.inputs,
        outputs=new(unit.outputs),
        target=renamed.get(unit.target, unit.target),
    )


def _identifier(layer: str) -> str:
    return "".join(character if character.isalnum() else "_" for character in layer)


def tensor_at(module: fx.GraphModule, target: str) -> Tensor:
    """A parameter or buffer by its path, without gradient."""
    owner, _, name = target.rpartition(".")
    tensor = getattr(module.get_submodule(owner), name)
    assert isinstance(tensor, torch.Tensor)
    return tensor.detach()
