# ruff: noqa: E402 - what torchvision needs is declared before anything imports it
"""AIMET (Qualcomm): its QuantSim with AdaRound or sequential MSE, quantizers at the inputs of layers."""

from __future__ import annotations

import tempfile

from peers.adapter import EDGE_BITS, FIRST, LAST, Job, Predict, Tensor, batches, declare_vision_operators, main, nn

declare_vision_operators()

import aimet_torch.onnx as aimet_onnx
import torch
from aimet_torch.adaround.adaround_weight import Adaround, AdaroundParameters
from aimet_torch.batch_norm_fold import fold_all_batch_norms
from aimet_torch.common.defs import QuantScheme
from aimet_torch.common.quantsim_config.utils import get_path_for_per_channel_config
from aimet_torch.model_preparer import prepare_model
from aimet_torch.quantsim import QuantizationSimModel
from aimet_torch.seq_mse import apply_seq_mse
from aimet_torch.v2.quantization.affine import QuantizeDequantize
from aimet_torch.v2.quantization.encoding_analyzer import SqnrEncodingAnalyzer
from torch.utils.data import DataLoader

ITERATIONS = 1000
SCHEME = QuantScheme.post_training_tf_enhanced


def place(sim: QuantizationSimModel, job: Job) -> None:
    """Leave weight quantizers where they are, and quantize no other tensor than the inputs of layers."""
    for name, layer in sim.model.named_modules():
        for quantizers in (getattr(layer, kind, None) for kind in ("input_quantizers", "output_quantizers")):
            for index in range(len(quantizers or ())):
                quantizers[index] = None
        if not isinstance(layer, (nn.Conv2d, nn.Linear)):
            continue
        layer.param_quantizers["weight"].bitwidth = EDGE_BITS if name in (FIRST, LAST) else job.weights
        if "bias" in layer.param_quantizers:
            layer.param_quantizers["bias"] = None
        if name != FIRST:
            bits = EDGE_BITS if name == LAST else job.activations
            analyzer = SqnrEncodingAnalyzer(shape=())
            layer.input_quantizers[0] = QuantizeDequantize((), bits, False, encoding_analyzer=analyzer)


def quantize(model: nn.Module, calibration: Tensor, job: Job) -> Predict:
    dummy, loader, config = calibration[:1], DataLoader(calibration, batch_size=32), get_path_for_per_channel_config()
    model = prepare_model(model)
    fold_all_batch_norms(model, dummy.shape)
    with tempfile.TemporaryDirectory() as folder:
        if job.method == "adaround":
            model = Adaround.apply_adaround(
                model,
                dummy,
                AdaroundParameters(loader, len(loader), ITERATIONS),
                folder,
                "rounded",
                default_param_bw=job.weights,
                param_bw_override_list=[(model.get_submodule(name), EDGE_BITS) for name in (FIRST, LAST)],
                default_quant_scheme=SCHEME,
                default_config_file=config,
            )
        sim = QuantizationSimModel(
            model, dummy, SCHEME, default_output_bw=8, default_param_bw=job.weights, config_file=config
        )
        place(sim, job)
        if job.method == "adaround":
            sim.set_and_freeze_param_encodings(f"{folder}/rounded.encodings")
    if job.method == "seqmse":
        apply_seq_mse(sim=sim, data_loader=loader)

    def forward(quantized: nn.Module) -> None:
        with torch.no_grad():
            for batch in batches(calibration):
                quantized(batch)

    sim.compute_encodings(forward)
    if job.keep:
        names = {"input_names": ["image"], "output_names": ["logits"], "dynamic_axes": {"image": {0: "batch"}}}
        settings = {"opset_version": 21, "dynamo": False, "prequantize_constants": True}  # weights as integers
        aimet_onnx.export(sim.model, calibration[:2], job.keep, **names, **settings)
    return sim.model.eval()


if __name__ == "__main__":
    main(quantize, ("aimet-torch",))
