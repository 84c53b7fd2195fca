"""The modes of PyTorch that a run computes under, whatever those of its caller are."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def usual_modes() -> Iterator[None]:
    """Inside: float32 by default, gradients, no inference mode, and random numbers that are no one else's.

    What was there before comes back at the end, after an error too.
    """
    before = torch.get_default_dtype()
    with torch.inference_mode(False), torch.random.fork_rng(devices=[]):  # in inference mode nothing can be trained
        torch.set_default_dtype(torch.float32)
        try:
            yield
        finally:
            torch.set_default_dtype(before)
