"""The embedded network and images that the examples share."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import load_file
from torch import nn

from clcalib.data.transform import Transform
from demo_network import MEAN, STANDARD_DEVIATION, resnet20

FOLDER = Path(__file__).parent / "demo"
CALIBRATION, TEST = FOLDER / "calibration.json", FOLDER / "test.json"
TRANSFORM = Transform(mean=MEAN, standard_deviation=STANDARD_DEVIATION)


def trained_resnet20() -> nn.Module:
    """The embedded ResNet-20 with its trained weights, in eval mode."""
    model = resnet20().eval()
    model.load_state_dict(load_file(FOLDER / "resnet20.safetensors"))
    return model
