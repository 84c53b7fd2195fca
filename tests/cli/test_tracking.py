"""``clcalib quantize`` with experiment trackers: what they have is the run's, and the result is as without them."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from clcalib.calibrate.observer import SilentObserver
from clcalib.cli.app import main
from clcalib.report.record import read_record
from clcalib.report.trace import read_trace
from clcalib.tracking.tracker import silenced

Capture = pytest.CaptureFixture[str]
RUN = ["quantize", "run.toml", "--bits", "W2A4", "--quiet"]


def events(folder: str) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(folder, size_guidance={"scalars": 0})
    found.Reload()
    return {tag: [(each.step, each.value) for each in found.Scalars(tag)] for tag in found.Tags()["scalars"]}


def runs(folder: Path) -> tuple[Any, list[Any]]:
    with silenced():
        from mlflow import MlflowClient

        client = MlflowClient(tracking_uri=f"sqlite:///{folder.absolute()}/mlflow.db")
        return client, client.search_runs([client.get_experiment_by_name("clcalib").experiment_id])


def saved(folder: str) -> list[bytes]:
    return [(Path(folder) / name).read_bytes() for name in ("model.safetensors", "model.json", "trace.json")]


def stopped_in_the_second_unit(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    started = [0]

    def stop(*values: object) -> None:
        started[0] += 1
        if started[0] == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(SilentObserver, "unit_started", stop)
        assert main([*RUN, *arguments]) == 143


@pytest.fixture
def _plain(workplace: Path) -> None:
    assert main([*RUN, "--out", "plain"]) == 0


@pytest.mark.usefixtures("_plain")
def test_tensorboard_has_the_run_and_goes_on_with_it(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tensorboard", reason="TensorBoard is not installed")
    stopped_in_the_second_unit(monkeypatch, "--out", "runs/first", "--tensorboard", "events")
    assert main(["quantize", "--resume", "runs/first", "--quiet"]) == 0
    assert saved("runs/first") == saved("plain")
    assert [path.name for path in Path("events").iterdir()] == ["first"]
    found = events("events/first")
    record, trace = read_record("runs/first/run.json"), read_trace("runs/first/trace.json")
    assert found["units/error_after"] == [
        (index, pytest.approx(unit.reconstruction_error.calibration.after)) for index, unit in enumerate(record.units)
    ]
    for unit in trace.units:
        for term in unit.losses:
            steps = [step for step, _ in found[f"loss/{unit.name}/{term}"]]
            assert steps == sorted(set(steps))
            assert steps[-1] == unit.steps[-1]
    assert found["result/quantized_top1"] == [(0, pytest.approx(record.quantized_top1))]
    assert main([*RUN, "--out", "other/first", "--tensorboard", "events"]) == 0
    assert {path.name for path in Path("events").iterdir()} == {"first", "first-2"}


@pytest.mark.usefixtures("_plain")
def test_mlflow_has_the_run_and_goes_on_with_it(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("mlflow", "sqlalchemy", "alembic"):
        pytest.importorskip(package, reason=f"{package} is not installed")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    toml = Path("run.toml").read_text()
    Path("run.toml").write_text(toml + '[tracking]\nmlflow = "tracked"\n')
    stopped_in_the_second_unit(monkeypatch, "--out", "runs/first")
    _, (run,) = runs(Path("tracked"))
    assert (run.info.run_name, run.info.status) == ("first", "KILLED")
    assert main(["quantize", "--resume", "runs/first", "--quiet"]) == 0
    assert saved("runs/first") == saved("plain")
    client, (again,) = runs(Path("tracked"))
    assert (again.info.run_id, again.info.status) == (run.info.run_id, "FINISHED")
    record = read_record("runs/first/run.json")
    assert again.data.metrics["result/quantized_top1"] == record.quantized_top1
    with silenced():
        errors = client.get_metric_history(run.info.run_id, "units/error_after")
    expected = [unit.reconstruction_error.calibration.after for unit in record.units]
    assert [each.value for each in errors] == expected
    assert again.data.params["recipe.name"] == "qdrop"
    assert again.data.params["recipe.steps"] == "12"
    assert not any(name.startswith("tracking") for name in again.data.params)
    (kept,) = Path("tracked/artifacts").rglob("run.json")
    assert json.loads(kept.read_text()) == json.loads(Path("runs/first/run.json").read_text())
    assert (kept.parent / "config.json").read_bytes() == Path("runs/first/config.json").read_bytes().rstrip(b"\n")


@pytest.mark.parametrize(("flag", "extra"), [("--tensorboard", "tensorboard"), ("--mlflow", "mlflow")])
@pytest.mark.parametrize("more", [[], ["--dry-run"]])
def test_a_missing_package_is_told_before_the_run(
    workplace: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch, flag: str, extra: str, more: list[str]
) -> None:
    find = importlib.util.find_spec
    hidden = ("tensorboard", "mlflow", "sqlalchemy")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name in hidden else find(name, *rest))
    assert main([*RUN, "--out", "out", flag, "tracked", *more]) == 2
    told = capsys.readouterr().err
    assert f'pip install "clcalib[{extra}]"' in told
    assert "loading" not in told
    assert not Path("out").exists()


def test_a_place_that_cannot_be_opened_leaves_nothing(workplace: Path, capsys: Capture) -> None:
    pytest.importorskip("tensorboard", reason="TensorBoard is not installed")
    Path("file").write_text("")
    assert main([*RUN, "--out", "out", "--tensorboard", "file"]) == 4
    assert "could not be written" in capsys.readouterr().err
    assert not Path("out").exists()


@pytest.mark.usefixtures("_plain")
def test_a_tracker_that_is_lost_does_not_keep_a_run_from_going_on(
    workplace: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tensorboard", reason="TensorBoard is not installed")
    stopped_in_the_second_unit(monkeypatch, "--out", "out", "--tensorboard", "events")
    Path("events").rename("moved")
    Path("events").write_text("")
    assert main(["quantize", "--resume", "out", "--quiet"]) == 0
    assert "the run goes on without the tracker" in capsys.readouterr().err
    assert saved("out") == saved("plain")
