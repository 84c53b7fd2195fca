"""What is shown of a sweep that goes on: lines in a pipe, a display on a terminal, JSON for programs."""

from __future__ import annotations

import io
import json
import threading

from rich.console import Console

from clcalib.cli.sweep_progress import JsonWatcher, LiveWatcher, PlainWatcher, watcher_for
from clcalib.sweep.driver import Progress


def progress(done: int, ended: dict[str, str], *labels: str, failed: int = 0) -> Progress:
    counts = {"queued": 4 - done - failed - len(labels), "running": len(labels), "done": done, "failed": failed}
    return Progress(counts, labels, ended, seconds=60.0, finished=done, slots=2)


LOOKS = [
    progress(0, {}, "net/a", "net/b"),
    progress(1, {"net/a": "done"}, "net/b", "net/c"),
    progress(1, {}, "net/b", "net/c"),
    progress(2, {"net/b": "failed", "net/c": "done"}, "net/d", failed=1),
]
LINES = [
    "4 runs, 0 of them done; up to 2 runs at a time",
    "done net/a  1 of 4; about 3 min 00 s left",
    "failed net/b  3 of 4; about 30 s left",
    "done net/c  3 of 4; about 30 s left",
]


def console(*, is_terminal: bool) -> tuple[Console, io.StringIO]:
    out = io.StringIO()
    # A terminal that erases and goes up; without colours, so that the lines can be read.
    kind = {"force_terminal": is_terminal, "_environ": {"TERM": "xterm"}, "color_system": None}
    return Console(file=out, width=80, height=20, highlight=False, **kind), out  # type: ignore[arg-type]


def screen(text: str) -> list[str]:
    """What a terminal shows of a text: lines, going up and erasing."""
    lines, row, column = [""], 0, 0
    for part in text.replace("\x1b[?25l", "").replace("\x1b[?25h", "").replace("\x1b[2K", "\x1b2").split("\x1b"):
        if part.startswith("2"):
            lines[row], part = "", part[1:]
        elif part.startswith("[1A"):
            row, part = row - 1, part[3:]
        for character in part:
            if character == "\r":
                column = 0
            elif character == "\n":
                row, column = row + 1, 0
                lines += [""] if row == len(lines) else []
            else:
                lines[row] = lines[row][:column].ljust(column) + character + lines[row][column + 1 :]
                column += 1
    return [line.rstrip() for line in lines if line.strip()]


def test_a_pipe_gets_a_line_for_each_run_that_ends() -> None:
    log, out = console(is_terminal=False)
    with watcher_for(log) as watch:
        for look in LOOKS:
            watch(look)
    assert type(watch) is PlainWatcher
    assert out.getvalue().splitlines() == LINES


def test_a_terminal_shows_the_same_lines_and_below_them_what_runs() -> None:
    log, out = console(is_terminal=True)
    threads = threading.active_count()
    with watcher_for(log) as watch:
        assert isinstance(watch, LiveWatcher)
        for look in LOOKS:
            watch(look)
        assert threading.active_count() == threads
        shown = screen(out.getvalue())
    assert shown[:4] == LINES
    assert shown[4].split() == ["running", "queued", "done", "failed"]
    assert shown[5].split() == ["1", "0", "2", "1"]
    assert shown[6].endswith("3 of 4, about 30 s left")
    assert shown[7:] == ["  net/d"]
    assert screen(out.getvalue()) == LINES


def test_json_has_an_event_for_each_run_that_ends() -> None:
    out = io.StringIO()
    with JsonWatcher(out) as watch:
        for look in LOOKS:
            watch(look)
    events = [json.loads(line) for line in out.getvalue().splitlines()]
    assert [(event["event"], event.get("label")) for event in events] == [
        ("start", None),
        ("done", "net/a"),
        ("failed", "net/b"),
        ("done", "net/c"),
    ]
    assert events[-1]["all_done"] == 2
