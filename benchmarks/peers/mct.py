# ruff: noqa: E402 - what torchvision needs is declared before anything imports it
"""Sony's Model Compression Toolkit: post-training quantization, and its gradient-based form (GPTQ)."""

from __future__ import annotations

from peers.adapter import EDGE_BITS, Job, Predict, Tensor, batches, declare_vision_operators, main, nn

declare_vision_operators()

import model_compression_toolkit as mct
from mct_quantizers import QuantizationMethod
from model_compression_toolkit.core import CoreConfig, QuantizationConfig
from model_compression_toolkit.core.common.quantization.quantization_config import CustomOpsetLayers
from model_compression_toolkit.defaultdict import DefaultDict
from model_compression_toolkit.target_platform_capabilities import LayerFilterParams
from model_compression_toolkit.target_platform_capabilities.constants import BIAS_ATTR, KERNEL_ATTR
from model_compression_toolkit.target_platform_capabilities.schema import mct_current_schema as schema

EPOCHS = 5
FIRST_LAYER = "FirstLayer"
Names = schema.OperatorSetNames


def weight_config(bits: int, is_quantized: bool = True) -> schema.AttributeQuantizationConfig:
    return schema.AttributeQuantizationConfig(
        weights_quantization_method=QuantizationMethod.UNIFORM,
        weights_n_bits=bits,
        weights_per_channel_threshold=is_quantized,
        enable_weights_quantization=is_quantized,
    )


def options(activations: int | None, weights: int | None = None) -> schema.QuantizationConfigOptions:
    """Widths of an operator's output and of its weight; None: it stays float."""
    floats = weight_config(EDGE_BITS, is_quantized=False)
    config = schema.OpQuantizationConfig(
        default_weight_attr_config=floats,
        attr_weights_configs_mapping={KERNEL_ATTR: weight_config(weights), BIAS_ATTR: floats} if weights else {},
        activation_quantization_method=QuantizationMethod.UNIFORM,
        activation_n_bits=activations or EDGE_BITS,
        supported_input_activation_n_bits=EDGE_BITS,
        enable_activation_quantization=activations is not None,
        quantization_preserving=False,
        fixed_scale=None,
        fixed_zero_point=None,
        simd_size=1,
        signedness=schema.Signedness.AUTO,
    )
    return schema.QuantizationConfigOptions(quantization_configurations=(config,))


def platform(job: Job) -> schema.TargetPlatformCapabilities:
    """A platform that quantizes the outputs of ReLU, which convolutions read, in place of the outputs of all nodes."""
    layers = {FIRST_LAYER: EDGE_BITS, Names.CONV: job.weights, Names.FULLY_CONNECTED: EDGE_BITS}
    sets = [schema.OperatorsSet(name=name, qc_options=options(None, bits)) for name, bits in layers.items()]
    sets.append(schema.OperatorsSet(name=Names.RELU, qc_options=options(job.activations)))
    floats = (Names.ADD, Names.PAD, Names.GET_ITEM, Names.FLATTEN)
    sets += [schema.OperatorsSet(name=name, qc_options=options(None)) for name in floats]
    return schema.TargetPlatformCapabilities(
        default_qco=options(EDGE_BITS), operator_set=tuple(sets), add_metadata=False, name="comparison"
    )


def quantize(model: nn.Module, calibration: Tensor, job: Job) -> Predict:
    def images() -> object:
        for batch in batches(calibration):
            yield [batch]

    names = {KERNEL_ATTR: DefaultDict(default_value="weight"), BIAS_ATTR: DefaultDict(default_value="bias")}
    first = CustomOpsetLayers([LayerFilterParams(nn.Conv2d, in_channels=3)], names)
    core = CoreConfig(quantization_config=QuantizationConfig(custom_tpc_opset_to_layer={FIRST_LAYER: first}))
    settings = {"core_config": core, "target_platform_capabilities": platform(job)}
    if job.method == "ptq":
        result, _ = mct.ptq.pytorch_post_training_quantization(model, images, **settings)
    else:
        gptq = mct.gptq.get_pytorch_gptq_config(n_epochs=EPOCHS)
        result, _ = mct.gptq.pytorch_gradient_post_training_quantization(model, images, gptq_config=gptq, **settings)
    return result.eval()


if __name__ == "__main__":
    main(quantize, ("model-compression-toolkit", "mct-quantizers"))
