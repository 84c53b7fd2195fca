"""NNCF (Intel/OpenVINO): post-training quantization to 8 bits, where its own rules for hardware place quantizers."""

from __future__ import annotations

import os

import nncf

from peers.adapter import Job, Predict, Tensor, batches, main, nn


def quantize(model: nn.Module, calibration: Tensor, job: Job) -> Predict:
    images = list(batches(calibration))
    return nncf.quantize(
        model,
        nncf.Dataset(images),
        preset=nncf.QuantizationPreset.MIXED,
        subset_size=len(images),  # counted in batches
        fast_bias_correction=True,
    )


if __name__ == "__main__":
    os.environ.setdefault(
        "NNCF_EXTENSION_LOAD_TIMEOUT", "0"
    )  # its C++ is compiled at first use; a busy machine is slow
    main(quantize, ("nncf",))
