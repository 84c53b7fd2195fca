"""Links between the repository's Markdown files lead somewhere, anchors included, and commands that they show exist."""

from __future__ import annotations

import re
import shlex
import subprocess
import unicodedata
import urllib.parse
from pathlib import Path

import pytest
import typer

from clcalib.cli.app import app
from tests.docs.blocks import DOCS, FENCE, ROOT, blocks, name_of

LINK = re.compile(r"(?<!\\)!?\[(?:[^\[\]]|\[[^\]]*\])*\]\(([^)\s]+)\)")
ADDRESS = re.compile(r"""\bhttps?://[^\s<>()\[\]"'`|]+""")
# All addresses outside of the project that its pages send a reader to.  Whether they still answer is looked at before a
# release (RELEASING.md), and not by a test, which would need a network.
ELSEWHERE = {
    "https://github.com/mozilla/diversity",
    "https://keepachangelog.com/en/1.1.0/",
    "https://semver.org/",
    "https://www.contributor-covenant.org",
    "https://www.contributor-covenant.org/faq",
    "https://www.contributor-covenant.org/translations",
    "https://www.contributor-covenant.org/version/2/1/code_of_conduct.html",
}
HEADING = re.compile(r"^#+ +(.+?)\s*$", re.MULTILINE)
pytestmark = pytest.mark.skipif(not DOCS.exists(), reason="the pages are not part of this copy")
# Pages that the site makes when it is built (docs/site/hooks.py).
MADE = {"docs/api/commands.md"}


def markdown_files() -> list[Path]:
    """Every Markdown file of the project, whether or not it lies in a checkout of git."""
    listed = subprocess.run(["git", "ls-files", "*.md"], cwd=ROOT, capture_output=True, text=True)
    names = listed.stdout.split() if listed.returncode == 0 else []
    found = [ROOT / name for name in names] or [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]
    return [path for path in found if path.exists()]


def anchors(page: Path) -> set[str]:
    """What headings are called in links: small letters, no punctuation, hyphens for spaces."""
    names: dict[str, int] = {}
    for heading in HEADING.findall(FENCE.sub("", page.read_text())):
        text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        text = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
        name = re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", text).strip().lower())
        names[name] = names.get(name, 0) + 1
    return set(names) | {f"{name}_{number}" for name, count in names.items() for number in range(1, count)}


@pytest.mark.parametrize("page", markdown_files(), ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    problems = []
    for link in LINK.findall(FENCE.sub("", page.read_text())):
        if link.startswith(("http://", "https://")):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if target.is_relative_to(ROOT) and name_of(target) in MADE:
            continue
        if not target.exists():
            problems.append(f"{link}: no such file")
        elif anchor and anchor not in anchors(target):
            problems.append(f"{link}: no such heading")
    assert not problems


def test_links_out_of_the_project_are_known_and_well_formed() -> None:
    texts = [FENCE.sub("", page.read_text()) for page in markdown_files()]
    found = {address.rstrip(".,;:") for text in texts for address in ADDRESS.findall(text)}
    assert {address for address in found if "//localhost" not in address} == ELSEWHERE
    for address in ELSEWHERE:
        parts = urllib.parse.urlsplit(address)
        assert parts.scheme == "https", address
        assert re.fullmatch(r"([a-z0-9-]+\.)+[a-z]{2,}", parts.netloc), address


def shown_commands() -> list[tuple[str, str]]:
    """(page, command line) of everything that begins with ``clcalib`` in a block of a shell; continued lines as one."""
    found = []
    for page in markdown_files():
        for block in blocks(page):
            if block.language in ("console", "sh", "bash"):
                lines = block.code.replace("\\\n", " ").splitlines()
                found += [(name_of(page), line.strip()) for line in lines if line.strip().startswith("clcalib ")]
    return found


@pytest.mark.parametrize(("page", "line"), shown_commands())
def test_commands_and_flags_exist(page: str, line: str) -> None:
    words = shlex.split(line, comments=True)[1:]
    command = typer.main.get_command(app)
    while words and words[0] in getattr(command, "commands", {}):
        command = command.commands[words.pop(0)]
    assert not hasattr(command, "commands"), f"{page}: {line}: no such command"
    known = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
    given = {word.partition("=")[0] for word in words if word.startswith("--")}
    assert given <= known | {"--help", "--debug"}, f"{page}: {line}"


def test_there_are_pages_and_commands() -> None:
    assert len(markdown_files()) > 40
    assert len(shown_commands()) > 25
