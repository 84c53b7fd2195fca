"""torchvision's detectors: their parts are captured, quantized and put back; the rest stays in float around them."""

from __future__ import annotations

import pytest
import torch
from tests.capture.networks import randomise_norms
from torch import nn

import clcalib
from clcalib.capture.chain import capture
from clcalib.capture.outputs import whole
from clcalib.capture.submodule import Part
from clcalib.evaluate.detection import detection_agreement

torchvision = pytest.importorskip("torchvision")
pytestmark = pytest.mark.slow

PARTS = {
    "ssdlite320_mobilenet_v3_large": ("backbone", "head"),
    "fasterrcnn_mobilenet_v3_large_320_fpn": ("backbone", "rpn.head", "roi_heads.box_head", "roi_heads.box_predictor"),
}


def detector(name: str) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return randomise_norms(torchvision.models.get_model(name, weights=None, weights_backbone=None))


@pytest.mark.parametrize("name", PARTS)
def test_every_part_is_captured_as_it_is(name: str) -> None:
    model = detector(name)
    images = torch.rand(3, 3, 64, 64)
    with torch.no_grad():
        expected = model(list(images))
    for path in PARTS[name]:
        part, rows = Part.of(model, path, images)
        result = part.put_back(whole(capture(part.module, rows[:2], fold=False).module))
        with torch.no_grad():
            own = result(list(images))
        for ours, theirs in zip(own, expected, strict=True):
            assert all(torch.equal(ours[key], theirs[key]) for key in theirs), path


def let_through(model: nn.Module, images: torch.Tensor) -> None:
    """Give the batch norms the statistics of these images, without which random layers let next to nothing through."""
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the mean over all batches
        norm.train()
    with torch.no_grad():
        model(images)
    for norm in norms:
        norm.eval()


def test_a_detector_with_a_quantized_backbone_finds_nearly_the_same_boxes() -> None:
    model = detector("ssdlite320_mobilenet_v3_large")
    images = torch.rand(4, 3, 64, 64)
    let_through(model.backbone, model.transform(list(images))[0].tensors)
    calibration = clcalib.CalibrationSet.from_tensor(images)
    settings = {
        "recipe": clcalib.recipes.nearest(),
        "submodule": "backbone",
        "weight_range": "minmax",
        "activation_range": "minmax",
    }
    with torch.no_grad():
        floats = model(list(images))
        threshold = float(torch.cat([image["scores"] for image in floats]).quantile(0.9))
        shares = []
        for bits in (8, 3):
            result = clcalib.quantize(model, calibration, bits=clcalib.Bits(bits, bits), **settings)
            shares.append(detection_agreement(floats, result.model(list(images)), score_threshold=threshold).matched)
    assert shares[0] > 0.5
    assert shares[0] > shares[1]
