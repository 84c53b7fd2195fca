"""The quantized weights under the names of the float model, for whatever takes a plain model.

A model with the returned values computes in float what the quantized one computes with float activations: each
quantized weight is ``s (q - z)``, and a batch norm that was folded into a layer is the identity,

    weight = 1, running_mean = 0, running_var = 1 - epsilon,

since the layer's weight has its gain already.  The folded bias is the layer's own, if it has one; else the bias of the
batch norm, or, where that has no affine map, its negative running mean.  Everything else is as the model has it: other
norms, weights in float, counters.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NoReturn

import torch
from torch import Tensor, fx, nn

from clcalib.capture.fold import FoldedNorm, folded_norm
from clcalib.capture.graph import is_convolution, is_linear
from clcalib.errors import ArgumentError, first_of, misfits
from clcalib.quant.biases import is_further_bias
from clcalib.quant.insert import QuantizedChain, tensor_at

_CONSTANT = "_constant_"  # begins the names of what capture computed from parameters; it changes no parameter


@torch.no_grad()
def float_state_dict(quantized: QuantizedChain, model: nn.Module, prefix: str = "") -> dict[str, Tensor]:
    """A state for ``model.load_state_dict`` in which the quantized weights are.

    Args:
        quantized: a finished chain.
        model: the float model that it was made from; not changed.
        prefix: of the part of the model that is quantized, such as ``"backbone."``.

    Returns:
        All names of ``model.state_dict()``; float32 copies, on the device of the model's.  Of a bias that a target's
        kernels round anew for each call of its layer, it is the value of the first call.

    Raises:
        ArgumentError: the model is another one, or a value has no parameter of its own: a weight that is computed from
            others (weight normalisation, say), or one that layers share and that became two.
    """
    state = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    values = {prefix + name: value for name, value in _values(quantized).items()}
    lacking = [name for name in values if name not in state]
    if lacking:
        remedy = "give the model that was quantized; a weight that is computed from others cannot be mapped back"
        raise ArgumentError("model", "a parameter for each weight", f"none called {first_of(lacking)}", remedy)
    shapes = {name: value.shape for name, value in values.items()}
    if problems := misfits({name: state[name].shape for name in values}, shapes):
        raise ArgumentError("model", "the model that was quantized", "; ".join(problems))
    _check_ties(model, values)
    for name, value in values.items():
        state[name].copy_(value)
    return state


def _values(quantized: QuantizedChain) -> dict[str, Tensor]:
    """What the quantized network has, by the names of the model's parameters and buffers."""
    module, values = quantized.chain.module, dict[str, Tensor]()
    owned = {*quantized.weights.values(), *quantized.activations.values()}
    norms = [norm for node in module.graph.nodes if _is_layer(node) and (norm := folded_norm(node)) is not None]
    moved = {norm.folded_bias for norm in norms if norm.layer_bias is None}  # into the batch norm that they came from
    for name, tensor in module.state_dict().items():
        is_own = not name.startswith(_CONSTANT) and not is_further_bias(name)  # it has a parameter of its own
        if is_own and name.rpartition(".")[0] not in owned and name not in moved:
            _put(values, name, tensor)
    for layer in quantized.weights:
        _put(values, quantized.sources[layer], quantized.weight(layer)())
    for norm in norms:
        for name, tensor in _identity(norm, tensor_at(module, norm.folded_bias)):
            _put(values, name, tensor)
    return values


def _identity(norm: FoldedNorm, bias: Tensor) -> Iterator[tuple[str, Tensor]]:
    """The numbers of a batch norm that only adds the bias, or nothing where the layer has a bias of its own."""
    shift = bias if norm.layer_bias is None else torch.zeros_like(bias)
    if norm.weight is not None:
        yield norm.weight, torch.ones_like(bias)
    if norm.bias is not None:
        yield norm.bias, shift
    yield norm.mean, torch.zeros_like(bias) if norm.bias is not None else -shift
    yield norm.variance, torch.ones_like(bias) - norm.epsilon


def _is_layer(node: fx.Node) -> bool:
    return is_convolution(node) or is_linear(node)


def _put(values: dict[str, Tensor], name: str, tensor: Tensor) -> None:
    """Add a value; one name cannot have two.

    Raises:
        ArgumentError: it has another one already.
    """
    if name in values and not torch.equal(values[name], tensor):
        _refuse_two(name)
    values[name] = tensor.detach()


def _refuse_two(names: str) -> NoReturn:
    expected, remedy = "a value of its own for each use of a parameter", "leave its layers in float"
    raise ArgumentError("model", expected, f"several for {names}, which the model uses more than once", remedy)


def _check_ties(model: nn.Module, values: dict[str, Tensor]) -> None:
    """Raise where two names of one parameter would get two values."""
    names: dict[int, list[str]] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        names.setdefault(id(tensor), []).append(name)
    for tied in names.values():
        own = [values[name] for name in tied if name in values]
        if len(tied) > 1 and any(not torch.equal(own[0], other) for other in own[1:]):
            _refuse_two(", ".join(tied))
        for name in tied if own else ():
            values[name] = own[0]
