"""Ctrl-C and SIGTERM: a run is asked to save what it has and to end, and ends by itself if that takes too long."""

from __future__ import annotations

import contextlib
import dataclasses
import signal
import threading
from collections.abc import Iterator
from types import FrameType

PATIENCE = 7.0  # seconds between the request and the end, where nothing has come to save anything


@dataclasses.dataclass
class Request:
    """Whether a process was asked to stop, and by which signal first; None as long as it was not."""

    signal: int | None = None


_requests: list[Request] = []  # of the blocks that are open; signals are the process's, and so is this


def is_asked() -> bool:
    """Whether the process was asked to stop, inside ``stopping_politely``."""
    return any(request.signal is not None for request in _requests)


def ask() -> None:
    """Ask the process to stop, as SIGTERM does, without a limit of time: another process has one, or has been asked."""
    for request in _requests:
        request.signal = request.signal or signal.SIGTERM


@contextlib.contextmanager
def stopping_politely(patience: float = PATIENCE) -> Iterator[Request]:
    """Inside, the first SIGINT or SIGTERM only asks (``is_asked``); after ``patience`` seconds, and at a second signal,
    KeyboardInterrupt is raised wherever the program is.

    Outside the main thread signals cannot be handled, and nothing changes.
    """
    request = Request()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return

    def ask(number: int, frame: FrameType | None) -> None:
        if request.signal is not None:
            raise KeyboardInterrupt
        request.signal = number
        if hasattr(signal, "setitimer"):
            signal.setitimer(signal.ITIMER_REAL, patience)

    def give_up(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    handlers = {signal.SIGINT: ask, signal.SIGTERM: ask}
    if hasattr(signal, "SIGALRM"):
        handlers[signal.SIGALRM] = give_up
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    _requests.append(request)
    try:
        yield request
    finally:
        _requests.remove(request)
        if hasattr(signal, "setitimer"):
            signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in before.items():
            signal.signal(number, handler)
