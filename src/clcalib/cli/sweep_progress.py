"""How a sweep is watched: a live table on a terminal, a line for each run that ends in a pipe, or lines of JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from types import TracebackType
from typing import TextIO

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from clcalib.report.formats import duration
from clcalib.sweep.driver import Progress

_BAR_WIDTH = 30
_MOST_LINES = 8  # of runs that are under way


class PlainWatcher:
    """One line for each run that ends."""

    def __init__(self, log: Console) -> None:
        self.log = log
        self._is_begun = False

    def __enter__(self) -> PlainWatcher:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Nothing is left to put away."""

    def __call__(self, progress: Progress) -> None:
        """Print what is new."""
        if not self._is_begun:
            self._is_begun = True
            self.log.print(f"{_counts(progress)}; up to {_runs(progress.slots)} at a time", soft_wrap=True)
        total = sum(progress.counts.values())
        ended = progress.counts["done"] + progress.counts["failed"]
        left = progress.seconds_left
        more = "" if not left else f"; about {duration(left)} left"
        for label, state in progress.ended.items():
            line = Text.assemble((state, "green" if state == "done" else "red"), f" {label}  {ended} of {total}{more}")
            self.log.print(line, soft_wrap=True)


class LiveWatcher(PlainWatcher):
    """The same lines, and below them what runs, a bar and the time left."""

    def __init__(self, log: Console) -> None:
        super().__init__(log)
        self._progress: Progress | None = None
        # Without a thread that draws: it may come between a printed line and the display below it, and leave a copy.
        self._live = Live(console=log, get_renderable=self._render, auto_refresh=False, transient=True)

    def __enter__(self) -> LiveWatcher:
        self._live.start(refresh=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Take the display away, whatever happened."""
        self._live.stop()

    def __call__(self, progress: Progress) -> None:
        """Print what is new, and show the rest below."""
        self._progress = progress
        super().__call__(progress)
        self._live.refresh()

    def _render(self) -> RenderableType:
        progress = self._progress
        if progress is None:
            return Text("starting ...", style="cyan")
        table = Table.grid(padding=(0, 2))
        table.add_row(*(Text(state, style="bold") for state in ("running", "queued", "done", "failed")))
        counts = progress.counts
        style = "red" if counts["failed"] else ""
        table.add_row(
            str(counts["running"]), str(counts["queued"]), str(counts["done"]), Text(str(counts["failed"]), style=style)
        )
        total, ended = sum(counts.values()), counts["done"] + counts["failed"]
        left = progress.seconds_left
        bar = Table.grid(padding=(0, 1))
        remaining = "" if not left else f", about {duration(left)} left"
        bar.add_row(
            ProgressBar(total=max(total, 1), completed=ended, width=_BAR_WIDTH), f"{ended} of {total}{remaining}"
        )
        return Group(table, bar, *_under_way(progress.labels))


class JsonWatcher:
    """One line of JSON for each run that ends, and one at the start."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._is_begun = False

    def __enter__(self) -> JsonWatcher:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Nothing is left to put away."""

    def __call__(self, progress: Progress) -> None:
        """Write what is new."""
        if not self._is_begun:
            self._is_begun = True
            self._write({"event": "start", **progress.counts, "slots": progress.slots})
        for label, state in progress.ended.items():
            self._write({"event": state, "label": label, **{f"all_{name}": n for name, n in progress.counts.items()}})

    def _write(self, event: dict[str, object]) -> None:
        self._out.write(json.dumps(event) + "\n")
        self._out.flush()


def watcher_for(log: Console) -> PlainWatcher:
    """The live display where ``log`` is a terminal, plain lines elsewhere; to be used in a ``with`` block."""
    return LiveWatcher(log) if log.is_terminal and not log.is_dumb_terminal else PlainWatcher(log)


def _under_way(labels: Sequence[str]) -> list[Text]:
    shown = [Text(f"  {label}", style="cyan", overflow="ellipsis", no_wrap=True) for label in labels[:_MOST_LINES]]
    more = len(labels) - _MOST_LINES
    return [*shown, *([Text(f"  and {more} more", style="cyan")] if more > 0 else [])]


def _runs(count: int) -> str:
    return f"{count} run{'s' if count != 1 else ''}"


def _counts(progress: Progress) -> str:
    total = sum(progress.counts.values())
    return f"{_runs(total)}, {progress.counts['done']} of them done"
