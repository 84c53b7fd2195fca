"""QDrop on ResNet-20 as the public reference code runs it: plain eager PyTorch, one small operation after the other.

It is what ``step_speed.py`` measures clcalib against.  Nothing is copied: it was written from the description of the
method in docs/method.md (section 3), with the operations that the reference code is known for, neither fewer nor more:

* floor(w / delta) and h(alpha) anew in every step, h a second time for the rounding loss;
* ``torch.where`` on ``torch.rand_like`` for every drop; straight-through rounding and the LSQ factor by ``detach``;
* two Adam optimisers as ``torch.optim.Adam(parameters)`` gives them, a scheduler object, ``retain_graph=True``;
* ranges by a loop over the shrink steps, for weights inside a loop over the channels;
* the inputs of each unit from two runs of the network, float and quantized, from the images up to that unit.

Where the descriptions leave something open, the cheaper choice was taken: the float weights ask for no gradient, and
activation ranges come from the first batch only.  The units do the work of clcalib's: the outputs of stem and blocks
have the low width, that of the last block is not quantized, and the classifier reads a pooled tensor of 8 bits.
From PyTorch 2.14 on, ``torch.clamp`` has no gradient on its bounds; it is used all the same, as it costs the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

ZETA, GAMMA = 1.1, -0.1
KEEP_QUANTIZED_PROBABILITY = 0.5
ROUNDING_RATE, ACTIVATION_RATE, ROUNDING_WEIGHT = 1e-3, 4e-5, 0.01
WARM_UP, BETA_START, BETA_END = 0.2, 20.0, 2.0
WEIGHT_GRID, ACTIVATION_GRID, GRID_EXPONENT = 80, 100, 2.4
BATCH, EDGE_BITS = 32, 8


def round_ste(x: Tensor) -> Tensor:
    return (x.round() - x).detach() + x


def grad_scale(t: Tensor, scale: float) -> Tensor:
    return (t - t * scale).detach() + t * scale


def fake_quantize(x: Tensor, delta: Tensor, zero_point: Tensor, levels: int) -> Tensor:
    x_int = round_ste(x / delta) + zero_point
    x_quant = torch.clamp(x_int, 0, levels - 1)
    return (x_quant - zero_point) * delta


def rectified_sigmoid(alpha: Tensor) -> Tensor:
    return torch.clamp(torch.sigmoid(alpha) * (ZETA - GAMMA) + GAMMA, 0, 1)


@torch.no_grad()
def shrink_grid(x: Tensor, levels: int, steps: int) -> tuple[Tensor, Tensor]:
    """Delta and zero point of the least error: the range of x shrinks by 1 % of itself from step to step."""
    low, high = x.min().clamp(max=0), x.max().clamp(min=0)
    best, found = float("inf"), (torch.ones_like(low), torch.zeros_like(low))
    for step in range(steps):
        share = 1.0 - 0.01 * step
        delta = ((high - low) * share / (levels - 1)).clamp(min=1e-8)
        zero_point = (-low * share / delta).round()
        score = (x - fake_quantize(x, delta, zero_point, levels)).abs().pow(GRID_EXPONENT).mean()
        if score < best:
            best, found = score, (delta, zero_point)
    return found


class Activation(nn.Module):
    """An activation quantizer with a learned step; a part of its elements stays float while a unit is trained."""

    def __init__(self, bits: int) -> None:
        super().__init__()
        self.levels = 2**bits
        self.delta = nn.Parameter(torch.ones(()))
        self.register_buffer("zero_point", torch.zeros(()))
        self.is_quantized, self.has_range = True, False

    def forward(self, x: Tensor) -> Tensor:
        if not self.is_quantized:
            return x
        if not self.has_range:
            self.delta.data, self.zero_point = shrink_grid(x, self.levels, ACTIVATION_GRID)
            self.has_range = True
        delta = grad_scale(self.delta, 1.0 / math.sqrt(x.numel() * (self.levels - 1)))
        x_dequant = fake_quantize(x, delta, self.zero_point, self.levels)
        if self.training:
            return torch.where(torch.rand_like(x) < KEEP_QUANTIZED_PROBABILITY, x_dequant, x)
        return x_dequant


class Layer(nn.Module):
    """A convolution or linear layer; its weight is rounded to nearest, then softly, then hard, one delta a channel."""

    def __init__(self, weight: Tensor, bias: Tensor, bits: int, stride: int = 1) -> None:
        super().__init__()
        self.levels, self.stride = 2**bits, stride
        self.register_buffer("weight", weight)
        self.register_buffer("bias", bias)
        ranges = [shrink_grid(channel, self.levels, WEIGHT_GRID) for channel in weight]
        shape = (-1, *[1] * (weight.dim() - 1))
        self.register_buffer("delta", torch.stack([delta for delta, _ in ranges]).view(shape))
        self.register_buffer("zero_point", torch.stack([zero_point for _, zero_point in ranges]).view(shape))
        self.alpha: nn.Parameter | None = None
        self.is_quantized, self.is_soft = True, False

    def start_soft_rounding(self) -> None:
        rest = self.weight / self.delta - torch.floor(self.weight / self.delta)
        self.alpha = nn.Parameter(-torch.log((ZETA - GAMMA) / (rest - GAMMA) - 1))
        self.is_soft = True

    def rounding(self) -> Tensor:
        assert self.alpha is not None
        return rectified_sigmoid(self.alpha)

    def quantized_weight(self) -> Tensor:
        if self.alpha is None:
            return fake_quantize(self.weight, self.delta, self.zero_point, self.levels)
        floor = torch.floor(self.weight / self.delta)
        x_int = floor + (self.rounding() if self.is_soft else (self.alpha >= 0).float())
        x_quant = torch.clamp(x_int + self.zero_point, 0, self.levels - 1)
        return (x_quant - self.zero_point) * self.delta

    def forward(self, x: Tensor) -> Tensor:
        weight = self.quantized_weight() if self.is_quantized else self.weight
        if weight.dim() == 2:
            return F.linear(x, weight, self.bias)
        return F.conv2d(x, weight, self.bias, self.stride, 1)


class Stem(nn.Module):
    def __init__(self, layer: Layer, bits: int) -> None:
        super().__init__()
        self.layer, self.activation = layer, Activation(bits)

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(F.relu(self.layer(x)))


class Block(nn.Module):
    """Two convolutions and the shortcut of ``examples/demo_network.py``; the last block has no quantizer behind it."""

    def __init__(self, first: Layer, second: Layer, padding: int, bits: int, *, is_last: bool) -> None:
        super().__init__()
        self.first, self.second, self.padding = first, second, padding
        self.inner, self.outer = Activation(bits), nn.Identity() if is_last else Activation(bits)

    def forward(self, x: Tensor) -> Tensor:
        y = self.second(self.inner(F.relu(self.first(x))))
        if self.padding:
            x = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.padding, self.padding))
        return self.outer(F.relu(y + x))


class Classifier(nn.Module):
    def __init__(self, layer: Layer) -> None:
        super().__init__()
        self.layer, self.activation = layer, Activation(EDGE_BITS)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(self.activation(torch.flatten(F.adaptive_avg_pool2d(x, 1), 1)))


def folded(convolution: nn.Conv2d, norm: nn.BatchNorm2d, bits: int) -> Layer:
    """The layer that a convolution and the batch norm behind it are together."""
    gain = norm.weight.detach() / torch.sqrt(norm.running_var + norm.eps)
    weight = convolution.weight.detach() * gain.view(-1, 1, 1, 1)
    return Layer(weight, norm.bias.detach() - norm.running_mean * gain, bits, convolution.stride[0])


def named_blocks(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    for stage in ("layer1", "layer2", "layer3"):
        for index, block in enumerate(getattr(model, stage)):
            yield f"{stage}.{index}", block


@torch.no_grad()
def build(model: nn.Module, images: Tensor, bits: int = 2) -> tuple[list[str], nn.Sequential]:
    """Names and units of a ResNet of ``examples/demo_network.py``, all ranges found, weights rounded to nearest."""
    names, units = ["conv1"], [Stem(folded(model.conv1, model.bn1, EDGE_BITS), bits)]
    blocks = list(named_blocks(model))
    for number, (name, block) in enumerate(blocks, 1):
        first, second = folded(block.conv1, block.bn1, bits), folded(block.conv2, block.bn2, bits)
        names.append(name)
        units.append(Block(first, second, block.padding, bits, is_last=number == len(blocks)))
    names.append("linear")
    units.append(Classifier(Layer(model.linear.weight.detach(), model.linear.bias.detach(), EDGE_BITS)))
    network = nn.Sequential(*units).to(images.device).eval()
    network(images[:BATCH])
    return names, network


def set_quantized(network: nn.Module, is_quantized: bool) -> None:
    for module in network.modules():
        if isinstance(module, (Activation, Layer)):
            module.is_quantized = is_quantized


@torch.no_grad()
def cache(network: nn.Sequential, index: int, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """A unit's quantized input, float input and float output, each from a run that starts at the images."""
    before, unit = network[:index], network[index]
    set_quantized(network, False)
    floats, targets = [], []
    for batch in images.split(BATCH):
        floats.append(before(batch))
        targets.append(unit(floats[-1]))
    set_quantized(network, True)
    quantized = [before(batch) for batch in images.split(BATCH)]
    return torch.cat(quantized), torch.cat(floats), torch.cat(targets)


def rounding_loss(layers: list[Layer], step: int, steps: int) -> Tensor | float:
    if step < WARM_UP * steps:
        return 0.0
    share = (step - WARM_UP * steps) / ((1 - WARM_UP) * steps)
    b = BETA_END + (BETA_START - BETA_END) * max(0.0, 1.0 - share)
    total: Tensor | float = 0.0
    for layer in layers:
        total = total + ROUNDING_WEIGHT * (1 - ((layer.rounding() - 0.5).abs() * 2).pow(b)).sum()
    return total


def reconstruct(
    unit: nn.Module,
    cached: tuple[Tensor, Tensor, Tensor],
    steps: int,
    on_step: Callable[[int], None] | None = None,
    *,
    raised: float = 1.0,
) -> None:
    """Optimise rounding and activation steps of one unit, then harden; ``on_step`` is told of each finished step.

    Both rates are those of the reference code times ``raised``.
    """
    quantized, floats, targets = cached
    layers = [module for module in unit.modules() if isinstance(module, Layer)]
    for layer in layers:
        layer.start_soft_rounding()
    deltas = [module.delta for module in unit.modules() if isinstance(module, Activation)]
    w_opt = torch.optim.Adam([layer.alpha for layer in layers], lr=raised * ROUNDING_RATE)
    a_opt = torch.optim.Adam(deltas, lr=raised * ACTIVATION_RATE)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(a_opt, T_max=steps, eta_min=0.0)
    unit.train()
    for step in range(steps):
        idx = torch.randperm(len(targets))[:BATCH].to(targets.device)
        cur_inp, cur_sym = quantized[idx], floats[idx]
        cur_inp = torch.where(torch.rand_like(cur_inp) < KEEP_QUANTIZED_PROBABILITY, cur_inp, cur_sym)
        target = targets[idx]
        w_opt.zero_grad()
        a_opt.zero_grad()
        out = unit(cur_inp)
        loss = (out - target).abs().pow(2).sum(1).mean() + rounding_loss(layers, step, steps)
        loss.backward(retain_graph=True)
        w_opt.step()
        a_opt.step()
        scheduler.step()
        if on_step is not None:
            on_step(step)
    unit.eval()
    for layer in layers:
        layer.is_soft = False


def calibrate(
    model: nn.Module,
    images: Tensor,
    steps: int,
    on_step: Callable[[str, int], None] | None = None,
    *,
    raised: float = 1.0,
) -> nn.Sequential:
    """The whole run, from the float network to the quantized one."""
    names, network = build(model, images)
    for index, name in enumerate(names):
        report = None if on_step is None else (lambda step, name=name: on_step(name, step))
        reconstruct(network[index], cache(network, index, images), steps, report, raised=raised)
    return network
