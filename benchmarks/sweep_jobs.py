"""Jobs for ``sweep_reliability.py`` that need neither torch nor a network; its workers import this file."""

from __future__ import annotations

import hashlib
import json
import os
import time
from pathlib import Path

from clcalib.durable.stop import is_asked
from clcalib.sweep.jobs import Entry, Outcome


def entry(number: int, **payload: object) -> Entry:
    """A run of its own for each number."""
    key = hashlib.sha256(f"run {number}".encode()).hexdigest()
    names = {"label": f"run{number}", "network": "none", "widths": "W2A2", "recipe": "hash", "contrastive": "none"}
    digests = {"cell": key, "pair": key, "configuration": "{}", "code": "1", "model_digest": "2", "data_digest": "3"}
    return Entry(key=key, seed=number, **names, **digests, payload=json.dumps({"number": number, **payload}))


def hashed(payload: str) -> Outcome:
    """Wait, as work does, and hash; with ``marks``, leave a file that says which process began it, and when."""
    told = json.loads(payload)
    number, seconds = told["number"], told["seconds"]
    if "marks" in told:
        (Path(told["marks"]) / f"{number}-{os.getpid()}-{time.time_ns()}").touch()
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        time.sleep(0.02)
        if is_asked():
            raise KeyboardInterrupt
    digest = hashlib.sha256(f"result {number}".encode()).hexdigest()
    for _ in range(1000):
        digest = hashlib.sha256(digest.encode()).hexdigest()
    return Outcome(digest, {"quantized_top1": 0.5, "seconds": seconds})
