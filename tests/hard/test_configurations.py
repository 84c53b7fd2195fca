"""Random configurations, sound ones with anything put in anywhere: what comes out is a configuration or our error."""

from __future__ import annotations

import json
import re
import typing
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from clcalib.calibrate.recipes import RECIPES
from clcalib.config import build
from clcalib.config_problems import section_of
from clcalib.config_sections import EvaluationConfig, ModelConfig, OnnxEvaluationConfig, RunConfig
from clcalib.config_sources import merge, parse_assignment, read_toml, with_absolute_paths
from clcalib.errors import ClcalibError, ConfigError
from tests.hard.figures import record, size

COUNT = size(200, 10_000)
KINDS: tuple[type[BaseModel], ...] = (RunConfig, EvaluationConfig, ModelConfig, OnnxEvaluationConfig)
OUTCOMES: Counter[str] = Counter()


def keys_of(model: type[BaseModel]) -> dict[str, list[str]]:
    """Section -> its keys, of all sections that have some."""
    sections = {name: section_of(field.annotation) for name, field in model.model_fields.items()}
    return {name: list(section.model_fields) if section else [] for name, section in sections.items()}


SECTIONS = keys_of(RunConfig)
OWN_WORDS = sorted({word for keys in SECTIONS.values() for word in keys} | set(RECIPES))
SCALARS = st.one_of(
    st.integers(),
    st.sampled_from([-1, 0, 1, 2, 4, 8, 32, 1 << 31, 1 << 63, 1 << 64, 1 << 5000]),
    st.floats(),
    st.booleans(),
    st.none(),
    st.text(max_size=20),
    st.sampled_from(["", "~", "~nosuchuser/x", "\0", "a" * 5000, "W4A8", "same", "cuda:99", "2 GB", "9e999 B"]),
    st.sampled_from(OWN_WORDS),
    st.dates(),
    st.times(),
)  # fmt: skip
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=8), inner, max_size=4)),
    max_leaves=8,
)
SOUND: dict[str, Any] = {
    "model": {"entry": "torch.nn:Flatten"},
    "data": {"calibration": "."},
    "recipe": {"name": "qdrop", "steps": 4},
    "run": {"out": "out"},
}


@st.composite
def tables(draw: st.DrawFn) -> dict[str, Any]:
    """A sound configuration in which some keys have other values, and sometimes unknown ones."""
    table: dict[str, Any] = json.loads(json.dumps(SOUND))
    for _ in range(draw(st.integers(0, 5))):
        section = draw(st.sampled_from([*SECTIONS, "unknown"]))
        keys = [*SECTIONS.get(section, []), *OWN_WORDS[:3], "steps", "temperature", "unknown"]
        if draw(st.integers(0, 9)) == 0:
            table[section] = draw(VALUES)
        elif isinstance(table.setdefault(section, {}), dict):
            table[section][draw(st.sampled_from(keys) | st.text(max_size=5))] = draw(VALUES)
    return table


def outcome(make: typing.Callable[[], object]) -> str:
    """What became of it; raises anything that is not an error of clcalib."""
    try:
        make()
    except ClcalibError as error:
        return "refused" if str(error) else "an error without words"
    return "accepted"


@seed(1)
@settings(max_examples=COUNT, suppress_health_check=list(HealthCheck))
@given(tables(), st.sampled_from(KINDS))
def test_a_random_table_is_a_configuration_or_our_error(table: dict[str, Any], kind: type[BaseModel]) -> None:
    def make() -> None:
        build(kind, with_absolute_paths(merge(table), Path.cwd()), "run.toml")

    OUTCOMES[outcome(make)] += 1


@seed(1)
@settings(max_examples=COUNT // 4, suppress_health_check=list(HealthCheck))
@given(st.text(max_size=30), st.sampled_from([f"{a}.{b}" for a, keys in SECTIONS.items() for b in keys] + ["a", "a."]))
def test_a_random_assignment_is_a_table_or_our_error(value: str, key: str) -> None:
    OUTCOMES[outcome(lambda: parse_assignment(f"{key}={value}"))] += 1


@seed(1)
@settings(max_examples=COUNT // 4, suppress_health_check=list(HealthCheck))
@given(tables(), st.lists(st.tuples(st.integers(0, 400), st.text(max_size=6)), max_size=3))
def test_a_random_file_is_a_configuration_or_our_error(
    tmp_path_factory: pytest.TempPathFactory, table: dict[str, Any], changes: list[tuple[int, str]]
) -> None:
    path = tmp_path_factory.getbasetemp() / "random.toml"
    text = "".join(f"[{name}]\n{_lines(values)}" for name, values in table.items() if isinstance(values, dict))
    for place, inserted in changes:
        text = text[:place] + inserted + text[place:]
    path.write_text(text, encoding="utf-8", errors="surrogatepass")
    try:
        build(RunConfig, read_toml(path), str(path))
        told = "accepted"
    except ConfigError as error:
        told = "refused" if str(path) in str(error) else f"an error without the path: {error}"
    assert told in ("accepted", "refused")
    OUTCOMES[told] += 1


def _lines(values: dict[str, Any]) -> str:
    return "".join(f"{_key(key)} = {_toml(value)}\n" for key, value in values.items())


def _key(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else json.dumps(key)


def _toml(value: object) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_key(key)} = {_toml(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    if isinstance(value, str | bool):
        return json.dumps(value)
    if isinstance(value, int) and value.bit_length() > 10_000:
        return "0"
    return str(value)


def test_both_outcomes_were_seen() -> None:
    record("configurations", **OUTCOMES)
    assert sum(OUTCOMES.values()) >= COUNT
    assert OUTCOMES["accepted"] > COUNT // 50
    assert OUTCOMES["refused"] > COUNT // 50


@pytest.mark.parametrize("path", ["~nosuchuser/x", "\0", "a" * 5000, "a/" * 3000, "\udcff"])
@pytest.mark.parametrize(
    "key", ["model.weights", "model.entry", "data.calibration", "data.evaluation", "run.out", "run.spill_folder"]
)
@pytest.mark.parametrize("ending", ["", ".pt", ".py:build"])
def test_a_path_that_the_system_refuses_is_no_surprise(key: str, path: str, ending: str) -> None:
    section, _, name = key.partition(".")
    table = with_absolute_paths(merge(SOUND, {section: {name: path + ending}}), Path.cwd())
    assert outcome(lambda: build(RunConfig, table, "run.toml")) in ("refused", "accepted")
