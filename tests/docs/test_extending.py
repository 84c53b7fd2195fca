"""The files, lines and tests of docs/extending.md, in a copy of the source."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from clcalib.processor import adds_in_16_bits
from tests.docs.blocks import DOCS, ROOT, Block, blocks

PAGE = DOCS / "extending.md"
pytestmark = pytest.mark.skipif(not PAGE.exists(), reason="the pages are not part of this copy")


@pytest.mark.slow
def test_every_file_line_and_test_of_the_page_works(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "src", tmp_path / "src", ignore=shutil.ignore_patterns("__pycache__"))
    shown = [block for block in blocks(PAGE) if block.title is not None]
    for block in shown:
        target = tmp_path / str(block.title)
        target.write_text(changed(target.read_text(), block) if block.language == "diff" else block.code)
    tests = sorted(path.name for path in tmp_path.glob("test_*.py"))
    assert len(tests) == 6  # objective, critic, recipe, range rule, target, exporter
    if adds_in_16_bits():
        tests.remove("test_edge.py")  # its weights have 8 bits, whose sums overflow on this processor
    folders = (tmp_path / "src", tmp_path, ROOT)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, folders)), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-W", "error", "-p", "no:cacheprovider", *tests]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr
    assert re.search(r"^\d+ passed", done.stdout.splitlines()[-1])


def changed(text: str, block: Block) -> str:
    """The text with the added lines of a diff behind its line of context, which occurs once."""
    context, *added = block.code.splitlines()
    assert text.count(context[1:] + "\n") == 1, f"{block.title}: {context}"
    assert added
    assert all(line.startswith("+") for line in added)
    return text.replace(context[1:] + "\n", "\n".join([context[1:], *(line[1:] for line in added)]) + "\n")


TABLES = {
    "CRITICS": "objectives/critics.py",
    "FALSE_NEGATIVES": "objectives/keys.py",
    "LOSSES": "objectives/contrastive.py",
    "OPERATORS": "export/onnx/operators.py",
    "RANGE_RULES": "quant/ranges.py",
    "RECIPES": "calibrate/recipes/__init__.py",
    "TARGETS": "quant/targets.py",
    "WRITERS": "deployment.py",
}


@pytest.mark.parametrize(("table", "place"), TABLES.items())
def test_the_tables_are_where_the_page_says(table: str, place: str) -> None:
    assert re.search(rf"^{table}\b.*=", (ROOT / "src" / "clcalib" / place).read_text(), re.MULTILINE)
    assert f"`{table}`" in PAGE.read_text()
