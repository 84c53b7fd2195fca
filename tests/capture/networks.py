"""Small networks that are awkward to cut, and batch-norm statistics that hide no error."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def randomise_norms(model: nn.Module, seed: int = 0) -> nn.Module:
    """Put the model in eval mode with random affine parameters and running statistics in every batch norm."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            size = (module.num_features,)
            if module.affine:
                module.weight.data = torch.rand(size, generator=generator) + 0.5
                module.bias.data = torch.randn(size, generator=generator) * 0.1
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.copy_(torch.randn(size, generator=generator) * 0.1)
            module.running_var.copy_(torch.rand(size, generator=generator) + 0.5)
    return model.eval()


class SqueezeExcite(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(channels, 4, 1)
        self.expand = nn.Conv2d(4, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        scale = x.mean((2, 3), keepdim=True)
        return x * torch.sigmoid(self.expand(F.silu(self.reduce(scale))))


class InvertedResidual(nn.Module):
    """With a skip when stride is 1, without when it is 2; both are blocks."""

    def __init__(self, channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.expand = nn.Sequential(nn.Conv2d(channels, 16, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU6(inplace=True))
        self.depthwise = nn.Conv2d(16, 16, 3, stride, 1, groups=16, bias=False)
        self.norm = nn.BatchNorm2d(16)
        self.se = SqueezeExcite(16)
        self.project = nn.Conv2d(16, out_channels, 1, bias=False)
        self.project_norm = nn.BatchNorm2d(out_channels)
        self.has_skip = stride == 1 and channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        y = self.se(F.hardswish(self.norm(self.depthwise(self.expand(x))), inplace=True))
        y = self.project_norm(self.project(y))
        return x + y if self.has_skip else y


class PreActivation(nn.Module):
    """The in-place ReLU changes the tensor that the shortcut reads later."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.conv = nn.Conv2d(channels, channels, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x)
        y = self.relu(x)
        x += self.conv(y) * 0.5
        x[:, :1].mul_(2.0)  # writes through a view
        return x


class Awkward(nn.Module):
    """Squeeze-and-excitation, inverted residuals, in-place operators, a batch size written into a reshape."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.SiLU(inplace=True))
        self.blocks = nn.Sequential(
            InvertedResidual(8, 8, 1), InvertedResidual(8, 12, 2), InvertedResidual(12, 12, 1), PreActivation(12)
        )
        self.head = nn.Linear(12 * 64, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(self.stem(x))
        return self.head(x.view(x.shape[0], -1))


class TransformerBlock(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Dropout(0.1), nn.Linear(2 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        split = self.qkv(self.norm1(x)).reshape(batch, tokens, 3, self.heads, width // self.heads)
        query, key, value = split.permute(2, 0, 3, 1, 4).unbind(0)
        y = F.scaled_dot_product_attention(query, key, value)
        x = x + self.proj(y.transpose(1, 2).reshape(batch, tokens, width))
        return x + self.mlp(self.norm2(x))


class Transformer(nn.Module):
    """Class token (expanded to the batch), position table, two blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 8, 4, 4)
        self.token = nn.Parameter(torch.randn(1, 1, 8))
        self.position = nn.Parameter(torch.randn(1, 17, 8))
        self.blocks = nn.ModuleList([TransformerBlock(8, 2), TransformerBlock(8, 2)])
        self.norm = nn.LayerNorm(8)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat((self.token.expand(x.shape[0], -1, -1), x), 1) + self.position
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x)[:, 0])


class UNet(nn.Module):
    """No single tensor carries everything: the skips stay alive; more layers than one block may have."""

    def __init__(self, depth: int = 9) -> None:
        super().__init__()
        self.down = nn.ModuleList([nn.Conv2d(3 if i == 0 else 4, 4, 3, 1, 1) for i in range(depth)])
        self.up = nn.ModuleList([nn.Conv2d(4, 4, 3, 1, 1) for _ in range(depth)])
        self.head = nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        skips = []
        for layer in self.down:
            x = F.relu(layer(x))
            skips.append(x)
        for layer in self.up:
            x = F.relu(layer(x)) + skips.pop()
        return self.head(x)


class ManyShapes(nn.Module):
    """One-dimensional, transposed and fully connected layers, each with a batch norm behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(3, 8, 2, 2, groups=1)
        self.up_norm = nn.BatchNorm2d(8)
        self.grouped = nn.ConvTranspose2d(8, 12, 3, 1, 1, groups=4, bias=False)
        self.grouped_norm = nn.BatchNorm2d(12)
        self.same = nn.Conv2d(12, 6, 3, padding="same")
        self.same_norm = nn.BatchNorm2d(6, affine=False)
        self.line = nn.Conv1d(6, 4, 3, bias=False)
        self.line_norm = nn.BatchNorm1d(4)
        self.hidden = nn.Linear(4, 7, bias=False)
        self.hidden_norm = nn.BatchNorm1d(7)
        self.head = nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.up_norm(self.up(x)))
        x = F.relu(self.grouped_norm(self.grouped(x)))
        x = self.same_norm(self.same(x)).flatten(2)
        x = self.line_norm(self.line(x)).mean(2)
        return self.head(F.relu(self.hidden_norm(self.hidden(x))))
