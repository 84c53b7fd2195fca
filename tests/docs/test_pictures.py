"""The pictures of the pages are what their scripts draw."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.docs.blocks import DOCS, ROOT

SCRIPT = DOCS / "pictures" / "draw.py"
pytestmark = pytest.mark.skipif(not SCRIPT.exists(), reason="the pages are not part of this copy")


def test_the_files_are_what_is_drawn() -> None:
    done = subprocess.run([sys.executable, str(SCRIPT), "--check"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
