"""Large rows of values as histograms, so that a range rule costs the same for any number of images.

A row of up to ``EXACT_VALUES`` values stays as it is.  A longer one becomes its counts in ``BINS`` equal bins, one of
which has its middle at 0, so that the zeros of a post-ReLU tensor stay zeros.  Every value counts; no sample is drawn.
"""

from __future__ import annotations

import dataclasses
import functools
import operator
from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch import Tensor

from clcalib.errors import NumericalError
from clcalib.fused import calls

EXACT_VALUES = 1 << 16
BINS = 1 << 14
_CHUNK_VALUES = 1 << 22  # values at once, which bounds the memory


@dataclasses.dataclass(frozen=True, eq=False)
class Histogram:
    """What range rules need to know of a tensor that is nowhere in memory as a whole.

    Attributes:
        middles, counts: as ``condense`` gives them  # shape: (1, BINS + 2)
        lower, upper: the exact extremes  # shape: (1,)
    """

    middles: Tensor
    counts: Tensor
    lower: Tensor
    upper: Tensor


def _alone(tensor: Tensor) -> list[Tensor]:
    return [tensor]


def gathered(
    parts: Callable[[], Iterable[Tensor]], together: Callable[[Tensor], list[Tensor]] = _alone
) -> Tensor | Histogram:
    """Values that come in parts, for a range rule: as one row if they are few, else as what ``condense`` makes of them.

    Either way a rule finds the same range, bit for bit, as on the one tensor that the parts are of.

    Args:
        parts: gives float tensors of any shapes in their order; called twice.
        together: of a tensor that has the same shape and type on all workers, theirs in their order; where the parts
            are those of one worker of several, which all get the same.

    Raises:
        NumericalError: a value is NaN or infinite.
    """
    ends, count = list[Tensor](), 0
    for part in parts():
        ends.append(torch.stack(torch.aminmax(part.detach())).float())
        count += part.numel()
    lower, upper = (torch.stack(column) for column in zip(*ends, strict=True))
    lower, upper = lower.amin(keepdim=True), upper.amax(keepdim=True)  # both carry a NaN through
    counts = [count] if together is _alone else [int(one) for one in together(torch.tensor([count]))]
    if sum(counts) <= EXACT_VALUES:
        return _joined(torch.cat([part.detach().reshape(-1) for part in parts()]), counts, together)
    lower, upper = torch.cat(together(lower)), torch.cat(together(upper))
    lower, upper = lower.amin(keepdim=True), upper.amax(keepdim=True)
    if not bool(torch.isfinite(lower) & torch.isfinite(upper)):
        raise NumericalError("tensor: expected finite values to find a range for, got NaN or infinity")
    chunks = (chunk for part in parts() for chunk in _chunks(part.detach()))
    middles, numbers = _histogram(chunks, float(lower), float(upper), together)
    return Histogram(middles[None], numbers[None], lower, upper)


def _joined(own: Tensor, counts: Sequence[int], together: Callable[[Tensor], list[Tensor]]) -> Tensor:
    """The values of all workers, of which each has as many as ``counts`` says, in their order."""
    if len(counts) == 1:
        return own
    padded = own.new_zeros(max(counts))
    padded[: len(own)] = own
    return torch.cat([values[:count] for values, count in zip(together(padded), counts, strict=True)])


def condense(values: Tensor) -> tuple[Tensor, Tensor | None]:
    """Values, and how often each occurs.

    Args:
        values: float32, finite  # shape: (C, N)

    Returns:
        ``values`` and None (each occurs once), or the middles of the bins in rising order and the counts, both float32
        # shape: (C, N) or (C, BINS + 2), (C, BINS + 2)
    """
    if values.shape[1] <= EXACT_VALUES:
        return values, None
    ends = [[float(end) for end in torch.aminmax(row)] for row in values]
    rows = [_histogram(_chunks(row), lower, upper) for row, (lower, upper) in zip(values, ends, strict=True)]
    return torch.stack([middles for middles, _ in rows]), torch.stack([counts for _, counts in rows])


def _chunks(tensor: Tensor) -> Iterator[Tensor]:  # (N, *) -> (M,) each
    rows = max(1, _CHUNK_VALUES // max(1, tensor[0].numel()))
    for start in range(0, len(tensor), rows):
        yield tensor[start : start + rows].reshape(-1).float()


def _histogram(
    chunks: Iterable[Tensor],
    lower: float,
    upper: float,
    together: Callable[[Tensor], list[Tensor]] = _alone,
) -> tuple[Tensor, Tensor]:  # -> (BINS + 2,) twice
    lower, upper = min(lower, 0.0), max(upper, 0.0)
    width = max(upper / BINS - lower / BINS, torch.finfo(torch.float32).tiny)
    below = round(-lower / width)  # bins below the one of 0
    counts = torch.zeros(BINS + 2, dtype=torch.int64)
    for chunk in chunks:
        counts = counts.to(chunk.device)
        if calls.can_take(chunk):
            calls.histogram(chunk, width, below, counts)
            continue
        bins = chunk.div(width).round_().to(torch.int32).add_(below).clamp_(0, BINS + 1)
        counts += torch.bincount(bins, minlength=BINS + 2)
    counts = functools.reduce(operator.add, together(counts))
    middles = (torch.arange(BINS + 2, device=counts.device) - below).to(torch.float32) * width
    return middles.clamp(lower, upper), counts.to(torch.float32)
