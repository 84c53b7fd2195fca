"""Running a piece of a chain over all images, in batches, without gradients."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, fx, nn

from clcalib.capture.graph import data_nodes, value_of

State = tuple[Tensor, ...]  # the live tensors at a cut, each (N, ...)

BATCH = 64
BATCH_BYTES = 1 << 26  # of the largest tensor of a batch; a handful of that size are alive at a time


def images_at_once(body: nn.Module) -> int:
    """How many images go through a piece at a time: ``BATCH``, or fewer where its largest tensor would be too large.

    Args:
        body: a piece of a chain, whose nodes know their shapes; of anything else they are not known.
    """
    if not isinstance(body, fx.GraphModule):
        return BATCH
    largest = max((bytes_of_one(value_of(node)) for node in data_nodes(body.graph)), default=0)
    return max(1, min(BATCH, BATCH_BYTES // max(1, largest)))


@torch.no_grad()
def advance(body: nn.Module, state: State, condense: Callable[[Tensor], Tensor] | None = None) -> State:
    """Run ``body`` over a cached state (N, ...); the result has the same N.

    Args:
        body: takes and returns tensors by position.
        state: its input.
        condense: what of each output is kept, batch by batch; None keeps it whole.
    """
    parts, size = [], images_at_once(body)
    for start in range(0, len(state[0]), size):
        outputs = body(*(tensor[start : start + size] for tensor in state))
        parts.append(outputs if condense is None else tuple(condense(output) for output in outputs))
    return tuple(torch.cat(column) for column in zip(*parts, strict=True))


def bytes_of_one(value: object) -> int:
    """Of a captured tensor, what one image has in it; sizes are symbols of the batch."""
    if not isinstance(value, Tensor):
        return 0
    elements: int | torch.SymInt = value.numel()
    if isinstance(elements, torch.SymInt):
        expression = elements.node.expr
        elements = int(expression.subs(dict.fromkeys(expression.free_symbols, 1)))
    return elements * value.element_size()
