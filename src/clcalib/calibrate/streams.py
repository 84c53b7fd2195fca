"""Random streams by counter: a step's numbers depend on (seed, unit, phase, step) and on nothing that ran before."""

from __future__ import annotations

import hashlib

import torch


def stream(seed: int, *counters: int, device: torch.device | str = "cpu") -> torch.Generator:
    """Return a generator whose numbers are fixed by the seed and the counters.

    Example:
        >>> a, b = (torch.rand(2, generator=stream(0, 3, 1)) for _ in range(2))
        >>> bool((a == b).all())
        True
    """
    text = ",".join(str(number) for number in (seed, *counters))
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return torch.Generator(device=device).manual_seed(int.from_bytes(digest, "little") >> 1)


class StepStream:
    """The generator of the current step, shared by everything random inside one unit."""

    def __init__(self, seed: int, unit: int, phase: int, device: torch.device | str = "cpu") -> None:
        self._counters = (seed, unit, phase)
        self._device = device
        self.generator = stream(*self._counters, 0, device=device)

    def advance(self, step: int) -> torch.Generator:
        """Start the numbers of ``step`` and return their generator."""
        self.generator = self.ahead(step)
        return self.generator

    def ahead(self, step: int) -> torch.Generator:
        """The numbers of a step that is not yet begun, from a generator of their own."""
        return stream(*self._counters, step, device=self._device)
