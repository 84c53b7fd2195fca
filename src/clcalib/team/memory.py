"""What each worker of a line has in memory, as it is planned before anything is done."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class WorkerMemory:
    """Bytes of one worker.

    Attributes:
        first, last: the numbers of its first and its last unit.
        names: of its units.
        weights: of its float parameters, and of their codes under nearest rounding and in the result.
        trained: of what a step of its largest unit trains, with gradients and Adam's means.
        caches: of the stores of the unit whose stores are largest, as floats; as codes they take less.
        activation: of the largest tensor of a batch that goes through its units.
    """

    first: int
    last: int
    names: tuple[str, ...]
    weights: int
    trained: int
    caches: int
    activation: int

    @property
    def total(self) -> int:
        """All of it together."""
        return self.weights + self.trained + self.caches + self.activation


MemoryPlan = tuple[WorkerMemory, ...]  # by rank
