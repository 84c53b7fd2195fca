"""``clcalib compare``: several runs side by side, with their differences on the same images."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

EXAMPLES = (
    "[bold]Examples[/bold]\n\n"
    "clcalib compare runs/qdrop runs/qdrop-contrastive\n\n"
    "clcalib compare runs/w2 runs/w3 runs/w4 --out widths.html\n\n"
    "clcalib compare runs/a runs/b --json"
)


def compare_command(
    folders: Annotated[list[Path], typer.Argument(metavar="OUT...", help="Output folders of at least two runs.")],
    *,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="Write an HTML page, too: compare.html, say.")
    ] = None,
    is_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
) -> None:
    """Put runs side by side: what they were given, what they lost, and how they differ from the first.

    Which settings differ is told first.  A difference to the first run is
    taken image by image, so it needs the same evaluation images in both:
    in points, with the interval that holds 95 % of the differences when
    images are drawn again, and the p-value of McNemar's exact test.  A
    difference whose interval holds 0 may be chance.

    Runs of other networks or other images are shown, and marked as not
    comparable.

    One test is one test: whoever compares many runs and picks the best has
    chosen on these images, and needs others for a figure to publish.
    """
    from clcalib.cli.actions.compare import put_side_by_side

    put_side_by_side(folders, out, is_json=is_json)
