"""PD-Quant's correction of distributions: a unit's float input, brought nearer to what batch norm saw in training.

For a batch x_0 of the unit's float input, minimise by Adam over x

    sum over norms of mean over images of sum over channels (m - mean)^2 + (s - deviation)^2
    + mean over images and space of sum over channels (x - x_0)^2 / lambda_c,

where m and s are mean and standard deviation, over the space of one image, of what enters the norm, and mean and
deviation the norm's running statistics.

The norms are folded by then.  Behind one, y = g (u - mean) + beta, so m - mean = (mean(y) - beta) / g and
s^2 = var(y) / g^2: the same errors can be read off the folded layer.  Where g is zero, y is constant and no gradient
comes back through it; such channels are left out.

Source: PD-Quant (Liu et al., CVPR 2023); the loss on statistics is that of ZeroQ (Cai et al., CVPR 2020).
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from clcalib.calibrate.adam import Adam
from clcalib.calibrate.fuse import fuse
from clcalib.calibrate.layout import Layout
from clcalib.calibrate.recipe import Correction
from clcalib.calibrate.space import StoreSpace
from clcalib.calibrate.store import RowState, RowsWriter
from clcalib.capture.chain import Chain
from clcalib.capture.fold import NormStatistics, norm_statistics
from clcalib.capture.running import State
from clcalib.errors import NonFiniteLossWarning
from clcalib.fused.squared import mean_squared_error

SMALLEST_GAMMA = 1e-4  # below it, rounding errors of the folded layer would be read as errors of the statistics
PATIENCE, FACTOR, LEAST = 100, 0.1, 0.1  # of the plateau: steps without progress, what the rate falls by, and down to


def has_norms(chain: Chain) -> bool:
    """Whether any unit has a batch norm that the correction can look at."""
    return any(norm_statistics(node) is not None for node in chain.module.graph.nodes)


def corrected(
    chain: Chain,
    index: int,
    state: RowState,
    settings: Correction,
    space: StoreSpace,
    *,
    float_dtype: torch.dtype = torch.float32,
    report: Callable[[int, int], None] = lambda done, count: None,
    layout: Layout | None = None,
) -> RowState:
    """Return the float input of a unit, corrected, in new stores; as it is where the unit has no batch norm.

    Args:
        chain: the float chain, with batch norm folded.
        index: of the unit.
        state: its input from the float prefix.
        settings: how.
        space: where the result is stored.
        float_dtype: as what.
        report: told after each batch how many images are done, and of how many.
        layout: how the images are dealt; no batch has images of two shards.

    Returns:
        stores of the same shapes; inputs that no norm sees, and whole numbers, are those of ``state``.

    Warns:
        NonFiniteLossWarning: a batch whose correction is not finite stays as it was.
    """
    unit = chain.units[index]
    named = {node.name: node for node in chain.module.graph.nodes}
    norms = {name: known for name in unit.nodes if (known := norm_statistics(named[name])) is not None}
    if not norms:
        return state
    body = fuse(chain.subgraph(unit.inputs, list(norms)))
    targets = [_Target.of(known, state[0].device) for known in norms.values()]
    inputs = [node for node in body.graph.nodes if node.op == "placeholder"]
    moved = [at for at, rows in enumerate(state) if rows.dtype == torch.float32 and inputs[at].users]
    count = len(state[0])
    writers = {
        at: RowsWriter(space, count, float_dtype=float_dtype, is_channels_last=state[at].is_channels_last)
        for at in moved
    }
    layout, left = layout or Layout.alone(count), 0
    for _, start, stop, _ in layout.batches(settings.batch_size):
        values = tuple(layout.aligned(rows.slice(start, stop)) for rows in state)
        found = _corrected_batch(body, targets, values, moved, settings)
        if not all(bool(torch.isfinite(value).all()) for value in found):
            found, left = [values[at] for at in moved], left + len(found[0])
        for at, value in zip(moved, found, strict=True):
            writers[at].append(value)
        report(stop, count)
    left = int(sum(layout.team.by_worker(torch.tensor(left))))
    if left:
        warnings.warn(
            f"unit {unit.name}: the correction of distributions gives values that are not finite for {left} of "
            f"{layout.count} images, which stay as they were; look for extreme statistics in the unit's batch norms",
            NonFiniteLossWarning,
            stacklevel=2,
        )
    done = {at: writer.finish() for at, writer in writers.items()}
    return tuple(done.get(at, rows) for at, rows in enumerate(state))


@dataclasses.dataclass(frozen=True)
class _Target:
    """A norm's statistics, on the device, for the channels that count."""

    shift: Tensor  # (C,)
    inverse_gain: Tensor  # (C,); zero for channels that do not count
    deviation: Tensor  # (C,)
    epsilon: float

    @classmethod
    def of(cls, known: NormStatistics, device: torch.device) -> _Target:
        deviation = (known.variance + known.epsilon).sqrt()
        counts = (known.gain * deviation).abs() > SMALLEST_GAMMA
        inverse = torch.where(counts, 1.0 / known.gain, 0.0)
        deviation = torch.where(counts, deviation, known.epsilon**0.5)  # what a constant channel has below
        return cls(known.shift.to(device), inverse.to(device), deviation.to(device), known.epsilon)


def statistics_error(output: Tensor, target: _Target) -> Tensor:
    """mean over images of sum over channels (m - mean)^2 + (s - deviation)^2, s and deviation with the norm's epsilon.

    Args:
        output: y, behind the norm, (B, C, *spatial); maps of a single element have no deviation and give 0.
        target: the norm.

    Returns:
        A scalar.
    """
    if output.ndim < 3 or output[0, 0].numel() < 2:
        return output.new_zeros(())
    moments: tuple[Tensor, Tensor] = _Moments.apply(output)  # (B, C) each
    mean, variance = moments
    mean = (mean - target.shift) * target.inverse_gain
    deviation = (variance * target.inverse_gain.square() + target.epsilon).sqrt()
    error: Tensor = (mean.square() + (deviation - target.deviation).square()).sum(1).mean()
    return error


@torch.enable_grad()
def _corrected_batch(
    body: fx.GraphModule, targets: Sequence[_Target], values: State, moved: Sequence[int], settings: Correction
) -> list[Tensor]:
    originals = [values[at] for at in moved]
    free = [value.clone().requires_grad_(True) for value in originals]
    optimizer, plateau = Adam(free), _Plateau(settings.rate)
    places = dict(zip(moved, free, strict=True))
    for _ in range(settings.steps):
        outputs = body(*(places.get(at, value) for at, value in enumerate(values)))
        loss = torch.stack([statistics_error(y, target) for y, target in zip(outputs, targets, strict=True)]).sum()
        for value, original in zip(free, originals, strict=True):
            loss = loss + mean_squared_error(value, original, value.shape[1] / settings.strength)
        optimizer.forget_gradients()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step(plateau.rate)
        plateau.saw(loss.detach())
    return [value.detach() for value in free]


class _Moments(torch.autograd.Function):
    """Mean and variance over space, (B, C, *spatial) -> (B, C) twice; fewer passes over memory than autograd takes."""

    @staticmethod
    def forward(ctx: Any, output: Tensor) -> tuple[Tensor, Tensor]:
        flat = output.flatten(2)  # (B, C, S)
        mean = flat.mean(2)
        centred = flat - mean[..., None]
        ctx.save_for_backward(centred)
        ctx.shape = output.shape
        return mean, torch.linalg.vector_norm(centred, dim=2).square() / flat.shape[2]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (centred,) = ctx.saved_tensors
        of_mean, of_variance = (gradient[..., None] / centred.shape[2] for gradient in gradients)
        gradient: Tensor = torch.addcmul(of_mean, centred, 2 * of_variance).reshape(ctx.shape)
        return gradient


class _Plateau:
    """A rate that falls when the loss has not come down for ``PATIENCE`` steps.

    Losses are read only when the rate may fall by them: on a GPU the host would wait at each step otherwise.
    """

    def __init__(self, rate: float) -> None:
        self.rate, self._least = rate, rate * LEAST
        self._best, self._waited = float("inf"), 0
        self._unread: list[Tensor] = []

    def saw(self, loss: Tensor) -> None:
        """Be told of a step's loss, ()."""
        self._unread.append(loss)
        if self._waited + len(self._unread) > PATIENCE:
            for value in torch.stack(self._unread).tolist():
                self._read(value)
            self._unread.clear()

    def _read(self, loss: float) -> None:
        self._waited += 1
        if loss < self._best * (1 - 1e-4):
            self._best, self._waited = loss, 0
        if self._waited > PATIENCE:
            self.rate, self._waited = max(self.rate * FACTOR, self._least), 0
