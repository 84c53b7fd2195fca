"""The size of a battery, and its figures: ``CLCALIB_HARD=1`` asks for the full size, ``CLCALIB_FIGURES`` for a file."""

import json
import os
from pathlib import Path

IS_FULL = os.environ.get("CLCALIB_HARD") == "1"


def size(reduced: int, full: int) -> int:
    """How many cases a battery tries: the first in a common test run, the second where all are asked for."""
    return full if IS_FULL else reduced


def record(name: str, **figures: object) -> None:
    """Append one JSON line with the figures of a battery to the file that ``CLCALIB_FIGURES`` names, if it is set."""
    if path := os.environ.get("CLCALIB_FIGURES"):
        with Path(path).open("a", encoding="utf-8") as stream:
            stream.write(json.dumps({"name": name, **figures}) + "\n")
