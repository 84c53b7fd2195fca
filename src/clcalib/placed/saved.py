"""What a worker other than worker 0 asks that one for while it works on its units: what is saved, and who is told."""

from __future__ import annotations

import contextlib
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from clcalib import errors
from clcalib.calibrate.observer import Observer
from clcalib.durable import stop
from clcalib.durable.payload import Payload
from clcalib.errors import ClcalibWarning
from clcalib.quant.policy import LayerPolicy
from clcalib.team.line import Line
from clcalib.team.memory import MemoryPlan
from clcalib.team.messages import Message
from clcalib.team.parts import Parts

NAMES, GET, PUT, REFUSE, HEED, TELL, WARN = "names", "get", "put", "refuse", "heed", "tell", "warn"
_GLANCE = 0.5  # seconds between two questions whether the run is to stop
_TOLD = ("unit_started", "correcting", "step", "unit_finished", "unit_recalled", "quality_so_far")


class AskedParts:
    """The saved state of worker 0: ``Parts``.

    Args:
        line: this worker's.
    """

    resumptions, seconds_before = 0, 0.0

    def __init__(self, line: Line) -> None:
        self._line, self._looked = line, time.monotonic()

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all parts that are saved."""
        return tuple(self._ask(Message(NAMES)).values["names"])

    def get(self, name: str) -> Payload | None:
        """The saved part of this name, or None."""
        content = self._ask(Message(GET, {"name": name})).tensors
        return Payload.from_bytes(content[0].numpy().tobytes()) if content and content[0] is not None else None

    def refuse(self, name: str, reason: str) -> None:
        """Take a part as not saved."""
        self._ask(Message(REFUSE, {"name": name, "reason": reason}))

    def put(self, name: str, payload: Payload, *, instead_of: str | None = None, before: Sequence[str] = ()) -> None:
        """Have a part saved."""
        values = {"name": name, "instead_of": instead_of, "before": list(before)}
        content = torch.frombuffer(bytearray(payload.to_bytes()), dtype=torch.uint8)
        self._ask(Message(PUT, values, [content]))

    def heed(self) -> None:
        """Ask now and then whether worker 0 was asked to stop; then this process is, too."""
        if time.monotonic() - self._looked > _GLANCE:
            self._ask(Message(HEED))

    def _ask(self, message: Message) -> Message:
        answer = self._line.ask(0, message)
        self._looked = time.monotonic()
        if answer.values["is_stopped"]:
            stop.ask()
        return answer


def answered(parts: Parts | None, message: Message) -> Message:
    """What worker 0 says to one of these questions."""
    values, tensors, found = message.values, list[torch.Tensor](), dict[str, Any]()
    if message.word == NAMES:
        found["names"] = [] if parts is None else list(parts.names)
    elif message.word == GET and parts is not None and (payload := parts.get(values["name"])) is not None:
        tensors.append(torch.frombuffer(bytearray(payload.to_bytes()), dtype=torch.uint8))
    elif message.word == REFUSE and parts is not None:
        parts.refuse(values["name"], values["reason"])
    elif message.word == PUT and parts is not None:
        (content,) = message.tensors
        assert content is not None
        payload = Payload.from_bytes(content.numpy().tobytes())
        parts.put(values["name"], payload, instead_of=values["instead_of"], before=values["before"])
    return Message(message.word, {**found, "is_stopped": stop.is_asked()}, tensors)


class TellingObserver:
    """Worker 0's observer, which it tells; of what only worker 0 does, there is nothing to tell.

    Args:
        line: this worker's.
    """

    def __init__(self, line: Line) -> None:
        self._line = line

    def stage(self, name: str) -> None:
        """Worker 0 has them."""

    def policy(self, rows: Sequence[LayerPolicy]) -> None:
        """Worker 0 has it."""

    def placed(self, plan: MemoryPlan) -> None:
        """Worker 0 has it."""

    def unit_started(self, index: int, count: int, name: str, kind: str, steps: int) -> None:
        """Tell of the start of a unit."""
        self._tell("unit_started", index, count, name, kind, steps)

    def correcting(self, done: int, count: int) -> None:
        """Tell of corrected inputs."""
        self._tell("correcting", done, count)

    def step(self, step: int, losses: Mapping[str, float]) -> None:
        """Tell of a step."""
        self._tell("step", step, dict(losses))

    def unit_finished(self, index: int, name: str, error_before: float, error_after: float) -> None:
        """Tell of the end of a unit."""
        self._tell("unit_finished", index, name, error_before, error_after)

    def unit_recalled(self, index: int, count: int, name: str, error_before: float, error_after: float) -> None:
        """Tell of a unit that was finished earlier."""
        self._tell("unit_recalled", index, count, name, error_before, error_after)

    def quality_so_far(
        self, agreement: float, accuracy: float | None = None, float_accuracy: float | None = None
    ) -> None:
        """Tell how good the network is."""
        self._tell("quality_so_far", agreement, accuracy, float_accuracy)

    def _tell(self, method: str, *arguments: object) -> None:
        self._line.tell(0, Message(TELL, {"method": method, "arguments": list(arguments)}))


def pass_on(observer: Observer, message: Message) -> None:
    """Tell worker 0's observer, or its user, what another worker tells."""
    values = message.values
    if message.word == WARN:
        kind = getattr(errors, values["category"], ClcalibWarning)
        warnings.warn(str(values["text"]), kind, stacklevel=2)
    elif values["method"] in _TOLD:
        getattr(observer, values["method"])(*values["arguments"])


@contextlib.contextmanager
def telling_warnings(line: Line) -> Iterator[None]:
    """Inside, clcalib's warnings go to worker 0."""

    def show(message: Warning | str, category: type[Warning], *rest: Any, **named: Any) -> None:
        if issubclass(category, ClcalibWarning):
            line.tell(0, Message(WARN, {"category": category.__name__, "text": str(message)}))

    with warnings.catch_warnings():
        warnings.simplefilter("always", ClcalibWarning)
        warnings.showwarning = show
        yield
