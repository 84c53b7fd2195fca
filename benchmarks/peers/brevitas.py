"""Brevitas (AMD): its layerwise back end, quantizers with ranges by squared error, then GPTQ or GPFQ."""

from __future__ import annotations

import torch
from brevitas import nn as quant_nn
from brevitas.core.scaling.standalone import ParameterFromStatsFromParameterScaling
from brevitas.core.zero_point import ParameterFromStatsFromParameterZeroPoint
from brevitas.graph.calibrate import bias_correction_mode, calibration_mode
from brevitas.graph.gpfq import gpfq_mode
from brevitas.graph.gptq import gptq_mode
from brevitas.graph.quantize import layerwise_quantize, preprocess_for_quantize
from brevitas.quant.shifted_scaled_int import ShiftedUint8ActPerTensorFloatMSE, ShiftedUint8WeightPerChannelFloatMSE

from peers.adapter import BATCH, EDGE_BITS, FIRST, LAST, Job, Predict, Tensor, batches, main, nn

MODES = {
    "gptq": lambda model: gptq_mode(model, act_order=True, use_quant_activations=True),
    "gpfq": lambda model: gpfq_mode(model, act_order=True),
}


def layer_map(weights: int, activations: int | None) -> dict[type[nn.Module], tuple[type[nn.Module], dict]]:
    """Which module takes the place of which; the bias stays float, as ours does."""
    weight = ShiftedUint8WeightPerChannelFloatMSE.let(
        bit_width=weights,
        scaling_impl=ParameterFromStatsFromParameterScaling,
        zero_point_impl=ParameterFromStatsFromParameterZeroPoint,
    )
    settings = {
        "weight_quant": weight,
        "input_quant": activations and ShiftedUint8ActPerTensorFloatMSE.let(bit_width=activations),
        "return_quant_tensor": False,
    }
    return {nn.Conv2d: (quant_nn.QuantConv2d, settings), nn.Linear: (quant_nn.QuantLinear, settings)}


@torch.no_grad()
def quantize(model: nn.Module, calibration: Tensor, job: Job) -> Predict:
    model = preprocess_for_quantize(model)
    model = layerwise_quantize(model, layer_map(job.weights, job.activations), name_blacklist=[FIRST, LAST])
    model = layerwise_quantize(model, layer_map(EDGE_BITS, None), name_blacklist=[LAST])
    model = layerwise_quantize(model, layer_map(EDGE_BITS, EDGE_BITS)).eval()
    model(calibration[:BATCH])  # sets the weights' scales
    with calibration_mode(model):
        for batch in batches(calibration):
            model(batch)
    if job.method in MODES:
        with MODES[job.method](model) as mode:
            for _ in range(mode.num_layers):
                for batch in batches(calibration):
                    mode.model(batch)
                mode.update()
    with bias_correction_mode(model):
        for batch in batches(calibration):
            model(batch)
    return model


if __name__ == "__main__":
    main(quantize, ("brevitas",))
