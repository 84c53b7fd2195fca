"""Nodes of Ray on the loopback, started with what they need, also where the machine is busy."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable
from typing import Any, TypeVar

from tests.sweep.ray_listening import family

# What else Ray starts for a node takes seconds, and is of no use here.
NODE: dict[str, Any] = {"node_ip_address": "127.0.0.1", "include_dashboard": False, "include_log_monitor": False}
HEAD = {**NODE, "no_monitor": True}
Value = TypeVar("Value")


def patiently(start: Callable[[], Value]) -> Value:
    """What ``start`` starts; Ray gives a node 30 s for that, in which a busy machine may not have done it."""
    while True:
        before = family(os.getpid())
        try:
            return start()
        except Exception as error:
            if "timed out during startup" not in str(error):
                raise
            for number in family(os.getpid()) - before:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(number, signal.SIGKILL)
