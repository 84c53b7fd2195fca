"""What is shown while a run goes on."""

from __future__ import annotations

import io
import threading

import pytest
from rich.console import Console

from clcalib.cli.progress import LiveObserver, PlainObserver, RunProgress, observer_for
from clcalib.quant.policy import Bits, build_policy


def console(*, is_terminal: bool = False, width: int = 80) -> Console:
    return Console(file=io.StringIO(), force_terminal=is_terminal, width=width, color_system=None, highlight=False)


def text_of(shown: Console) -> str:
    return shown.file.getvalue()  # type: ignore[attr-defined, no-any-return]


@pytest.fixture
def clock() -> list[float]:
    return [0.0]


def test_the_time_left_covers_the_whole_run(clock: list[float]) -> None:
    progress = RunProgress(clock=lambda: clock[0])
    assert progress.seconds_left is None
    progress.start_unit(0, 4, "stem", "layer", 100)
    assert progress.seconds_left is None
    clock[0] = 5.0
    progress.step(49, {"Reconstruction": 1.0})
    assert progress.fraction == 0.125
    assert progress.seconds_left == pytest.approx(35.0)
    clock[0] = 10.0
    progress.start_unit(1, 4, "layer1", "block", 100)
    assert progress.fraction == 0.25
    assert progress.seconds_left == pytest.approx(30.0)
    progress.step(99, {})
    assert progress.fraction == 0.5


def test_phases_that_count_from_zero_are_added_up() -> None:
    progress = RunProgress(clock=lambda: 0.0)
    progress.start_unit(0, 1, "a", "block", 15)
    for step in (0, 9):
        progress.step(step, {})
    assert progress.steps_done == 10
    progress.step(0, {})
    assert progress.steps_done == 11
    progress.step(4, {})
    assert progress.fraction == 1.0


def test_a_unit_without_steps_counts_when_it_is_done() -> None:
    progress = RunProgress(clock=lambda: 0.0)
    progress.start_unit(1, 2, "a", "block", 0)
    assert progress.fraction == 0.5


def _act(observer: PlainObserver) -> None:
    with observer:
        observer.stage("capture")
        observer.policy(build_policy(["conv1", "[fc]"], Bits(weights=2, activations=2)))
        observer.unit_started(0, 2, "[stem]", "layer", 10)
        observer.step(4, {"Reconstruction": 0.125, "RoundingPenalty": 2.5})
        if isinstance(observer, LiveObserver):
            observer.refresh()
        observer.unit_finished(0, "[stem]", 0.5, 0.25)


def test_a_pipe_gets_one_line_a_stage_and_a_unit() -> None:
    out, log = console(), console()
    observer = observer_for(out, log)
    assert type(observer) is PlainObserver
    _act(observer)
    lines = text_of(log).splitlines()
    assert lines[0] == "capture ..."
    assert lines[1].split()[:8] == ["unit", "1", "of", "2", "[stem]", "error", "0.5", "->"]
    assert len(lines) == 2
    assert "[fc]" in text_of(out)


def test_a_pipe_hears_of_a_long_unit_every_few_seconds(clock: list[float]) -> None:
    log = console(width=200)
    observer = PlainObserver(console(), log, clock=lambda: clock[0])
    observer.unit_started(0, 4, "layer1", "block", 1000)
    for step in range(0, 1000, 25):
        clock[0] += 0.8
        observer.step(step, {"Reconstruction": 0.125, "RoundingPenalty": 2.5})
    lines = text_of(log).splitlines()
    assert len(lines) == 3  # in 32 seconds
    assert lines[0] == (
        "unit 1 of 4  layer1  step 301 of 1000  reconstruction 0.125  rounding penalty 2.5  run 8%, 2 min 08 s left"
    )
    clock[0] += 1.0
    observer.unit_finished(0, "layer1", 0.5, 0.25)
    observer.quality_so_far(0.953125)
    clock[0] += 9.0
    observer.unit_started(1, 4, "layer2", "block", 1000)
    observer.correcting(32, 64)
    clock[0] += 2.0
    observer.correcting(64, 64)
    told = text_of(log).splitlines()[3:]
    assert "error 0.5 -> 0.25" in told[0]
    assert told[1] == "so far the float network's class for 95.3% of the images looked at"
    assert told[2].startswith("unit 2 of 4  layer2  correcting inputs, 64 of 64 images  run 25%")
    assert len(told) == 3


def test_a_pipe_hears_of_a_long_stage_too(clock: list[float]) -> None:
    log = console(width=200)
    observer = PlainObserver(console(), log, clock=lambda: clock[0])
    observer.stage("measures")
    for _ in range(25):
        clock[0] += 1.0
        observer.look()
    observer.stage("report")
    observer.unit_started(0, 4, "layer1", "block", 1000)
    for _ in range(11):
        clock[0] += 1.0
        observer.look()
    assert text_of(log).splitlines() == [
        "measures ...",
        "measures ...  10 s so far",
        "measures ...  20 s so far",
        "report ...",
        "unit 1 of 4  layer1  step 0 of 1000  run 0%",
    ]


def test_the_watch_ends_with_the_run() -> None:
    with observer_for(console(), console()):
        assert any(thread.name == "progress" for thread in threading.enumerate())
    assert not any(thread.name == "progress" for thread in threading.enumerate())


def test_a_terminal_is_shown_how_good_the_network_is_so_far() -> None:
    log = console(is_terminal=True, width=100)
    with observer_for(console(), log) as observer:
        assert isinstance(observer, LiveObserver)
        observer.unit_started(0, 2, "[stem]", "layer", 10)
        observer.quality_so_far(0.5, 0.625, 0.890625)
        observer.refresh()
    assert "accuracy so far 62.5% (float 89.1%), the float network's class for 50.0%" in text_of(log)


@pytest.mark.parametrize("variables", [{"NO_COLOR": "1"}, {"TERM": "dumb"}, {}])
def test_colours_are_for_terminals_that_have_them(variables: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    shown = Console(file=Terminal(), width=80)
    shown.print("word", style="red")
    assert ("\x1b[31m" in text_of(shown)) == (not variables)
    piped = Console(file=io.StringIO(), width=80)
    piped.print("word", style="red")
    assert "\x1b" not in text_of(piped)
    assert type(observer_for(shown, shown)) is (PlainObserver if variables.get("TERM") == "dumb" else LiveObserver)


def test_a_terminal_gets_bars_losses_and_the_time_left() -> None:
    out, log = console(is_terminal=True), console(is_terminal=True)
    observer = observer_for(out, log)
    assert type(observer) is LiveObserver
    _act(observer)
    shown = text_of(log)
    assert "capture ..." in shown
    assert "unit 1 of 2  [stem] (layer)" in shown
    assert "step 5 of 10" in shown
    assert "25%, " in shown
    assert " left" in shown
    assert "reconstruction 0.125  rounding penalty 2.5" in shown
    assert "error 0.5 -> 0.25" in shown
    assert "Policy" in text_of(out)


def test_corrected_inputs_are_shown_until_the_first_step() -> None:
    log = console(is_terminal=True)
    with observer_for(console(), log) as observer:
        assert isinstance(observer, LiveObserver)
        observer.unit_started(0, 2, "[stem]", "layer", 10)
        observer.correcting(640, 1024)
        observer.refresh()
        assert "correcting inputs, 640 of 1,024 images" in text_of(log)
        observer.correcting(1024, 1024)
        observer.step(0, {})
        observer.refresh()
        assert "step 1 of 10" in text_of(log)
        assert "1,024 of 1,024" not in text_of(log)
        observer.unit_finished(0, "[stem]", 0.5, 0.25)
        observer.unit_started(1, 2, "[next]", "layer", 10)
        observer.refresh()
        assert "step 0 of 10" in text_of(log)


def test_the_display_is_taken_away_when_the_run_fails() -> None:
    log = console(is_terminal=True)

    def fail() -> None:
        with observer_for(console(), log):
            raise RuntimeError("defect")

    with pytest.raises(RuntimeError, match="defect"):
        fail()
    assert "\x1b[?25h" in text_of(log)  # the cursor is shown again
