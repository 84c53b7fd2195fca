"""Workers of a line in one process: whoever asks is answered at once."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence

from torch import Tensor

from clcalib.capture.chain import Chain, capture
from clcalib.placed.division import mark_units
from clcalib.placed.pieces import RUN, Answers, Asked
from clcalib.placed.release import release
from clcalib.team.line import Line
from clcalib.team.messages import Message
from tests.tiny import images, tiny


class Loopback:
    """Links to workers that only answer."""

    def __init__(self, answers: dict[int, Answers]) -> None:
        self.answers, self.asked = answers, list[Message]()
        self._waiting = list[Tensor]()

    def send(self, rank: int, content: Tensor) -> None:
        """Have the answer made."""
        message = Message.from_bytes(content)
        self.asked.append(message)
        answer = self.answers[rank].run(message) if message.word == RUN else self.answers[rank].back(message)
        self._waiting.append(answer.to_bytes())

    def receive(self, rank: int) -> Tensor:
        """The answer."""
        return self._waiting.pop(0)


def layers_of_tiny() -> Chain:
    """A chain with a shortcut across its cuts, its units marked."""
    chain = capture(tiny(), images(2), unit="layer")
    mark_units(chain)
    return chain


def on_worker(chain: Chain, workers: Sequence[int], rank: int) -> tuple[Chain, Loopback]:
    """The chain as a worker has it, whose pieces ask the others; each of them has its own units' weights alone."""

    def held(own: int) -> Chain:
        found = dataclasses.replace(chain, module=copy.deepcopy(chain.module))
        release(found, range(workers.index(own), len(workers) - workers[::-1].index(own)))
        return found

    links = Loopback(
        {other: Answers({"float": _given(held(other))}, workers, other) for other in set(workers) - {rank}}
    )
    asked = Asked("float", Line(max(workers) + 1, rank, links), workers)
    return dataclasses.replace(held(rank), placed=asked), links


def _given(chain: Chain):
    return lambda: chain
