"""Completion: what the shells are given."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Mapping

import pytest

from clcalib.calibrate.precision import PRECISIONS
from clcalib.calibrate.recipes import RECIPES
from clcalib.cli import completion, main
from clcalib.cli.names import names_of, number_of
from clcalib.data.augmentation import AUGMENTATIONS
from clcalib.evaluate import detection
from clcalib.export.runtimes import bench
from clcalib.export.runtimes.runtime import RUNTIMES
from clcalib.named_models import LIBRARIES


def asked(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], shell: str, **environment: str
) -> list[str]:
    monkeypatch.setenv("_CLCALIB_COMPLETE", f"complete_{shell}")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit) as ended:
        main([])
    assert ended.value.code == 0
    return capsys.readouterr().out.split()


def bash(words: str, place: int) -> dict[str, str]:
    return {"COMP_WORDS": words.replace(" ", "\n"), "COMP_CWORD": str(place)}


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("clcalib quantize --recipe st", ["straight_through"]),
        ("clcalib quantize --target op", ["openvino", "openvino-avx2"]),
        ("clcalib describe --bits w2", ["w2a4", "w2a2"]),
        ("clcalib recipes last", ["last_phase"]),
        ("clcalib quantize --augment flip,c", ["flip,crop", "flip,cutmix"]),
        ("clcalib rec", ["recipes"]),
    ],
)
def test_bash_gets_names(
    words: str, expected: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert asked(monkeypatch, capsys, "bash", **bash(words, len(words.split()) - 1)) == expected


def test_names_of_networks_behind_a_colon(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("torchvision")
    # bash cuts the word at the colon, and wants the last part only.
    words = "clcalib quantize --model torchvision : resnet1"
    expected = ["resnet101", "resnet152", "resnet18"]
    assert asked(monkeypatch, capsys, "bash", **bash(words, 5)) == expected
    whole = {"_TYPER_COMPLETE_ARGS": "clcalib quantize --model torchvision:resnet1"}
    fish = asked(monkeypatch, capsys, "fish", _TYPER_COMPLETE_FISH_ACTION="get-args", **whole)
    assert fish == [f"torchvision:{name}" for name in expected]
    zsh = " ".join(asked(monkeypatch, capsys, "zsh", **whole))
    assert all(name in zsh for name in expected)


@pytest.mark.parametrize(
    ("words", "place", "joined", "new_place", "cut"),
    [
        ("clcalib --model timm : res", 4, "clcalib --model timm:res", 2, 5),
        ("clcalib --model timm :", 3, "clcalib --model timm:", 2, 5),
        ("clcalib --model timm : resnet18 --out", 5, "clcalib --model timm:resnet18 --out", 3, 0),
        ("clcalib --model timm : resnet18", 5, "clcalib --model timm:resnet18", 3, 0),
        ("clcalib quantize --rec", 2, "clcalib quantize --rec", 2, 0),
    ],
)
def test_words_that_bash_cut_are_joined(words: str, place: int, joined: str, new_place: int, cut: int) -> None:
    environment = {"_CLCALIB_COMPLETE": "complete_bash", **bash(words, place)}
    shown, before = io.StringIO(), sys.stdout
    sys.stdout = shown
    try:
        with completion.with_whole_words(environment):
            sys.stdout.write("timm:resnet18\n")
    finally:
        sys.stdout = before
    assert (environment["COMP_WORDS"], environment["COMP_CWORD"]) == (joined, str(new_place))
    assert shown.getvalue() == "timm:resnet18\n"[cut:]


def test_other_shells_and_open_quotation_marks_are_left_alone() -> None:
    for environment in ({"_CLCALIB_COMPLETE": "complete_zsh", **bash("a : b", 2)},
                        {"_CLCALIB_COMPLETE": "complete_bash", **bash("a 'b", 1)}, {}):  # fmt: skip
        before = dict(environment)
        with completion.with_whole_words(environment):
            assert environment == before


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_every_shell_gets_its_script(
    shell: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("_CLCALIB_COMPLETE", f"source_{shell}")
    with pytest.raises(SystemExit) as ended:
        main([])
    assert ended.value.code == 0
    assert "_CLCALIB_COMPLETE=complete_" in capsys.readouterr().out


def test_names_are_those_of_the_tables() -> None:
    assert completion.recipes("") == list(RECIPES)
    assert completion.models("net.py:bu") == []
    assert completion.models("") == ["torchvision:", "timm:"]
    assert os.environ.get("_CLCALIB_COMPLETE") is None


@pytest.mark.parametrize(
    ("place", "table"),
    [
        (completion.AUGMENTATIONS, AUGMENTATIONS),
        (completion.LIBRARIES, LIBRARIES),
        (completion.PRECISIONS, PRECISIONS),
        (completion.RECIPES, RECIPES),
        (completion.RUNTIMES, RUNTIMES),
    ],
)
def test_names_that_are_read_from_the_source_are_those_of_the_tables(
    place: tuple[str, str], table: Mapping[str, object]
) -> None:
    assert names_of(*place) == tuple(table)


def test_numbers_that_are_read_from_the_source_are_those_of_the_modules() -> None:
    assert number_of("clcalib.export.runtimes.bench", "ROUNDS") == bench.ROUNDS
    assert number_of("clcalib.evaluate.detection", "SCORE_THRESHOLD") == detection.SCORE_THRESHOLD
    with pytest.raises(LookupError, match="assigns nothing to NO_SUCH_NAME"):
        number_of("clcalib.evaluate.detection", "NO_SUCH_NAME")
