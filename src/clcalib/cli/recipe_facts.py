"""What can be said of a recipe, read off its function, its docstrings and the phases that it returns."""

from __future__ import annotations

import dataclasses
import inspect
import re
import sys
from collections.abc import Callable, Iterator
from typing import Any

from clcalib.calibrate.recipe import Phase, Recipe, Term
from clcalib.calibrate.recipes import RECIPES

# Sections of a configuration that are laid over a recipe, with what the same options are called there.

_PAPER = re.compile(r"^[^.(]*\(([^()]*\b\d{4}[^()]*)\)")
_TITLE = re.compile(r'"[^"]*",?\s*')
_WHEN = "When to use:"


@dataclasses.dataclass(frozen=True)
class Option:
    """One option of a recipe: a key of ``[recipe]``."""

    name: str
    default: Any
    meaning: str


@dataclasses.dataclass(frozen=True)
class RecipeFacts:
    """One row of the table.

    Attributes:
        name: in ``RECIPES``.
        paper: authors, venue and year, or an empty string for what comes from no paper.
        summary: the text at the head of its file.
        when: when to use it.
        unit: "layer" or "block".
        phases: their names.
        steps: for each unit, over all phases.
        optimises: what is changed.
    """

    name: str
    paper: str
    summary: str
    when: str
    unit: str
    phases: tuple[str, ...]
    steps: int
    optimises: tuple[str, ...]


def facts_of(name: str) -> RecipeFacts:
    """Everything about one recipe, with its default options."""
    function = RECIPES[name]
    text = plain_text(sys.modules[function.__module__].__doc__ or "")
    summary, _, when = text.partition(_WHEN)
    recipe = function()
    return RecipeFacts(
        name=name,
        paper=paper_of(text),
        summary="\n\n".join(" ".join(part.split()) for part in summary.strip().split("\n\n")),
        when=" ".join(when.split()).rstrip("."),
        unit=recipe.unit,
        phases=tuple(phase.name for phase in recipe.phases),
        steps=recipe.steps_per_unit,
        optimises=tuple(dict.fromkeys(optimised(recipe))),
    )


def paper_of(text: str) -> str:
    """Authors, venue and year of the first sentence.

    Example:
        >>> paper_of('QDrop (Wei et al., "QDrop: Randomly Dropping", ICLR 2022).')
        'Wei et al., ICLR 2022'
    """
    match = _PAPER.match(" ".join(text.split("\n\n")[0].split()))
    return _TITLE.sub("", match[1]) if match else ""


def optimised(recipe: Recipe) -> Iterator[str]:
    """What a recipe changes."""
    if recipe.start == "error_feedback":
        yield "codes, by error feedback"
    for phase in recipe.all_phases:
        if phase.rounding_rate is not None:
            yield "rounding" if phase.rounding == "soft" else "rounding, straight through"
        if phase.weight_scale_rate is not None:
            yield "weight scales"
        if phase.activation_rate is not None:
            yield "activation scales"
        if phase.bias_rate is not None:
            yield "biases"
    if recipe.correction is not None:
        yield "inputs"


def options_of(function: Callable[..., Any]) -> list[Option]:
    """Its keyword arguments with their defaults, and what its docstring says of each."""
    meanings = argument_texts(inspect.getdoc(function) or "")
    parameters = inspect.signature(function).parameters.values()
    given = [each for each in parameters if each.default is not inspect.Parameter.empty]
    return [Option(each.name, each.default, meanings.get(each.name, "")) for each in given]


def argument_texts(docstring: str) -> dict[str, str]:
    """The section ``Args`` of a docstring in Google style: name -> text."""
    found: dict[str, str] = {}
    name, is_inside = "", False
    for line in docstring.splitlines():
        if line and not line.startswith(" "):
            is_inside = line.strip() == "Args:"
        elif is_inside and (match := re.match(r"^    (\w+): (.*)$", line)):
            name = match[1]
            found[name] = match[2]
        elif is_inside and name and line.startswith("        "):
            found[name] += f" {line.strip()}"
    return {key: plain_text(text) for key, text in found.items()}


def phase_values(phase: Phase) -> dict[str, str]:
    """Every value of a phase, as text; its terms as a sum."""
    values = {field.name: getattr(phase, field.name) for field in dataclasses.fields(phase)}
    terms = " + ".join(_term(term) for term in values.pop("terms"))
    return {**{key: "none" if value is None else str(value) for key, value in values.items()}, "loss": terms or "none"}


def plain_text(text: str) -> str:
    """A docstring without the marks of code."""
    return text.replace("``", "").strip()


def _term(term: Term) -> str:
    usual = Term(term.objective)
    odd = [
        f"{field.name} {getattr(term, field.name)}"
        for field in dataclasses.fields(term)
        if field.name not in ("objective", "weight") and getattr(term, field.name) != getattr(usual, field.name)
    ]
    weight = "" if term.weight == 1 else f"{term.weight:g} "
    return f"{weight}{type(term.objective).__name__}" + (f" ({', '.join(odd)})" if odd else "")
