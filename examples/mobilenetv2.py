"""A MobileNetV2 for CIFAR-10, 3 x 32 x 32 -> 10 logits: what depthwise convolutions do to quantization is seen on it.

Sandler et al., "MobileNetV2: Inverted Residuals and Linear Bottlenecks" (CVPR 2018), table 2 with narrower stages, and
strides for images of 32 x 32.  ``quantize`` sees each inverted residual as one block.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

# Expansion, channels, blocks and first stride of each stage.
STAGES = ((1, 16, 1, 2), (4, 24, 2, 1), (4, 40, 3, 2), (4, 80, 3, 2), (4, 128, 1, 1))
STEM, HEAD = 16, 384


def convolution(in_channels: int, channels: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    """Convolution, batch norm and ReLU6."""
    weights = nn.Conv2d(in_channels, channels, kernel, stride, kernel // 2, groups=groups, bias=False)
    return [weights, nn.BatchNorm2d(channels), nn.ReLU6()]


class InvertedResidual(nn.Module):
    """Expand, filter each channel by itself, project linearly; add the input where the shapes agree."""

    def __init__(self, in_channels: int, channels: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = in_channels * expansion
        expand = convolution(in_channels, hidden) if expansion > 1 else []
        filtering = convolution(hidden, hidden, 3, stride, groups=hidden)
        project = convolution(hidden, channels)[:2]
        self.layers = nn.Sequential(*expand, *filtering, *project)
        self.is_residual = stride == 1 and in_channels == channels

    def forward(self, x: Tensor) -> Tensor:  # (N, C, H, W) -> (N, channels, H / stride, W / stride)
        y = self.layers(x)
        return x + y if self.is_residual else y


class CifarMobileNetV2(nn.Module):
    """Stem, inverted residuals, a 1 x 1 convolution, average pool, linear classifier."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.stem = nn.Sequential(*convolution(3, STEM, 3))
        blocks, width = [], STEM
        for expansion, channels, count, stride in STAGES:
            for number in range(count):
                blocks.append(InvertedResidual(width, channels, stride if number == 0 else 1, expansion))
                width = channels
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Sequential(*convolution(width, HEAD))
        self.linear = nn.Linear(HEAD, classes)

    def forward(self, x: Tensor) -> Tensor:  # (N, 3, 32, 32) -> (N, classes)
        x = self.head(self.blocks(self.stem(x)))
        return self.linear(torch.flatten(nn.functional.adaptive_avg_pool2d(x, 1), 1))


def mobilenetv2() -> CifarMobileNetV2:
    """0.31 million parameters, 9.7 million multiply-adds an image."""
    return CifarMobileNetV2()
