"""Chain + policy -> a quantized copy: weights as integers, quantizers behind the tensors that layers read."""

from __future__ import annotations

import copy
import dataclasses
import warnings
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, fx, nn

from clcalib.capture.chain import Chain
from clcalib.capture.graph import weighted_nodes
from clcalib.capture.units import Unit
from clcalib.errors import ConstantChannelWarning
from clcalib.quant.modules import ActivationQuantizer, IntegerWeight
from clcalib.quant.policy import LayerPolicy
from clcalib.quant.ranges import RangeRule, is_constant
from clcalib.quant.rounding import nearest
from clcalib.quant.spec import QuantSpec

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
        activations: layer -> name of the quantizer of the tensor that it reads (layers may share one).
        policy: the rows that it was made from.
    """

    chain: Chain
    weights: Mapping[str, str]
    activations: Mapping[str, str]
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
        """Put a finished quantizer in its place."""
        self.chain.module.set_submodule(name, module)

    def copy(self) -> QuantizedChain:
        """An independent copy."""
        chain = dataclasses.replace(self.chain, module=copy.deepcopy(self.chain.module))
        return dataclasses.replace(self, chain=chain)


def insert_quantizers(chain: Chain, policy: Sequence[LayerPolicy], weight_rule: RangeRule) -> QuantizedChain:
    """Return a quantized copy of the chain; weights are rounded to nearest, activations wait for their range.

    A tensor that a layer reads is quantized right where it is made, so every reader (a shortcut, say) sees the
    quantized values, as in the reference implementations.

    Args:
        chain: the float chain; not changed.
        policy: one row for each layer.
        weight_rule: chooses scale and zero point of each weight.

    Warns:
        ConstantChannelWarning: an output channel's weights are all equal.
    """
    rows = {row.layer: row for row in policy}
    module = copy.deepcopy(chain.module)
    layers = weighted_nodes(module)
    weights = _insert_weights(module, layers, rows, weight_rule)
    activations, renamed = _insert_activations(module, layers, rows)
    module.graph.eliminate_dead_code()
    module.delete_all_unused_submodules()
    module.recompile()
    units = tuple(_rename(unit, renamed) for unit in chain.units)
    feature = renamed.get(chain.feature_name, chain.feature_name)
    quantized = dataclasses.replace(chain, module=module, units=units, feature_name=feature)
    return QuantizedChain(quantized, weights, activations, tuple(policy))


def _insert_weights(
    module: fx.GraphModule, layers: Layers, rows: Mapping[str, LayerPolicy], rule: RangeRule
) -> dict[str, str]:
    names: dict[str, str] = {}
    for index, (layer, node) in enumerate(layers):
        spec = rows[layer].weight
        if spec is None:
            continue
        parameter = node.args[1]
        assert isinstance(parameter, fx.Node)
        if layer not in names:
            names[layer] = f"weight_{index}_{_identifier(layer)}"
            module.add_submodule(
                names[layer], _nearest_weight(layer, tensor_at(module, str(parameter.target)), spec, rule)
            )
        with module.graph.inserting_before(node):
            quantized = module.graph.call_module(names[layer])
        quantized.meta = dict(parameter.meta)
        node.args = (node.args[0], quantized, *node.args[2:])
    return names


def _nearest_weight(layer: str, weight: Tensor, spec: QuantSpec, rule: RangeRule) -> IntegerWeight:
    constant = int(is_constant(weight, spec).sum())
    if constant:
        warnings.warn(
            f"{layer}.weight: {constant} output channel(s) hold one value only; they are represented exactly "
            "as far as the width allows",
            ConstantChannelWarning,
            stacklevel=2,
        )
    parameters = rule(weight, spec)
    return IntegerWeight(nearest(weight, parameters, spec), parameters, spec)


def _insert_activations(
    module: fx.GraphModule, layers: Layers, rows: Mapping[str, LayerPolicy]
) -> tuple[dict[str, str], dict[str, str]]:
    readers: dict[fx.Node, list[str]] = {}
    for layer, node in layers:
        tensor = node.args[0]
        if isinstance(tensor, fx.Node) and rows[layer].input is not None:
            readers.setdefault(tensor, []).append(layer)
    names: dict[str, str] = {}
    renamed: dict[str, str] = {}
    for index, (tensor, names_of_readers) in enumerate(readers.items()):
        specs = [spec for layer in names_of_readers if (spec := rows[layer].input) is not None]
        spec = max(specs, key=lambda spec: spec.bits)
        name = f"activation_{index}_{_identifier(names_of_readers[0])}"
        module.add_submodule(name, Unquantized(spec))
        with module.graph.inserting_after(tensor):
            quantized = module.graph.call_module(name, (tensor,))
        for user in [user for user in tensor.users if user is not quantized]:
            user.replace_input_with(tensor, quantized)
        quantized.meta = dict(tensor.meta)
        names.update(dict.fromkeys(names_of_readers, name))
        if tensor.op != "placeholder":
            renamed[tensor.name] = quantized.name
    return names, renamed


def _rename(unit: Unit, renamed: Mapping[str, str]) -> Unit:
    def new(names: Sequence[str]) -> tuple[str, ...]:
        return tuple(renamed.get(name, name) for name in names)

    added = tuple(renamed[name] for name in unit.nodes if name in renamed)
    return dataclasses.replace(
        unit,
        nodes=(*unit.nodes, *added),
        inputs=new(unit.inputs),
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
