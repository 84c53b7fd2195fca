"""``clcalib quantize --resume``, and what each end of a run leaves behind and returns."""

from __future__ import annotations

import errno
import os
import signal
from pathlib import Path

import pytest

from clcalib.calibrate.observer import SilentObserver
from clcalib.cli.app import main
from clcalib.durable.lock import folder_lock

Capture = pytest.CaptureFixture[str]
RUN = ["quantize", "run.toml", "--bits", "W2A4", "--quiet"]


def ends_at(monkeypatch: pytest.MonkeyPatch, where: str, what: object) -> None:
    """Let something happen when the observer of a quiet run is told of it for the second time."""
    told = [0]

    def happen(*arguments: object, **named: object) -> None:
        told[0] += 1
        if told[0] == 2:
            what()  # type: ignore[operator]

    monkeypatch.setattr(SilentObserver, where, happen)


def interrupted(monkeypatch: pytest.MonkeyPatch, out: str, *more: str) -> None:
    with monkeypatch.context() as patch:
        ends_at(patch, "unit_started", lambda: os.kill(os.getpid(), signal.SIGTERM))
        assert main([*RUN, "--out", out, *more]) == 143


def saved(folder: str) -> dict[str, bytes]:
    return {name: (Path(folder) / name).read_bytes() for name in ("model.safetensors", "model.json")}


def test_an_interrupted_run_is_gone_on_with(workplace: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    assert main([*RUN, "--out", "whole"]) == 0
    interrupted(monkeypatch, "out")
    told = capsys.readouterr().err
    assert "interrupted; 1 finished unit" in told or "interrupted; 2 finished units" in told
    assert f"go on with: clcalib quantize --resume {workplace / 'out'}" in told
    assert main([*RUN, "--out", "out"]) == 3
    assert "holds a run that is not finished" in capsys.readouterr().err
    assert main(["quantize", "--resume", "out", "--seed", "4", "--quiet"]) == 2
    assert "seed was 0, and is 4" in capsys.readouterr().err
    assert main(["quantize", "--resume", "out"]) == 0
    assert "saved earlier" in capsys.readouterr().err
    assert saved("out") == saved("whole")
    assert sorted(path.name for path in Path("out").iterdir()) == sorted(path.name for path in Path("whole").iterdir())
    assert main(["quantize", "--resume", "out"]) == 0
    assert "is finished; nothing is left to do" in capsys.readouterr().err


def test_several_runs_for_an_accuracy_are_gone_on_with(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    goal = ("--max-drop", "40", "--set", "target.rounds=2")
    assert main([*RUN, "--out", "whole", *goal]) == 0
    interrupted(monkeypatch, "out", *goal)
    assert main(["quantize", "--resume", "out", "--quiet"]) == 0
    assert saved("out") == saved("whole")


def test_what_ends_before_anything_has_begun_leaves_nothing(
    workplace: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    def fail() -> None:
        raise RuntimeError("a defect")

    for what, code in ((interrupt, 130), (fail, 1)):
        with monkeypatch.context() as patch:
            ends_at(patch, "stage", what)  # "loading" is the first, "capture" the second
            assert main([*RUN, "--out", "out"]) == code
        assert not Path("out").exists()
    assert "no result was written" in capsys.readouterr().err


def test_a_folder_named_state_that_is_not_ours_stays(workplace: Path, capsys: Capture) -> None:
    mine = Path("out") / "state" / "mine.txt"
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    assert main([*RUN, "--out", "out", "--overwrite"]) == 3
    assert "a folder of its own" in capsys.readouterr().err
    assert mine.read_text() == "mine"


def test_a_full_disk_and_a_folder_in_use_have_codes_of_their_own(
    workplace: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def fill() -> None:
        monkeypatch.setattr("clcalib.files.os.fsync", refuse)

    with monkeypatch.context() as patch:
        ends_at(patch, "unit_started", fill)
        assert main([*RUN, "--out", "out"]) == 4
    monkeypatch.undo()
    monkeypatch.chdir(workplace)
    printed = capsys.readouterr().err
    assert "No space left on device; make room" in printed
    assert "Traceback" not in printed
    with folder_lock(Path("out")):
        assert main(["quantize", "--resume", "out", "--quiet"]) == 5
    assert f"process {os.getpid()}" in capsys.readouterr().err
    assert main(["quantize", "--resume", "out", "--quiet"]) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--resume", "nowhere"], "OUT: expected the output folder of a run"),
        (["--resume", "empty"], "--resume: expected the output folder of an interrupted run"),
        (["run.toml", "--resume", "empty"], "CONFIG: expected nothing beside --resume"),
        (["--resume", "empty", "--out", "b"], "--out: expected nothing beside --resume"),
        (["--resume", "empty", "--overwrite"], "--overwrite: expected nothing beside --resume"),
        (["--resume", "empty", "--dry-run"], "--dry-run: expected nothing beside --resume"),
    ],
)
def test_what_cannot_be_gone_on_with_is_told(
    workplace: Path, capsys: Capture, arguments: list[str], message: str
) -> None:
    Path("empty").mkdir()
    assert main(["quantize", *arguments]) == 2
    assert message in capsys.readouterr().err
