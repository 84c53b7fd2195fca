"""What stands in the places of a unit's quantizers and biases while it is optimised, and what comes of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, fx, nn

from clcalib.calibrate.recipe import Phase
from clcalib.calibrate.streams import StepStream
from clcalib.calibrate.trainable import (
    FixedWeight,
    SoftWeight,
    StraightThroughWeight,
    TrainableActivation,
    TrainableBias,
    TrainableWeight,
)
from clcalib.capture.chain import Chain
from clcalib.quant.biases import bias_readers
from clcalib.quant.insert import tensor_at
from clcalib.quant.modules import ActivationQuantizer, IntegerWeight

_PREFIX = "trained_bias_"
_WEIGHTS = {"soft": SoftWeight, "straight_through": StraightThroughWeight, "fixed": FixedWeight}


def weight_for(phase: Phase, weight: Tensor, quantizer: IntegerWeight) -> nn.Module:
    """What takes a quantized weight's place during a phase; ``weight`` is the float one."""
    if phase.rounding_rate is None and phase.weight_scale_rate is None:
        return quantizer
    start = torch.lerp(weight, quantizer(), phase.start_share)
    kind: Callable[..., TrainableWeight] = _WEIGHTS[phase.rounding]
    return kind(start, quantizer, is_scale_trained=phase.weight_scale_rate is not None)


def activation_for(phase: Phase, quantizer: ActivationQuantizer, random: StepStream) -> nn.Module:
    """What takes a quantizer's place during a phase."""
    if phase.activations == "float":
        return nn.Identity()
    return TrainableActivation(
        quantizer,
        random,
        keep_quantized_probability=phase.keep_quantized_probability,
        is_trained=phase.activation_rate is not None,
        has_scale_gradient_factor=phase.has_scale_gradient_factor,
    )


def with_float_activations(body: fx.GraphModule) -> fx.GraphModule:
    """A unit whose activations are not quantized; changed in place."""
    for name, module in list(body.named_modules()):
        if isinstance(module, ActivationQuantizer):
            body.set_submodule(name, nn.Identity())
    return body


def train_biases(chain: Chain, index: int, body: fx.GraphModule, weights: Mapping[str, Tensor]) -> None:
    """Put a ``TrainableBias`` in the place of each bias of some layers of a unit, in place.

    A bias that an earlier unit reads too was decided there, as its weights were, and stays.

    Args:
        chain: the quantized network.
        index: of the unit in it.
        body: a copy of the unit, with its weights still integers.
        weights: by the name of a layer's ``IntegerWeight`` its float weight; other layers keep their biases.
    """
    earlier = {name for unit in chain.units[:index] for name in unit.nodes}
    readers = bias_readers(chain.module)
    known = {name for name, layers in readers.items() if not any(layer.name in earlier for layer in layers)}
    for number, (target, layers) in enumerate(bias_readers(body).items()):
        own = [str(layer.args[1].target) for layer in layers if isinstance(layer.args[1], fx.Node)]
        if target not in known or not all(name in weights for name in own):
            continue
        trained = TrainableBias(tensor_at(body, target), weights[own[0]], target)
        body.add_submodule(f"{_PREFIX}{number}", trained)
        for layer in layers:
            with body.graph.inserting_before(layer):
                layer.update_arg(2, body.graph.call_module(f"{_PREFIX}{number}"))
    body.recompile()


def found_in(body: fx.GraphModule) -> dict[str, nn.Module]:
    """What has come of all that was trained in a unit, for ``QuantizedChain.replace``."""
    found = dict[str, nn.Module]()
    for name, module in body.named_modules():
        if isinstance(module, TrainableWeight):
            found[name] = module.hardened()
        elif isinstance(module, TrainableActivation) and module.scale.requires_grad:
            found[name] = module.finished()
        elif isinstance(module, TrainableBias):
            found[module.target] = module.finished()
    return found
