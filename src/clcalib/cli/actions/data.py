"""``clcalib data``: bring public data sets to this machine."""

from __future__ import annotations

from pathlib import Path

from clcalib.cli.messages import new_console
from clcalib.cli.results import show_json
from clcalib.data.cifar10 import DIGESTS
from clcalib.data.fetch import fetch_cifar10


def bring_cifar10(out: Path, method: str, *, is_json: bool) -> None:
    """Fetch the files and say where they are."""
    folder = fetch_cifar10(out, method=method)
    if is_json:
        show_json({"data": "cifar10", "folder": folder, "files": sorted(DIGESTS)})
    else:
        new_console().print(f"CIFAR-10 is in {folder}", soft_wrap=True)
