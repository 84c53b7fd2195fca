"""``clcalib doctor``: what is installed here, what can be used, what is missing and how to get it."""

from __future__ import annotations

import typer

from clcalib.cli.options import JsonOption

EXAMPLES = "[bold]Examples[/bold]\n\nclcalib doctor\n\nclcalib doctor --json"
_BROKEN = 1


def doctor(*, is_json: JsonOption = False) -> None:
    """Look at this machine: versions, processor, GPU, compiler, packages, targets, room and cache folders.

    A tiny network is quantized to see that the base works; the exit code is
    0 where it does, whatever optional packages are missing or broken.
    """
    from clcalib.cli.actions.doctor import look

    if not look(is_json=is_json):
        raise typer.Exit(_BROKEN)
