"""Help: every example in it is understood by the parser, and every command has some."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Iterator

import pytest
import typer
from typer.main import get_command

from clcalib.cli import app as root
from clcalib.cli import main

COMMANDS = get_command(root.app)


def commands() -> Iterator[tuple[str, object]]:
    for name, command in COMMANDS.commands.items():  # type: ignore[attr-defined]
        children = getattr(command, "commands", None)
        if children:
            yield from ((f"{name} {child}", each) for child, each in children.items())
        else:
            yield name, command


def examples() -> Iterator[str]:
    texts = [root.EXAMPLES, *(str(getattr(command, "epilog", "")) for _, command in commands())]
    for text in texts:
        yield from (line for line in text.split("\n\n") if line.startswith("clcalib "))


def test_every_command_has_an_example() -> None:
    lines = list(examples())
    for name, _ in commands():
        assert any(line.startswith(f"clcalib {name}") for line in lines), name
    assert len(lines) > 40


@pytest.mark.parametrize("line", sorted(set(examples())))
def test_every_example_is_understood(line: str) -> None:
    """Options exist, values have their types, arguments are as many as they may be; nothing is run."""
    words = shlex.split(line)[1:]
    command = COMMANDS
    context = None
    while hasattr(command, "commands"):
        name = words.pop(0)
        assert name in command.commands, f"{line}: there is no command {name}"
        command = command.commands[name]
        context = typer.Context(command, info_name=name, parent=context)
    context = command.make_context(line, words, resilient_parsing=False)
    given = {key: value for key, value in context.params.items() if value not in (None, False, ())}
    assert given or not words


@pytest.mark.parametrize("name", ["", *(name for name, _ in commands())])
def test_help_fits_a_terminal_of_80_columns_and_has_no_colours_in_a_pipe(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("GITHUB_ACTIONS", "true")  # which typer takes for a terminal
    assert main([*name.split(), "--help"]) == 0
    printed = capsys.readouterr().out
    assert "Usage: clcalib" in printed
    assert "\x1b" not in printed
    assert max(len(line) for line in printed.splitlines()) <= 80


def test_help_and_completion_do_without_torch() -> None:
    """Whoever asks for help, or presses the tabulator, does not wait for torch."""
    words = {"_CLCALIB_COMPLETE": "complete_bash", "COMP_CWORD": "3"}
    told = [
        *(["--help"], ["--version"], *([*name.split(), "--help"] for name, _ in commands())),
        *({**words, "COMP_WORDS": f"clcalib quantize {line}"} for line in ("--recipe q", "--precision b", "--model t")),
        {**words, "COMP_WORDS": "clcalib quantize --rec", "COMP_CWORD": "2"},
    ]
    code = (
        "import os, sys\n"
        "sys.modules['torch'] = None\n"
        "from clcalib.cli import main\n"
        f"for given in {told!r}:\n"
        "    if isinstance(given, dict):\n"
        "        os.environ.update(given)\n"
        "    try:\n"
        "        assert main([] if isinstance(given, dict) else given) == 0, given\n"
        "    except SystemExit as ended:\n"
        "        assert ended.code == 0, given\n"
    )
    finished = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False, timeout=120,
        env={**os.environ, "COLUMNS": "80"},
    )  # fmt: skip
    assert finished.returncode == 0, finished.stderr
    assert "clcalib quantize [OPTIONS]" in finished.stdout
    assert finished.stdout.endswith("qdrop\nbfloat16\ntorchvision:\ntimm:\n--recipe\n")
