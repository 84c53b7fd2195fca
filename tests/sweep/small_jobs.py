"""Jobs that take no time and need no network, and what they are entries of; the functions are sent by their names."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import time
from pathlib import Path

from clcalib.durable.stop import is_asked
from clcalib.errors import ArgumentError
from clcalib.sweep.jobs import Entry, Outcome


def entry(number: int, **payload: object) -> Entry:
    """A run of its own for each number; the payload says what its job does."""
    key = hashlib.sha256(str(number).encode()).hexdigest()
    names = {"label": f"run{number}", "network": "net", "widths": "W2A2", "recipe": "qdrop", "contrastive": "none"}
    digests = {"cell": key, "pair": key, "configuration": "{}", "code": "1", "model_digest": "2", "data_digest": "3"}
    return Entry(key=key, seed=number, **names, **digests, payload=json.dumps({"number": number, **payload}))


def digest_of(number: int) -> str:
    return hashlib.sha256(f"result {number}".encode()).hexdigest()


def hashed(payload: str) -> Outcome:
    """Wait a little; with ``marks``, leave a file for each time that it was begun."""
    told = json.loads(payload)
    if "marks" in told:
        (Path(told["marks"]) / f"{told['number']}-{os.getpid()}-{time.time_ns()}").touch()
    end = time.monotonic() + told.get("seconds", 0.0)
    while time.monotonic() < end:
        time.sleep(0.02)
        if is_asked():
            raise KeyboardInterrupt
    return Outcome(digest_of(told["number"]), {"quantized_top1": 0.5, "seconds": told.get("seconds", 0.0)})


def odd(payload: str) -> Outcome:
    """Number 0 cannot be done, 1 dies, 2 raises what nobody foresaw, 3 does so the first time; others go well."""
    told = json.loads(payload)
    if told["number"] == 0:
        raise ArgumentError("bits", "a whole number", "none")
    if told["number"] == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    if told["number"] == 2 or (told["number"] == 3 and not Path(told["mark"]).exists()):
        if "mark" in told:
            Path(told["mark"]).touch()
        raise RuntimeError("out of luck")
    return hashed(payload)
