"""NVIDIA Model Optimizer: simulated quantization; its INT8 recipe, and the same recipe at other widths."""

from __future__ import annotations

import modelopt.torch.quantization as mtq

from peers.adapter import EDGE_BITS, FIRST, LAST, Job, Predict, Tensor, batches, main, nn


def entry(name: str, bits: int, **more: object) -> dict:
    return {"quantizer_name": name, "cfg": {"num_bits": bits, "axis": None, **more}}


def quantize(model: nn.Module, calibration: Tensor, job: Job) -> Predict:
    """Symmetric per channel; what convolutions read is not negative, so its codes are unsigned."""
    config = {
        "quant_cfg": [
            {"quantizer_name": "*", "enable": False},
            entry("*weight_quantizer", job.weights, axis=0),
            entry("*input_quantizer", job.activations, unsigned=True),
            entry(f"{FIRST}.weight_quantizer", EDGE_BITS, axis=0),
            entry(f"{LAST}.weight_quantizer", EDGE_BITS, axis=0),
            entry(f"{LAST}.input_quantizer", EDGE_BITS, unsigned=True),
            *({"quantizer_name": f"{kind}.input_quantizer", "enable": False} for kind in (FIRST, "*bn?")),
            {"quantizer_name": "*bn?.weight_quantizer", "enable": False},
        ],
        "algorithm": job.method,
    }

    def forward_loop(quantized: nn.Module) -> None:
        for batch in batches(calibration):
            quantized(batch)

    return mtq.quantize(model, config, forward_loop).eval()


if __name__ == "__main__":
    main(quantize, ("nvidia-modelopt",))
