"""Running a piece of a chain over all images, in batches, without gradients."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

State = tuple[Tensor, ...]  # the live tensors at a cut, each (N, ...)

BATCH = 64


@torch.no_grad()
def advance(body: nn.Module, state: State, condense: Callable[[Tensor], Tensor] | None = None) -> State:
    """Run ``body`` over a cached state (N, ...); the result has the same N.

    Args:
        body: takes and returns tensors by position.
        state: its input.
        condense: what of each output is kept, batch by batch; None keeps it whole.
    """
    parts = []
    for start in range(0, len(state[0]), BATCH):
        outputs = body(*(tensor[start : start + BATCH] for tensor in state))
        parts.append(outputs if condense is None else tuple(condense(output) for output in outputs))
    return tuple(torch.cat(column) for column in zip(*parts, strict=True))
