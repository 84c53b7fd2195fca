from __future__ import annotations

import functools
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
from tests.tiny import images, tiny

import clcalib
from clcalib.errors import SlowPathWarning
from clcalib.fused import build, calls

SOURCE = Path(build.__file__).parents[2]
SCRIPT = """
import warnings
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    from clcalib.fused import calls
    found = [calls.is_available() for _ in range(3)]
print(found[0], len(set(found)), *[type(w.message).__name__ + ": " + str(w.message) for w in caught])
"""


def python(**environment: str) -> str:
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("CLCALIB", "CXX"))}
    process = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        env=kept | {"PYTHONPATH": str(SOURCE)} | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return process.stdout.strip()


needs_compiler = pytest.mark.skipif(not calls.is_available(), reason="the compiled kernels cannot be built here")


@needs_compiler
def test_kernels_are_built_once_into_the_cache(tmp_path: Path) -> None:
    before = os.umask(0o002)  # of most distributions: what the compiler writes is then open to the user's group
    try:
        assert python(CLCALIB_CACHE=str(tmp_path)) == "True 1"
        (library,) = tmp_path.iterdir()
        changed = library.stat().st_mtime_ns
        assert python(CLCALIB_CACHE=str(tmp_path)) == "True 1"
    finally:
        os.umask(before)
    assert [path.stat().st_mtime_ns for path in tmp_path.iterdir()] == [changed]


def test_without_a_compiler_one_notice_says_what_to_do(tmp_path: Path) -> None:
    said = python(CLCALIB_CACHE=str(tmp_path), PATH=str(tmp_path))
    assert said.startswith("False 1 SlowPathWarning: calibration runs without its fused CPU kernels")
    assert said.count("SlowPathWarning") == 1
    assert "install a C++ compiler" in said


def test_a_broken_compiler_is_told_by_its_last_words(tmp_path: Path) -> None:
    compiler = tmp_path / "compiler"
    compiler.write_text("#!/bin/sh\necho cannot find cc1plus >&2\nexit 1\n")
    compiler.chmod(0o755)
    said = python(CLCALIB_CACHE=str(tmp_path / "cache"), CXX=str(compiler))
    assert said.startswith("False 1 SlowPathWarning")
    assert "cannot find cc1plus" in said
    assert not list((tmp_path / "cache").iterdir())


def test_they_can_be_switched_off(tmp_path: Path) -> None:
    assert python(CLCALIB_CACHE=str(tmp_path), CLCALIB_NATIVE="0") == "False 1"
    assert not list(tmp_path.iterdir())


@needs_compiler
def test_nothing_is_run_from_a_folder_that_others_can_write_to(tmp_path: Path) -> None:
    folder, elsewhere = tmp_path / "shared", tmp_path / "temporary"
    folder.mkdir()
    folder.chmod(0o777)
    elsewhere.mkdir()
    assert python(CLCALIB_CACHE=str(folder), TMPDIR=str(elsewhere)) == "True 1"
    assert not list(folder.iterdir())
    assert not list(elsewhere.iterdir())  # the folder that took its place is gone


@pytest.mark.parametrize("is_budgeted", [False, True])
def test_the_notice_is_heard_whoever_needs_them_first(is_budgeted: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some of a run's warnings are told elsewhere and so are silenced; this one is told once, at the first need."""

    @functools.cache
    def is_available() -> bool:
        warnings.warn("no compiler", SlowPathWarning, stacklevel=2)
        return False

    monkeypatch.setattr(calls, "is_available", is_available)
    options = {"bits": clcalib.Bits(4, 4), "recipe": clcalib.recipes.nearest(), "weight_range": "minmax"}
    calibration = clcalib.CalibrationSet.from_tensor(images(16))
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        if is_budgeted:
            clcalib.quantize_to_budget(tiny(), calibration, budget=clcalib.Budget(size=1200), **options)
        else:
            clcalib.quantize(tiny(), calibration, **options)
    assert [str(warning.message) for warning in told if warning.category is SlowPathWarning] == ["no compiler"]


@needs_compiler
def test_the_compiler_may_have_options(tmp_path: Path) -> None:
    assert python(CLCALIB_CACHE=str(tmp_path), CXX="c++ -O2") == "True 1"


@needs_compiler
def test_a_cache_that_cannot_be_written_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert python(CLCALIB_CACHE=str(tmp_path / "file" / "below")) == "True 1"
