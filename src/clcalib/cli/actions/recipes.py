"""``clcalib recipes``: the methods by name, and all values of one of them."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from clcalib.calibrate.recipe import Recipe
from clcalib.calibrate.recipes import ADDITIONS, RECIPES
from clcalib.cli.messages import new_console
from clcalib.cli.recipe_facts import (
    Option,
    RecipeFacts,
    facts_of,
    options_of,
    phase_values,
    plain_text,
)
from clcalib.cli.results import show_json
from clcalib.errors import ArgumentError
from clcalib.report.formats import MISSING, new_table


def show_recipes(name: str | None, *, is_json: bool) -> None:
    """Print the table of recipes, or all of one.

    Raises:
        ArgumentError: there is none of this name.
    """
    console = new_console()
    if name is None:
        found = [facts_of(each) for each in RECIPES]
        if is_json:
            show_json(found)
        else:
            _show_all(found, console)
        return
    known = {**RECIPES, **ADDITIONS}
    if name not in known:
        near = difflib.get_close_matches(name, known, 1, 0.4)
        remedy = f"did you mean {near[0]}?" if near else ""
        raise ArgumentError("NAME", f"one of {', '.join(known)}", repr(name), remedy)
    if is_json:
        show_json(_facts(name))
    elif name in ADDITIONS:
        console.print(Text(_summary(ADDITIONS[name]), style="bold"))
        console.print()
        console.print(_options_table(name, options_of(ADDITIONS[name])))
    else:
        _show_one(facts_of(name), console)


def _facts(name: str) -> dict[str, Any]:
    if name in ADDITIONS:
        function = ADDITIONS[name]
        return {"name": name, "summary": _summary(function), "options": options_of(function)}
    function = RECIPES[name]
    phases = [phase_values(phase) for phase in function().all_phases]
    return {**vars(facts_of(name)), "options": options_of(function), "phase_values": phases}


def _summary(function: Callable[..., Recipe]) -> str:
    return plain_text(function.__doc__ or "").partition("\n\n")[0]


def _show_all(rows: list[RecipeFacts], console: Console) -> None:
    table = new_table("Recipes")
    table.add_column("recipe", style="bold", no_wrap=True)
    table.add_column("paper", overflow="fold")
    table.add_column("unit", no_wrap=True)
    table.add_column("phases", justify="right", no_wrap=True)
    table.add_column("steps", justify="right", no_wrap=True)
    table.add_column("optimises")
    for row in rows:
        steps = f"{row.steps:,}" if row.steps else MISSING
        phases = str(len(row.phases) or MISSING)
        table.add_row(
            row.name, Text(row.paper or MISSING), row.unit, phases, steps, "; ".join(row.optimises) or "nothing"
        )
    console.print(table)
    console.print()
    for row in rows:
        console.print(Text.assemble((f"{row.name}: ", "bold"), row.when), soft_wrap=False)
    console.print()
    text = "clcalib recipes NAME shows all values; biases, last_phase, tuning, contrastive can be laid over any recipe"
    console.print(Text(text, style="dim"))


def _show_one(facts: RecipeFacts, console: Console) -> None:
    console.print(Text(facts.summary))
    console.print()
    console.print(Text.assemble(("when to use: ", "bold"), facts.when))
    console.print()
    options = options_of(RECIPES[facts.name])
    if options:
        console.print(_options_table("recipe", options))
        console.print()
    recipe = RECIPES[facts.name]()
    table = new_table("Phases, as they come out")
    table.add_column("", style="bold", no_wrap=True)
    phases = [phase_values(phase) for phase in recipe.all_phases]
    for values in phases:
        table.add_column(values.pop("name"))
    rows = dict.fromkeys(key for values in phases for key in values)
    for key in rows:
        table.add_row(key, *(Text(values.get(key, "")) for values in phases))
    if phases:
        console.print(table)
    start = "error feedback" if recipe.start == "error_feedback" else "nearest rounding"
    told = [f"one {recipe.unit} at a time, from the codes of {start}"]
    told += ["the first unit is left at nearest rounding"] if recipe.skips_first_unit else []
    correction = recipe.correction
    if correction is not None:
        told.append(f"inputs corrected in {correction.steps} steps a batch, strength {correction.strength:g}")
    console.print(Text("; ".join(told)))


def _options_table(section: str, options: list[Option]) -> Table:
    table = new_table(f"Options: keys of [{section}] in a TOML, or --set {section}.KEY=VALUE")
    table.add_column("key", style="bold", no_wrap=True)
    table.add_column("default", no_wrap=True)
    table.add_column("what it is")
    for option in options:
        default = MISSING if option.default is None else _toml(option.default)
        table.add_row(option.name, Text(default), Text(option.meaning))
    return table


def _toml(value: Any) -> str:
    """A value as TOML has it; each item of a list on a line, as the column is narrow."""
    if isinstance(value, tuple):
        return f"[{f',{chr(10)} '.join(map(_toml, value))}]"
    return str(value).lower() if isinstance(value, bool) else f'"{value}"' if isinstance(value, str) else f"{value:g}"
