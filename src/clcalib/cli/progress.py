"""What a user sees while a run goes on: a live display on a terminal, plain lines anywhere else."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from clcalib.quant.policy import LayerPolicy
from clcalib.report.formats import duration
from clcalib.report.memory_table import memory_table
from clcalib.report.tables import policy_table
from clcalib.team.memory import MemoryPlan

_REFRESHES_PER_SECOND = 4
_BAR_WIDTH = 30
SECONDS_OF_SILENCE = 10.0  # at most, where lines are printed
_SECONDS_OF_A_LOOK = 1.0  # how often it is looked whether it is that long


class RunProgress:
    """How far a run is: pure bookkeeping, with the clock as an input.

    The time left is the time spent on units so far, scaled by the share of the units that remains.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._first_start: float | None = None
        self._recalled = 0
        self._unit_start = 0.0
        self._phase_start = 0
        self.index = 0
        self.count = 0
        self.name = ""
        self.kind = ""
        self.steps = 0
        self.steps_done = 0
        self.losses: Mapping[str, float] = {}
        self.corrected = (0, 0)  # images whose inputs are corrected, and of how many
        self.quality = ""  # of the network so far

    def start_unit(self, index: int, count: int, name: str, kind: str, steps: int) -> None:
        """A unit begins."""
        self._unit_start = self._clock()
        self._first_start = self._unit_start if self._first_start is None else self._first_start
        self.index, self.count, self.name, self.kind, self.steps = index, count, name, kind, steps
        self.steps_done = self._phase_start = 0
        self.losses = {}
        self.corrected = (0, 0)

    def recall_unit(self, index: int, count: int, name: str) -> None:
        """A unit was finished by an earlier process, and takes no time."""
        self._recalled += 1
        self.index, self.count, self.name, self.steps, self.steps_done = index, count, name, 0, 0

    def step(self, step: int, losses: Mapping[str, float]) -> None:
        """A step is done; a phase that counts from zero again is added to the ones before."""
        if self._phase_start + step + 1 < self.steps_done:
            self._phase_start = self.steps_done
        self.steps_done = min(self._phase_start + step + 1, self.steps) if self.steps else 0
        self.losses = losses

    @property
    def fraction(self) -> float:
        """The share of all units' work that is done, from 0 to 1."""
        if self.count == 0:
            return 0.0
        within = self.steps_done / self.steps if self.steps else 0.0
        return min(1.0, (self.index + within) / self.count)

    @property
    def unit_seconds(self) -> float:
        """Since this unit began."""
        return self._clock() - self._unit_start

    @property
    def seconds_left(self) -> float | None:
        """An estimate for all units, or None as long as there is nothing to go by."""
        own = self.fraction - self._recalled / self.count if self.count else 0.0  # the share done by this process
        if self._first_start is None or own <= 0.0:
            return None
        return (self._clock() - self._first_start) * (1.0 - self.fraction) / own


class PlainObserver:
    """One line for each stage and each unit, and one every few seconds within them; for files and pipes.

    A stage without steps tells nobody how far it is: inside the ``with`` block, a thread of its own says that it goes
    on.
    """

    def __init__(self, out: Console, log: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self.out = out
        self.log = log
        self.clock = clock
        self.progress = RunProgress(clock)
        self._stage = ""
        self._stage_start = self._spoke = clock()
        self._ended = threading.Event()
        self._watch: threading.Thread | None = None

    def __enter__(self) -> PlainObserver:
        self._watch = threading.Thread(target=self._keep_watch, name="progress", daemon=True)
        self._watch.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the watch."""
        self._ended.set()
        if self._watch is not None:
            self._watch.join()

    def stage(self, name: str) -> None:
        """Print the stage."""
        self._begin(name)
        self._say(Text(f"{name} ..."))

    def policy(self, rows: Sequence[LayerPolicy]) -> None:
        """Print the policy table."""
        self.out.print(policy_table(rows))

    def placed(self, plan: MemoryPlan) -> None:
        """Print what each worker has."""
        self.out.print(memory_table(plan))

    def unit_started(self, index: int, count: int, name: str, kind: str, steps: int) -> None:
        """Take note of it."""
        self.progress.start_unit(index, count, name, kind, steps)

    def step(self, step: int, losses: Mapping[str, float]) -> None:
        """Take note of it, and print a line where there was none for some time."""
        self.progress.step(step, losses)
        self._break_silence()

    def correcting(self, done: int, count: int) -> None:
        """The same."""
        self.progress.corrected = (done, count)
        self._break_silence()

    def unit_finished(self, index: int, name: str, error_before: float, error_after: float) -> None:
        """Print the unit's line."""
        self.progress.steps_done = self.progress.steps
        self._say(_unit_line(self.progress, name, error_before, error_after))

    def unit_recalled(self, index: int, count: int, name: str, error_before: float, error_after: float) -> None:
        """Print the unit's line."""
        self.progress.recall_unit(index, count, name)
        self._say(_unit_line(self.progress, name, error_before, error_after, "saved earlier"))

    def quality_so_far(
        self, agreement: float, accuracy: float | None = None, float_accuracy: float | None = None
    ) -> None:
        """Print how good the network is."""
        self.progress.quality = _quality(agreement, accuracy, float_accuracy)
        self._say(Text(self.progress.quality))

    def look(self) -> None:
        """Print a line where there was none for some time."""
        self._break_silence()

    def _keep_watch(self) -> None:
        while not self._ended.wait(_SECONDS_OF_A_LOOK):
            self.look()

    def _begin(self, stage: str) -> None:
        self.progress = RunProgress(self.clock)
        self._stage, self._stage_start = stage, self.clock()

    def _break_silence(self) -> None:
        if self.clock() - self._spoke < SECONDS_OF_SILENCE:
            return
        if self.progress.count:
            self._say(Text(_step_line(self.progress)))
        elif self._stage:
            self._say(Text(self._stage_line()))

    def _stage_line(self) -> str:
        """The stage, and how long it has been going on where that is worth a word."""
        seconds = self.clock() - self._stage_start
        return f"{self._stage} ..." + (f"  {duration(seconds)} so far" if seconds >= 1.0 else "")

    def _say(self, line: Text) -> None:
        self.log.print(line, soft_wrap=True)
        self._spoke = self.clock()


class LiveObserver(PlainObserver):
    """The same lines, and below them bars for the unit and the run, the losses and the time left."""

    def __init__(self, out: Console, log: Console, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(out, log, clock)
        self._live = Live(
            console=log, get_renderable=self._render, refresh_per_second=_REFRESHES_PER_SECOND, transient=True
        )

    def __enter__(self) -> LiveObserver:
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Take the display away, whatever happened."""
        self._live.stop()

    def stage(self, name: str) -> None:
        """Show the stage in the display instead of on a line of its own."""
        self._begin(name)

    def policy(self, rows: Sequence[LayerPolicy]) -> None:
        """Print the policy table above the display."""
        # The table goes to stdout and the display to stderr; both at once would garble a terminal.
        self._live.stop()
        super().policy(rows)
        self.out.print()
        self._live.start()

    def placed(self, plan: MemoryPlan) -> None:
        """Print the plan above the display."""
        self._live.stop()
        super().placed(plan)
        self.out.print()
        self._live.start()

    def quality_so_far(
        self, agreement: float, accuracy: float | None = None, float_accuracy: float | None = None
    ) -> None:
        """Show it in the display."""
        self.progress.quality = _quality(agreement, accuracy, float_accuracy)

    def _break_silence(self) -> None:
        """The display is never silent."""

    def refresh(self) -> None:
        """Draw now instead of at the next tick."""
        self._live.refresh()

    def _render(self) -> RenderableType:
        progress = self.progress
        if progress.count == 0:
            return Text(self._stage_line(), style="cyan")
        grid = Table.grid(padding=(0, 1))
        grid.add_column(no_wrap=True)
        grid.add_column(width=_BAR_WIDTH)
        grid.add_column(no_wrap=True)
        grid.add_row("unit", *_unit_bar(progress))
        left = progress.seconds_left
        remaining = "" if left is None else f", {duration(left)} left"
        grid.add_row("run", _bar(progress.fraction, 1.0), f"{progress.fraction:.0%}{remaining}")
        heading = Text(
            f"unit {progress.index + 1} of {progress.count}  ", style="bold", overflow="ellipsis", no_wrap=True
        )
        heading.append(f"{progress.name} ({progress.kind})", style="cyan")
        lines = [Text(_losses(progress.losses), overflow="ellipsis", no_wrap=True)]
        if progress.quality:
            lines.append(Text(progress.quality, overflow="ellipsis", no_wrap=True))
        return Group(heading, grid, *lines)


def observer_for(out: Console, log: Console) -> PlainObserver:
    """The live display where ``log`` is a terminal, plain lines elsewhere; to be used in a ``with`` block."""
    return LiveObserver(out, log) if log.is_terminal and not log.is_dumb_terminal else PlainObserver(out, log)


def _unit_bar(progress: RunProgress) -> tuple[ProgressBar, str]:
    """Of the inputs that are corrected before a unit's first step, then of its steps."""
    done, count = progress.corrected
    if count and not progress.steps_done:
        return _bar(done, count), f"correcting inputs, {done:,} of {count:,} images"
    steps = f"step {progress.steps_done} of {progress.steps}" if progress.steps else ""
    return _bar(progress.steps_done, progress.steps), steps


def _unit_line(progress: RunProgress, name: str, before: float, after: float, note: str | None = None) -> Text:
    note = duration(progress.unit_seconds) if note is None else note
    return Text(f"{_head(progress)}{name:<24} error {before:.3g} -> {after:.3g}  {note}")


def _step_line(progress: RunProgress) -> str:
    """Where a run is, on one line; the parts that are not known yet are left out."""
    done, count = progress.corrected
    if count and not progress.steps_done:
        work = f"correcting inputs, {done:,} of {count:,} images"
    else:
        work = f"step {progress.steps_done} of {progress.steps}" if progress.steps else ""
    left = progress.seconds_left
    time_left = "" if left is None else f", {duration(left)} left"
    parts = [_head(progress) + progress.name, work, _losses(progress.losses), f"run {progress.fraction:.0%}{time_left}"]
    return "  ".join(part for part in parts if part)


def _quality(agreement: float, accuracy: float | None, float_accuracy: float | None) -> str:
    """Short enough for a terminal of 80 columns."""
    same = f"the float network's class for {agreement:.1%}"
    if accuracy is None or float_accuracy is None:
        return f"so far {same} of the images looked at"
    return f"accuracy so far {accuracy:.1%} (float {float_accuracy:.1%}), {same}"


def _head(progress: RunProgress) -> str:
    return f"unit {progress.index + 1:>{len(str(progress.count))}} of {progress.count}  "


def _losses(losses: Mapping[str, float]) -> str:
    return "  ".join(f"{_words(name)} {value:.4g}" for name, value in losses.items())


def _words(name: str) -> str:
    """A class name as words: ``RoundingPenalty`` is ``rounding penalty``."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).lower()


def _bar(done: float, total: float) -> ProgressBar:
    return ProgressBar(total=max(total, 1e-9), completed=done, width=_BAR_WIDTH)
