"""Ctrl-C and SIGTERM: a run is asked to save what it has and to end, and ends by itself if that takes too long."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

PATIENCE = 7.0  # seconds between the request and the end, where nothing has come to save anything

_asked: list[int] = []  # signals are the process's, and so is this


def is_asked() -> bool:
    """Whether the process was asked to stop inside ``stopping_politely``."""
    return bool(_asked)


def asked_by() -> int | None:
    """The number of the signal that asked first, or None."""
    return _asked[0] if _asked else None


@contextlib.contextmanager
def stopping_politely(patience: float = PATIENCE) -> Iterator[None]:
    """Inside, the first SIGINT or SIGTERM only asks (``is_asked``); after ``patience`` seconds, and at a second signal,
    KeyboardInterrupt is raised wherever the program is.

    Outside the main thread signals cannot be handled, and nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _asked.clear()

    def ask(number: int, frame: FrameType | None) -> None:
        if _asked:
            raise KeyboardInterrupt
        _asked.append(number)
        if hasattr(signal, "setitimer"):
            signal.setitimer(signal.ITIMER_REAL, patience)

    def give_up(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    handlers = {signal.SIGINT: ask, signal.SIGTERM: ask}
    if hasattr(signal, "SIGALRM"):
        handlers[signal.SIGALRM] = give_up
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        if hasattr(signal, "setitimer"):
            signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in before.items():
            signal.signal(number, handler)
