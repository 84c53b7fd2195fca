"""Running a piece of a chain over all images, in batches, without gradients."""

from __future__ import annotations

import torch
from torch import Tensor, nn

State = tuple[Tensor, ...]  # the live tensors at a cut, each (N, ...)

BATCH = 64


@torch.no_grad()
def advance(body: nn.Module, state: State) -> State:
    """Run ``body`` over a cached state (N, ...); the result has the same N."""
    starts = range(0, len(state[0]), BATCH)
    parts = [body(*(tensor[start : start + BATCH] for tensor in state)) for start in starts]
    return tuple(torch.cat(column) for column in zip(*parts, strict=True))
