"""Reads mutants of one kind; as a process of its own, so that a death or a hang is seen from outside.

``python -m tests.hard.worker KIND FIRST LAST`` prints a JSON line before and after each mutant.
"""

from __future__ import annotations

import contextlib
import json
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from pathlib import Path

from tests.fuzz.targets import TARGETS
from tests.hard.mutate import mutant

MOST_SECONDS = 5.0  # of the processor
MOST_WAITED = 60.0  # by the clock, on a machine that does other things as well


def outcomes(kind: str, numbers: range) -> Iterator[dict[str, object]]:
    """For each mutant a line when it begins, and one with what came of it."""
    target = TARGETS[kind]
    seeds = target.seeds()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        target.folder(folder)
        for number in numbers:
            data = mutant(kind, seeds[number % len(seeds)], number)
            yield {"begins": number}
            start, worked, result = time.perf_counter(), time.process_time(), {"number": number}
            try:
                answer = target.attack(data, folder)
                result["outcome"] = "read" if answer == "read" else "refused"
            except Exception:
                result |= {"outcome": "defect", "traceback": traceback.format_exc()}
            result |= {"seconds": time.process_time() - worked, "waited": time.perf_counter() - start}
            yield result


def main(arguments: list[str]) -> None:
    kind, first, last = arguments[0], int(arguments[1]), int(arguments[2])
    out = sys.stdout
    with contextlib.redirect_stdout(sys.stderr):
        for line in outcomes(kind, range(first, last)):
            out.write(json.dumps(line) + "\n")
            out.flush()


if __name__ == "__main__":
    main(sys.argv[1:])
