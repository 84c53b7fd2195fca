"""``clcalib recipes``: the methods by name, and all values of one of them."""

from __future__ import annotations

from typing import Annotated

import typer

from clcalib.cli import completion
from clcalib.cli.options import JsonOption

EXAMPLES = (
    "[bold]Examples[/bold]\n\n"
    "clcalib recipes\n\n"
    "clcalib recipes qdrop\n\n"
    "clcalib recipes contrastive\n\n"
    "clcalib recipes brecq --json\n\n"
    "clcalib quantize run.toml --recipe brecq --steps 2000 --set recipe.rounding_weight=0.02 --out runs/brecq"
)


def recipes(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="[NAME]",
            autocompletion=completion.recipes_and_additions,
            help="One of them, or biases, last_phase, tuning or contrastive, laid over any: all its values.",
        ),
    ] = None,
    *,
    is_json: JsonOption = False,
) -> None:
    """List the recipes of clcalib quantize --recipe, or show all values of one.

    The options of a recipe are the keys of the section recipe in a TOML, or
    --set recipe.KEY=VALUE.
    """
    from clcalib.cli.actions.recipes import show_recipes

    show_recipes(name, is_json=is_json)
