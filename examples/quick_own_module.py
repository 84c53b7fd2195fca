"""Your own module: what is captured of it, which part cannot be, and how widths are given to its layers.

    python examples/quick_own_module.py

The module has gates, and an end that no export takes, as detectors have; its weights are random.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import clcalib
from clcalib.errors import CaptureError


class Gated(nn.Module):
    """y = x + sigmoid(gate(mean(x))) * relu(conv(x))."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.gate = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:  # (N, C, H, W) -> (N, C, H, W)
        gate = torch.sigmoid(self.gate(x.mean((2, 3))))
        return x + gate[:, :, None, None] * F.relu(self.conv(x))


class Mine(nn.Module):
    """A backbone, and an end that depends on the values: where no score is above 0 at all, there is no answer."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1), nn.ReLU(), Gated(16), Gated(16))
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:  # (N, 3, H, W) -> (N, 5), or (0, 5)
        scores = self.head(self.backbone(x).mean((2, 3)))
        if scores.max() <= 0:
            return scores[:0]
        return scores


def main() -> None:
    torch.manual_seed(0)
    model, images = Mine().eval(), torch.randn(48, 3, 24, 24)
    calibration = clcalib.CalibrationSet.from_tensor(images)
    arguments = {"recipe": clcalib.recipes.qdrop(steps=20), "bits": clcalib.Bits(weights=3, activations=4)}
    try:
        clcalib.quantize(model, calibration, **arguments)
    except CaptureError as error:
        print(f"the whole model is refused, and the line is named:\n  {str(error).splitlines()[0]}")
    else:
        raise SystemExit("a branch on values was captured")

    print("\nso a part of it is quantized, with 8 bits for the gates:")
    result = clcalib.quantize(model, calibration, submodule="backbone", overrides={"*.gate": "W8A8"}, **arguments)
    for row in result.policy:
        weight, read = (side.bits if side else "float" for side in (row.weight, row.input))
        print(f"  {row.layer:8} weight {weight!s:5} input {read!s:5} {row.reason}")
    same = model(images).argmax(1) == result.model(images).argmax(1)
    print(f"the whole model runs around it; same class as in float: {int(same.sum())} of {len(images)} images")


if __name__ == "__main__":
    main()
