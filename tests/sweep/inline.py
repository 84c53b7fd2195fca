"""Tasks in this very process, one after the other, which costs no start of another."""

from __future__ import annotations

from clcalib.sweep.jobs import Ended, Task
from clcalib.sweep.worker import work


class Inline:
    """An ``Executor``."""

    slots = 1

    def __init__(self) -> None:
        self._ended: list[Ended] = []

    def submit(self, task: Task) -> None:
        work(task)
        self._ended.append(Ended(task))

    def ended(self, timeout: float) -> list[Ended]:
        found, self._ended = self._ended, []
        return found

    def stop(self) -> list[Ended]:
        return self.ended(0.0)
