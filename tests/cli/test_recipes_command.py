"""``clcalib recipes``: every recipe is explained, and what is shown is what runs."""

from __future__ import annotations

import inspect
import json

import pytest

from clcalib.calibrate.recipes import ADDITIONS, RECIPES, brecq, with_contrastive
from clcalib.cli import main
from clcalib.cli.recipe_facts import argument_texts, facts_of, options_of

Capture = pytest.CaptureFixture[str]


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_says_what_it_is_and_when_to_use_it(name: str) -> None:
    facts = facts_of(name)
    assert len(facts.summary) > 40
    assert len(facts.when) > 20
    assert "When to use" not in facts.summary
    recipe = RECIPES[name]()
    assert (facts.unit, facts.steps) == (recipe.unit, recipe.steps_per_unit)
    assert bool(facts.optimises) == (name != "nearest")
    assert all(option.meaning for option in options_of(RECIPES[name]))


def test_papers_are_found() -> None:
    papers = {name: facts_of(name).paper for name in RECIPES}
    assert papers["brecq"] == "Li et al., ICLR 2021"
    assert papers["cl_calib"] == "Shang, Liu, Kompella, Yan, CVPR 2024"
    assert papers["fast"] == ""
    assert sum(bool(paper) for paper in papers.values()) == 7


def test_options_are_those_of_the_signature() -> None:
    for function in (brecq, with_contrastive):
        names = {
            name for name, each in inspect.signature(function).parameters.items() if each.default is not each.empty
        }
        assert {option.name for option in options_of(function)} == names
    assert argument_texts("Do.\n\nArgs:\n    a: one\n        and ``two``.\n    b: three.\n\nRaises:\n    X: no.\n") == {
        "a": "one and two.",
        "b": "three.",
    }


def test_the_table_and_its_json_have_every_recipe(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["recipes"]) == 0
    printed = capsys.readouterr().out
    assert all(f"{name}: " in printed for name in RECIPES)
    assert max(len(line) for line in printed.splitlines()) <= 80
    assert main(["recipes", "--json"]) == 0
    assert [row["name"] for row in json.loads(capsys.readouterr().out)] == list(RECIPES)


def test_one_recipe_shows_all_values(capsys: Capture) -> None:
    assert main(["recipes", "brecq"]) == 0
    printed = capsys.readouterr().out
    for text in ("activation_steps", "Block Reconstruction", "quantized_input_probability", "RoundingPenalty"):
        assert text in printed
    assert main(["recipes", "brecq", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [phase["steps"] for phase in found["phase_values"]] == ["20000", "5000"]
    assert main(["recipes", "contrastive", "--json"]) == 0
    assert "temperature" in {option["name"] for option in json.loads(capsys.readouterr().out)["options"]}


@pytest.mark.parametrize("name", [*RECIPES, *ADDITIONS])
def test_everything_that_has_a_name_can_be_shown(name: str, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["recipes", name]) == 0
    printed = capsys.readouterr().out
    assert max(len(line) for line in printed.splitlines()) <= 80
    function = {**RECIPES, **ADDITIONS}[name]
    for option in options_of(function):
        assert option.name in printed
        if isinstance(option.default, tuple):
            assert all(f'"{item}"' in printed for item in option.default)


def test_an_unknown_recipe_tells_the_nearest(capsys: Capture) -> None:
    assert main(["recipes", "qdorp"]) == 2
    assert "did you mean qdrop?" in capsys.readouterr().err
