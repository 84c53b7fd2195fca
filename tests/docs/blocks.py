"""Fenced blocks of Markdown pages."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent.parent
DOCS = ROOT / "docs"
FENCE = re.compile(r"^(?P<indent> *)```(?P<info>[^\n`]*)\n(?P<code>.*?)^(?P=indent)```$", re.DOTALL | re.MULTILINE)
TITLE = re.compile(r'title="([^"]+)"')


class Block(NamedTuple):
    """A fenced block: its language, the file that it shows, its text, and the line that it begins in."""

    language: str
    title: str | None
    code: str
    line: int


def blocks(page: Path) -> list[Block]:
    """The fenced blocks of a page, in their order."""
    text, found = page.read_text(), []
    for match in FENCE.finditer(text):
        info = match["info"].strip()
        title = TITLE.search(info)
        code = "".join(line.removeprefix(match["indent"]) for line in match["code"].splitlines(keepends=True))
        start = text.count("\n", 0, match.start("code")) + 1
        found.append(Block(info.split(" ")[0], title[1] if title else None, code, start))
    return found


def pages() -> list[Path]:
    """Every Markdown page of the documentation."""
    return sorted(DOCS.rglob("*.md"))


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()
