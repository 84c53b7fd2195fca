"""What the site has besides the pages of ``docs``: files of the repository that pages link to, and the command line.

A link of a page to a file outside ``docs``, ``../SECURITY.md`` say, works where the repository is browsed.  Here the
file becomes a page of the site, or a file beside it, and the link leads there.  A link to a file that does not exist
ends the build.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from clcalib.cli.app import app

ROOT = Path(__file__).resolve().parent.parent.parent
LINK = re.compile(r"(\]\()([^)\s#:]+)(#[^)\s]*)?(\))")
# An interval behind another one, which would be a link without a target.
INTERVAL = re.compile(r"\[([+-][\d.]+, [+-][\d.]+)\]")
# What a browser would fetch by itself from somewhere else.
FETCHED = re.compile(r"<(?:script|link|img|iframe)\b[^>]*\b(?:src|href)=[\"']?(https?://[^\s\"'>]+)")
# Pages of the repository that have a place in the navigation, and the name that they have there.
PAGES = {
    "CHANGELOG.md": "project/changelog.md",
    "CONTRIBUTING.md": "project/contributing.md",
    "SECURITY.md": "project/security.md",
    "benchmarks/imagenet.md": "project/imagenet_runs.md",
}
COMMANDS = "api/commands.md"
FOLDER = "files"  # where files that are no pages go


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages, and every file outside ``docs`` that a page links to."""
    for origin, uri in PAGES.items():
        files.append(File.generated(config, uri, content=(ROOT / origin).read_text()))
    files.append(File.generated(config, COMMANDS, content=commands()))
    outside: set[str] = set()
    for file in files.documentation_pages():
        text = file.content_string
        outside |= {target for _, link, *_ in LINK.findall(text) if (target := _target(file.src_uri, link))}
    for target in sorted(outside - {name for name in outside if _is_inside(name)} - set(PAGES)):
        _add(files, config, target)
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Let links that leave ``docs`` lead to what ``on_files`` made of their targets."""

    def replaced(match: re.Match[str]) -> str:
        before, link, anchor, after = match.groups()
        target = _target(page.file.src_uri, link)
        if target is None or not (ROOT / target).exists():
            return match.group()  # MkDocs tells of it
        start = posixpath.dirname(page.file.src_uri)
        return f"{before}{posixpath.relpath(_place(target), start or '.')}{anchor or ''}{after}"

    return LINK.sub(replaced, INTERVAL.sub(r"\\[\1\\]", markdown))


def on_post_page(output: str, page: Page, config: MkDocsConfig) -> str:
    """End the build where a page would need a network to be shown."""
    if found := FETCHED.search(output):
        raise PluginError(f"{page.file.src_uri} would fetch {found[1]}; the site is to be read without a network")
    return output


def commands() -> str:
    """The page of the command line: what ``--help`` says of each command, as plain text."""
    import click
    import typer

    group: Any = typer.main.get_command(app)
    parts = ["# Command line\n\nWhat `clcalib COMMAND --help` says, made from the program when this site is built.\n"]

    def add(path: list[str], command: Any) -> None:
        with click.Context(command, info_name=" ".join(path), terminal_width=100, max_content_width=100) as context:
            text = _plain_help(command, context)
        parts.append(f"## {' '.join(path)}\n\n```text\n{text}\n```\n")
        for name, child in getattr(command, "commands", {}).items():
            add([*path, name], child)

    add(["clcalib"], group)
    return "\n".join(parts)


def _plain_help(command: Any, context: Any) -> str:
    """The help without colours and frames: usage, text, arguments and options."""
    import click

    formatter = click.HelpFormatter(width=100, max_width=100)
    click.Command.format_usage(command, context, formatter)
    if command.help:
        formatter.write_paragraph()
        with formatter.indentation():
            formatter.write_text(_unmarked(command.help))
    rows = [record for parameter in command.get_params(context) if (record := parameter.get_help_record(context))]
    if rows:
        with formatter.section("Options"):
            formatter.write_dl([(name, _unmarked(text)) for name, text in rows])
    children = getattr(command, "commands", {})
    if children:
        with formatter.section("Commands"):
            formatter.write_dl([(name, child.get_short_help_str(200)) for name, child in children.items()])
    return formatter.getvalue().rstrip()


def _unmarked(text: str) -> str:
    """A text without Rich's marks; ``[required]`` and ``[default: ...]`` stay."""
    return re.sub(r"\[/?(?:bold|dim|italic)\]", "", text)


def _origin(uri: str) -> str:
    """Where a page of the site lies in the repository."""
    names = {place: origin for origin, place in PAGES.items()}
    return names.get(uri, f"docs/{uri}")


def _target(uri: str, link: str) -> str | None:
    """The file of the repository that a link of a page means; None for a link that MkDocs resolves by itself."""
    if link.startswith("/") or uri == COMMANDS:
        return None
    origin = _origin(uri)
    target = posixpath.normpath(posixpath.join(posixpath.dirname(origin), link))
    if target.startswith(".."):
        raise PluginError(f"{origin} links to {link}, outside the repository")
    return None if _is_inside(origin) and _is_inside(target) else target


def _is_inside(target: str) -> bool:
    return target.startswith("docs/")


def _place(target: str) -> str:
    """Where a file of the repository is in the site."""
    if _is_inside(target):
        return target.removeprefix("docs/")
    if target in PAGES:
        return PAGES[target]
    is_page = (ROOT / target).is_dir() or target.endswith(".py")
    return f"{FOLDER}/{target}.md" if is_page else f"{FOLDER}/{target}"


def _add(files: Files, config: MkDocsConfig, target: str) -> None:
    path = ROOT / target
    if path.is_dir():
        below = sorted(each.relative_to(path).as_posix() for each in path.rglob("*.json"))
        base = posixpath.basename(target)
        lines = [f"# {target}", "", f"{len(below)} files.", "", *(f"* [{name}]({base}/{name})" for name in below)]
        files.append(File.generated(config, _place(target), content="\n".join([*lines, ""])))
        for name in below:
            _copy(files, config, f"{target}/{name}")
    elif path.suffix == ".py":
        text = f"# {target}\n\n````python\n{path.read_text()}````\n"
        files.append(File.generated(config, _place(target), content=text))
    elif path.is_file():
        _copy(files, config, target)
    else:
        raise PluginError(f"a page links to {target}, which does not exist")


def _copy(files: Files, config: MkDocsConfig, target: str) -> None:
    if files.get_file_from_path(_place(target)) is None:
        name = _place(target)
        files.append(File.generated(config, name, abs_src_path=str(ROOT / target)))
