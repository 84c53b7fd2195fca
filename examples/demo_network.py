"""The demonstration network: a ResNet for CIFAR-10, 3 x 32 x 32 -> 10 logits.

He et al., "Deep Residual Learning for Image Recognition" (CVPR 2016), section 4.2, with the parameter-free
shortcut (option A): every second pixel, and the new channels padded with zeros on both sides.  The parameter names
are those of the public CIFAR ResNets, so their weights load here too.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

MEAN = (0.485, 0.456, 0.406)
STANDARD_DEVIATION = (0.229, 0.224, 0.225)


class BasicBlock(nn.Module):
    """relu(shortcut(x) + bn2(conv2(relu(bn1(conv1(x))))))."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.padding = (channels - in_channels) // 2

    def forward(self, x: Tensor) -> Tensor:  # (N, C, H, W) -> (N, channels, H / stride, W / stride)
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        if self.padding:
            x = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.padding, self.padding))
        return F.relu(y + x)


class CifarResNet(nn.Module):
    """Stem of 16 channels, three stages of 16, 32 and 64 channels, average pool, linear classifier."""

    def __init__(self, blocks_per_stage: int, classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = self._stage(16, 16, blocks_per_stage, 1)
        self.layer2 = self._stage(16, 32, blocks_per_stage, 2)
        self.layer3 = self._stage(32, 64, blocks_per_stage, 2)
        self.linear = nn.Linear(64, classes)

    @staticmethod
    def _stage(in_channels: int, channels: int, blocks: int, stride: int) -> nn.Sequential:
        first = BasicBlock(in_channels, channels, stride)
        return nn.Sequential(first, *(BasicBlock(channels, channels, 1) for _ in range(blocks - 1)))

    def forward(self, x: Tensor) -> Tensor:  # (N, 3, 32, 32) -> (N, classes)
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        x = F.adaptive_avg_pool2d(x, 1)
        return self.linear(torch.flatten(x, 1))


def resnet20() -> CifarResNet:
    """ResNet-20: three blocks a stage, 0.27 million parameters, 41 million multiply-adds an image."""
    return CifarResNet(3)


def resnet56() -> CifarResNet:
    """ResNet-56: nine blocks a stage, 0.85 million parameters, 126 million multiply-adds an image."""
    return CifarResNet(9)
