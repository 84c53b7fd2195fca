"""A run's saved state as several workers see it: worker 0 has it, and the others are told what it finds there.

All workers ask for the same parts in the same order.  What is saved does not depend on how many workers there are, so a
run may go on with another number of them.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Protocol

from clcalib.durable.payload import Payload
from clcalib.durable.state import RunState
from clcalib.team.team import Exchange


class Parts(Protocol):
    """What a journal needs of a saved state; ``RunState`` says what is what."""

    @property
    def names(self) -> tuple[str, ...]: ...

    @property
    def resumptions(self) -> int: ...

    @property
    def seconds_before(self) -> float: ...

    def get(self, name: str) -> Payload | None: ...

    def refuse(self, name: str, reason: str) -> None: ...

    def put(
        self, name: str, payload: Payload, *, instead_of: str | None = None, before: Sequence[str] = ()
    ) -> None: ...


class LeaderParts:
    """The state of worker 0, which tells the others what it reads.

    Args:
        state: where it is; None where nothing is saved.
        exchange: how the others are reached.
    """

    def __init__(self, state: RunState | None, exchange: Exchange) -> None:
        self._state, self._exchange = state, exchange

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all parts that are saved; told to the others."""
        names = () if self._state is None else self._state.names
        self._exchange.broadcast(json.dumps(names).encode())
        return names

    @property
    def resumptions(self) -> int:
        """How often the run went on after a stop."""
        return 0 if self._state is None else self._state.resumptions

    @property
    def seconds_before(self) -> float:
        """Of work that earlier processes put into the state."""
        return 0.0 if self._state is None else self._state.seconds_before

    def get(self, name: str) -> Payload | None:
        """The saved part of this name, or None; told to the others."""
        found = None if self._state is None else self._state.get(name)
        self._exchange.broadcast(b"" if found is None else found.to_bytes())
        return found

    def refuse(self, name: str, reason: str) -> None:
        """Take a part as not saved."""
        if self._state is not None:
            self._state.refuse(name, reason)

    def put(self, name: str, payload: Payload, *, instead_of: str | None = None, before: Sequence[str] = ()) -> None:
        """Save a part; the others have the same, and need not be told."""
        if self._state is not None:
            self._state.put(name, payload, instead_of=instead_of, before=before)


class FollowerParts:
    """The same on the other workers, which save nothing.

    Args:
        exchange: how worker 0 is reached.
    """

    resumptions, seconds_before = 0, 0.0

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange

    @property
    def names(self) -> tuple[str, ...]:
        """As worker 0 has them."""
        return tuple(json.loads(self._exchange.broadcast(None)))

    def get(self, name: str) -> Payload | None:
        """What worker 0 found."""
        content = self._exchange.broadcast(None)
        return Payload.from_bytes(content) if content else None

    def refuse(self, name: str, reason: str) -> None:
        """Worker 0 finds the same and says so."""

    def put(self, name: str, payload: Payload, *, instead_of: str | None = None, before: Sequence[str] = ()) -> None:
        """Worker 0 saves it."""
