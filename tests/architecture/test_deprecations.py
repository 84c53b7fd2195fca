"""Nothing that is deprecated outlives the version in which it was promised to go."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import clcalib
from clcalib.deprecation import version_of

SOURCE = Path(clcalib.__file__).parent
HELPERS = {"deprecated", "renamed_argument", "warn_deprecated"}


def promises(source: str, file: str) -> Iterator[tuple[str, str]]:
    """The place and ``removed_in`` of each use of a helper; versions must be literals, so that one can see them."""
    for node in ast.walk(ast.parse(source)):
        name = getattr(node.func, "attr", getattr(node.func, "id", "")) if isinstance(node, ast.Call) else ""
        if name not in HELPERS:
            continue
        given = {keyword.arg: keyword.value for keyword in node.keywords}
        versions = [given.get(key) for key in ("since", "removed_in")]
        place = f"{file}:{node.lineno}"
        assert all(isinstance(each, ast.Constant) for each in versions), f"{place} computes a version"
        yield place, str(versions[1].value)


def broken(source: str, file: str, current: str) -> list[str]:
    """What is still there although its version has come."""
    return [
        f"{place} was to be removed in {removed_in}: remove it, and what uses it"
        for place, removed_in in promises(source, file)
        if version_of(current) >= version_of(removed_in)
    ]


def test_every_promise_is_kept() -> None:
    files = [path for path in sorted(SOURCE.rglob("*.py")) if path.name != "deprecation.py"]
    found = [problem for path in files for problem in broken(path.read_text(), path.name, clcalib.__version__)]
    assert files
    assert found == []


def test_a_broken_promise_is_found() -> None:
    source = '@deprecated(since="0.2", removed_in="0.4", instead="new")\ndef old(): ...\n'
    assert broken(source, "a.py", "0.3.9") == []
    assert broken(source, "a.py", "0.4.0") == ["a.py:1 was to be removed in 0.4: remove it, and what uses it"]
