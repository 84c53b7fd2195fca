"""A headless browser for the pages, where there is one."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from typing import Any

import pytest


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Chromium through Playwright; skips with a reason where either is missing."""
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="playwright is not installed (pip install playwright)"
    )
    program = next((found for name in ("chromium", "chromium-browser") if (found := shutil.which(name))), None)
    if program is None:
        pytest.skip("no chromium on the PATH (apt-get install chromium)")
    with playwright.sync_playwright() as session:
        opened = session.chromium.launch(executable_path=program, args=["--no-sandbox"])  # tests may run as root
        yield opened
        opened.close()
