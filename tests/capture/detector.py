"""A detector in small: several maps out of the backbone, a head that takes a list of them, images in a list."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Backbone(nn.Module):
    """A residual block, two levels, and lateral layers; returns the maps by name."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, 2, 1)
        self.block = nn.Conv2d(8, 8, 3, 1, 1)
        self.down = nn.Conv2d(8, 8, 3, 2, 1)
        self.lateral = nn.ModuleList([nn.Conv2d(8, 4, 1), nn.Conv2d(8, 4, 1)])

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = F.relu(self.stem(x))
        fine = F.relu(self.block(x)) + x
        coarse = self.lateral[1](F.relu(self.down(fine)))
        return {"fine": self.lateral[0](fine) + F.interpolate(coarse, scale_factor=2.0), "coarse": coarse}


class Head(nn.Module):
    """Classes and boxes of every place, from a list of maps."""

    def __init__(self) -> None:
        super().__init__()
        self.classes, self.boxes = nn.Conv2d(4, 6, 1), nn.Conv2d(4, 4, 1)

    def forward(self, maps: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        return torch.cat([self.classes(m).flatten(2) for m in maps], 2), [self.boxes(m) for m in maps]


class Detector(nn.Module):
    """Takes a list of images (a tensor does as well) and returns a table for each; its end depends on the values."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone, self.head = Backbone(), Head()
        self.refine = nn.Linear(6, 3)
        self.unused = nn.Linear(2, 2)

    def forward(self, images: list[Tensor]) -> list[dict[str, Tensor]]:
        assert isinstance(images, list), "a list of images"
        maps = self.backbone(torch.stack(images))
        classes, _ = self.head(list(maps.values()))
        results = []
        for scores in classes:
            kept = scores.T[scores.amax(0).topk(4).indices]
            results.append({"scores": kept, "refined": self.refine(kept)})
        return results


class Boxed(Detector):
    """The same with tables as torchvision's detectors return them: the four best places of every image."""

    def forward(self, images: list[Tensor]) -> list[dict[str, Tensor]]:
        assert isinstance(images, list), "a list of images"
        classes, boxes = self.head(list(self.backbone(torch.stack(images)).values()))
        places = torch.cat([level.flatten(2) for level in boxes], 2)  # (N, 4, places)
        results = []
        for scores, box in zip(classes, places, strict=True):
            best, labels = scores.max(0)
            kept = best.topk(4).indices
            corner, size = box[:2, kept].T, 4 + box[2:, kept].T.abs()
            tables = {"boxes": torch.cat((corner, corner + size), 1), "labels": labels[kept]}
            results.append(tables | {"scores": best[kept].sigmoid()})
        return results


def detector(seed: int = 0) -> Detector:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Detector().eval()
