"""Networks as torchvision and timm build them compute the same in ONNX Runtime."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from tests.capture.networks import randomise_norms
from tests.export.graphs import run
from torch import nn

from clcalib.capture.chain import capture
from clcalib.export.onnx.emit import emit

torchvision = pytest.importorskip("torchvision")
timm = pytest.importorskip("timm")


def from_torchvision(name: str) -> Callable[[], nn.Module]:
    return lambda: torchvision.models.get_model(name, weights=None)


def from_timm(name: str, **options: object) -> Callable[[], nn.Module]:
    return lambda: timm.create_model(name, pretrained=False, **options)


CASES = {
    "resnet18": (from_torchvision("resnet18"), 64),
    "mobilenet_v3_small": (from_torchvision("mobilenet_v3_small"), 64),
    "shufflenet_v2_x0_5": (from_torchvision("shufflenet_v2_x0_5"), 64),
    "ghostnetv2_100": (from_timm("ghostnetv2_100"), 64),
    "swin_tiny": (from_timm("swin_tiny_patch4_window7_224", img_size=112), 112),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_architectures_compute_the_same(name: str) -> None:
    build, size = CASES[name]
    chain = capture(randomise_norms(build()), torch.randn(2, 3, size, size))
    model = emit(chain).model
    for batch in (1, 3):
        x = torch.randn(batch, 3, size, size)
        with torch.no_grad():
            expected = chain.module(x)
        assert float(expected.std()) > 0
        (own,) = run(model, x)
        torch.testing.assert_close(own, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))
