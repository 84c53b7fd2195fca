"""What stands in the places of a unit's activation quantizers while it is optimised."""

from __future__ import annotations

from torch import fx, nn

from clcalib.calibrate.recipe import Phase
from clcalib.calibrate.streams import StepStream
from clcalib.calibrate.trainable import TrainableActivation
from clcalib.quant.modules import ActivationQuantizer


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
