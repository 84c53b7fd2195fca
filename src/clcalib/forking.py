"""Processes of this machine's own: where they come from, what they have loaded by then, and how they ended."""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
from collections.abc import Sequence
from multiprocessing.context import ForkServerContext, SpawnContext

# What torch loads when a network is first captured: most of the time until a process computes.
CAPTURING = ("torch._dynamo", "torch._export", "torch.export._trace", "torch._functorch.aot_autograd")


def process_context(preloaded: Sequence[str]) -> ForkServerContext | SpawnContext:
    """Where processes come from: a server that has imported these modules once, where the system has that.

    Windows has it not: there each process imports them anew.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(preloaded))
    return context


def how_it_ended(code: int) -> str:
    """What to tell of a process that ended with this exit code; less than 0 is the signal that ended it.

    Example:
        >>> how_it_ended(-9), how_it_ended(3)
        ('was killed by SIGKILL', 'ended with code 3')
    """
    if code < 0:
        with contextlib.suppress(ValueError):
            return f"was killed by {signal.Signals(-code).name}"
    return f"ended with code {code}"
