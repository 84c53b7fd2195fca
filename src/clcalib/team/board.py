"""What the calls of a run tell each other, through a store that outlives their workers.

One call keeps the store; all of them look at it twice a second, from a thread, so that a link that hangs holds up
nobody.  There is little in it: which attempt is under way, whether the run is to stop, how it ended, and of each call a
number that grows as long as it lives.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import secrets
import socket
import threading
import time
from collections.abc import Mapping
from datetime import timedelta

from torch._C._distributed_c10d import PrefixStore, Store, TCPStore

from clcalib.errors import ArgumentError
from clcalib.team.place import Place

PERIOD = 0.5  # seconds between two looks
_CONNECTING = 5.0  # seconds until a host that does not answer is asked again
_STUCK = 10.0  # seconds until a look that does not return is given up
_ATTEMPT, _STOP, _END = "attempt", "stop", "end"


@dataclasses.dataclass(frozen=True)
class End:
    """How a run ended: the exit code, what to tell, and whether it is the end for all calls."""

    code: int
    message: str = ""
    is_for_all: bool = True


@dataclasses.dataclass(frozen=True)
class View:
    """What was on the board at the last look.

    Attributes:
        attempt: the name of the one under way; "" before the first.
        reason: why it began.
        stop: the signal that some call was asked to stop by.
        end: how the run ended.
        settings: what each other call that has come was started with.
        is_replaced: whether a later call has this one's workers.
    """

    attempt: str = ""
    reason: str = ""
    stop: int | None = None
    end: End | None = None
    settings: Mapping[int, Mapping[str, str]] = dataclasses.field(default_factory=dict)
    is_replaced: bool = False


class Board:
    """The store as one call sees it.  Nothing here waits; what is to be told is told at the next look.

    Args:
        place: of this call.
        settings: what it was started with, which must be the same for all.

    Raises:
        ArgumentError: the address cannot be bound.
    """

    def __init__(self, place: Place, settings: Mapping[str, str]) -> None:
        self._place, self._settings, self._token = place, json.dumps(dict(settings)), secrets.token_hex(8)
        self.port = place.port
        self._server = self._serve() if place.is_host else None
        self._lock, self._wake = threading.Lock(), threading.Event()
        self._view, self._heard, self._beats = View(), time.monotonic(), dict[int, tuple[bytes, float]]()
        self._wishes = dict[str, str]()
        self._advancing: tuple[str, str] | None = None
        self._is_joined = self._is_over = False
        self._number = 0
        self._renew()

    @property
    def view(self) -> View:
        """The last look."""
        with self._lock:
            return self._view

    @property
    def seconds_silent(self) -> float:
        """Since the store answered."""
        with self._lock:
            return time.monotonic() - self._heard

    def seconds_missing(self, rank: int) -> float | None:
        """Since the call of this rank was heard, or None where it never was."""
        with self._lock:
            found = self._beats.get(rank)
            # While the store does not answer, nobody can be heard.
            return None if found is None else max(0.0, self._heard - found[1])

    def advance(self, attempt: str, reason: str) -> None:
        """Begin the attempt after ``attempt``, where no other call has begun it."""
        if attempt:
            with self._lock:
                self._advancing = attempt, reason
            self._wake.set()

    def stop(self, number: int) -> None:
        """Ask all calls to stop as by this signal."""
        self._wish(_STOP, str(number))

    def end(self, end: End) -> None:
        """Tell all calls that the run has ended."""
        self._wish(_END, json.dumps(dataclasses.asdict(end)))

    def close(self, seconds: float = 0.0) -> None:
        """Leave; who keeps the store waits until the others have seen the end, this long at most."""
        self._wish(f"left/{self._place.ranks[0]}", self._token)
        until = time.monotonic() + seconds
        while time.monotonic() < until and not self._have_left():
            time.sleep(PERIOD / 10)
        self._is_over = True
        self._wake.set()

    def _have_left(self) -> bool:
        with self._lock:
            if self._wishes:
                return False
        if self._server is None:
            return True
        others = [rank for rank in self._beats if rank not in self._place.ranks]
        gone = (self._server.check([f"left/{rank}"]) or (self.seconds_missing(rank) or 0.0) > 3.0 for rank in others)
        return all(gone)

    def _wish(self, key: str, value: str) -> None:
        with self._lock:
            self._wishes.setdefault(key, value)
        self._wake.set()

    def _serve(self) -> TCPStore:
        """The store, on the one address that was named."""
        where = f"{self._place.host}:{self._place.port}"
        expected = "a free address of the machine with --rank 0"
        remedy = "name another port, or an address that this machine has"
        try:
            family = socket.getaddrinfo(self._place.host, self._place.port, type=socket.SOCK_STREAM)[0][0]
            listener = socket.create_server((self._place.host, self._place.port), family=family)
        except OSError as error:
            reason = f"{where}, which cannot be bound ({error.strerror or error})"
            raise ArgumentError("--rendezvous", expected, reason, remedy) from None
        self.port = int(listener.getsockname()[1])
        handle, patience = listener.detach(), timedelta(seconds=_CONNECTING)
        try:
            return TCPStore(self._place.host, self.port, None, True, patience, False, master_listen_fd=handle)
        except RuntimeError as error:
            reason = f"{where}, which this machine does not reach itself at"
            raise ArgumentError("--rendezvous", expected, reason, remedy) from error

    def _renew(self) -> None:
        """Look on from a new thread; one that hangs in a dead connection is left to itself."""
        self._number += 1
        self._started = time.monotonic()
        threading.Thread(target=self._look_on, args=(self._number,), daemon=True).start()

    def refresh(self) -> None:
        """Called now and then: where a look does not return, connect anew."""
        if self.seconds_silent > _STUCK and time.monotonic() - self._started > _STUCK:
            self._renew()

    def _look_on(self, number: int) -> None:
        store: Store | None = None
        while number == self._number and not self._is_over:
            # The first is also torch's DistError; the last two are of a store that somebody else wrote into.
            with contextlib.suppress(RuntimeError, OSError, ValueError, TypeError):
                if store is None:
                    store = connected(self._place.host, self.port, self._place.session)
                self._look(store, number)
                self._wake.wait(PERIOD)
                self._wake.clear()
                continue
            store = None
            time.sleep(PERIOD)

    def _look(self, store: Store, number: int) -> None:
        own = self._place.ranks[0]
        if not (self._is_joined and store.check([f"place/{own}"])):  # a store without it is a new one
            self._join(store, own)
        store.set(f"beat/{own}", str(time.monotonic()))
        with self._lock:
            wishes, advancing = dict(self._wishes), self._advancing
        for key, value in wishes.items():
            store.compare_set(key, "", value)
        if advancing is not None and _get(store, _ATTEMPT) == advancing[0]:
            store.set(f"reason/{_after(advancing[0])}", advancing[1])
            store.compare_set(_ATTEMPT, advancing[0], _after(advancing[0]))
        view = self._seen(store, own)
        beats = {rank: store.get(f"beat/{rank}") for rank in self._others() if store.check([f"beat/{rank}"])}
        with self._lock:
            if number != self._number:
                return
            now = self._heard = time.monotonic()
            self._view = view
            for key in wishes:
                self._wishes.pop(key, None)
            self._advancing = None if self._advancing == advancing else self._advancing
            for rank, beat in beats.items():
                if rank not in self._beats or self._beats[rank][0] != beat:
                    self._beats[rank] = beat, now

    def _join(self, store: Store, own: int) -> None:
        """Take the place; where an earlier call had it, its workers are gone, and a new attempt begins."""
        if self._place.is_first:
            store.compare_set(_ATTEMPT, "", f"{self._token}.1")
        is_taken = not self._is_joined and store.check([f"place/{own}"])
        store.set(f"settings/{own}", self._settings)
        store.set(f"place/{own}", self._token)
        if is_taken and (attempt := _get(store, _ATTEMPT)):
            with self._lock:
                self._advancing = attempt, f"worker {own} was started again"
        self._is_joined = True

    def _seen(self, store: Store, own: int) -> View:
        attempt, stop, end = (_get(store, key) for key in (_ATTEMPT, _STOP, _END))
        found = ((rank, _get(store, f"settings/{rank}")) for rank in self._others())
        return View(
            attempt=attempt,
            reason=_get(store, f"reason/{attempt}"),
            stop=int(stop) if stop else None,
            end=End(**json.loads(end)) if end else None,
            settings={rank: dict(json.loads(text)) for rank, text in found if text},
            is_replaced=_get(store, f"place/{own}") not in ("", self._token),
        )

    def _others(self) -> list[int]:
        return [rank for rank in range(self._place.workers) if rank not in self._place.ranks]


def connected(host: str, port: int, prefix: str) -> Store:
    """A store as a client sees it.

    Raises:
        OSError, RuntimeError: it cannot be reached.
    """
    # Asked first, as the store writes about each failure on stderr.
    socket.create_connection((host, port), timeout=_CONNECTING).close()
    return PrefixStore(prefix or "run", TCPStore(host, port, None, False, timedelta(seconds=_CONNECTING), False))


def _get(store: Store, key: str) -> str:
    """The value of a key, "" where there is none; ``get`` would wait for it."""
    return bytes(store.get(key)).decode() if store.check([key]) else ""


def _after(attempt: str) -> str:
    """The name of the next attempt.

    Example:
        >>> _after("a1b2.1")
        'a1b2.2'
    """
    session, _, number = attempt.rpartition(".")
    return f"{session}.{int(number) + 1}"
