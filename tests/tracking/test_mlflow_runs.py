"""What MLflow's client reads is what the run did, and no server is asked."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tests.tracking.small import quantized, random_states, tensors_of

import clcalib
from clcalib.errors import ArgumentError, MissingPackageError, TrackingWarning
from clcalib.tracking import mlflow_runs
from clcalib.tracking.tracker import silenced

for package in ("mlflow", "sqlalchemy", "alembic"):
    pytest.importorskip(package, reason=f"{package} is not installed")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder that all tests share, since it takes seconds to make a database; each run has a name of its own."""
    return tmp_path_factory.mktemp("runs")


@pytest.fixture
def read(place):
    """The client and the newest run of a name."""

    def newest(name):
        with silenced():
            from mlflow import MlflowClient

            client = MlflowClient(tracking_uri=f"sqlite:///{place}/mlflow.db")
            (experiment,) = (each for each in client.search_experiments() if each.name == "clcalib")
            chosen = f"attributes.run_name = '{name}'"
            run = client.search_runs([experiment.experiment_id], chosen, order_by=["attributes.start_time DESC"])[0]
        return client, run

    return newest


def history(client, run, name):
    with silenced():
        return [(each.step, each.value) for each in client.get_metric_history(run.info.run_id, name)]


@pytest.fixture(scope="module")
def tracked(place):
    states = random_states()
    with clcalib.tracking.mlflow(place, name="tracked") as tracker:
        assert random_states() == states
        result = quantized(observer=tracker)
        tracker.finish(result.record, result.trace, {"config.json": "{}"})
    return result


def test_losses_errors_and_measures_are_those_of_the_run(tracked, read):
    client, run = read("tracked")
    assert run.info.status == "FINISHED"
    for unit in tracked.trace.units:
        for term, losses in unit.losses.items():
            known = dict(zip(unit.steps, losses, strict=True))
            told = history(client, run, f"loss/{unit.name}/{term}")
            assert told[-1][0] == unit.steps[-1]
            assert all(value == pytest.approx(known[step], rel=1e-5) for step, value in told)
    for index, unit in enumerate(tracked.record.units):
        error, bound = unit.reconstruction_error.calibration, unit.mutual_information_bound.calibration
        assert history(client, run, "units/error_before")[index] == (index, error.before)
        assert history(client, run, "units/error_after")[index] == (index, error.after)
        assert history(client, run, "units/sqnr_db")[index] == (index, unit.sqnr_db.calibration)
        assert history(client, run, "units/bound_after")[index] == (index, bound.after)
    assert run.data.metrics["result/quantized_top1"] == tracked.record.quantized_top1


def test_the_settings_and_the_record_are_kept(tracked, read, place, tmp_path):
    client, run = read("tracked")
    assert run.data.params["recipe"] == "qdrop+contrastive"
    assert run.data.params["weight_bits"] == "2"
    assert run.data.params["contrastive.temperature"] == "0.5"
    with silenced():
        files = {each.path for each in client.list_artifacts(run.info.run_id)}
        path = Path(client.download_artifacts(run.info.run_id, "run.json", str(tmp_path)))
    assert files == {"run.json", "trace.json", "config.json"}
    assert json.loads(path.read_text()) == tracked.record.model_dump(mode="json")
    assert [file.read_bytes() for file in (place / "artifacts").rglob("run.json")] == [path.read_bytes()]


def test_the_result_is_the_same_without_a_tracker(tracked):
    plain = quantized()
    assert tracked.trace == plain.trace
    assert all(torch.equal(*pair) for pair in zip(tensors_of(plain), tensors_of(tracked), strict=True))


def test_an_interrupted_run_goes_on_as_the_same_run(place, read):
    tracker = clcalib.tracking.mlflow(place, name="stopped", key="it's", settings={"run.seed": 1})
    tracker.unit_started(0, 2, "a", "layer", 9)
    for step in range(3):
        tracker.step(step, {"Lp": float(step)})
    tracker.__exit__(KeyboardInterrupt, KeyboardInterrupt(), None)
    client, run = read("stopped")
    assert run.info.status == "KILLED"
    with clcalib.tracking.mlflow(
        place, name="stopped", key="it's", settings={"run.seed": 2}, is_resumed=True
    ) as tracker:
        assert read("stopped")[1].info.status == "RUNNING"
        tracker.unit_started(0, 2, "a", "layer", 9)
        for step in range(1, 5):
            tracker.step(step, {"Lp": float(step)})
        tracker.unit_finished(0, "a", 2.0, 1.0)
    client, again = read("stopped")
    assert again.info.run_id == run.info.run_id
    assert again.info.status == "FINISHED"
    assert history(client, again, "loss/a/Lp") == [(step, float(step)) for step in range(5)]
    assert again.data.params == {"run.seed": "1"}


def test_a_new_run_of_the_same_name_is_another_one(place, read):
    runs = set()
    for _ in range(2):
        with clcalib.tracking.mlflow(place, name="twice"):
            runs.add(read("twice")[1].info.run_id)
    assert len(runs) == 2


def test_a_database_that_fails_ends_the_tracking(place, read, monkeypatch):
    with clcalib.tracking.mlflow(place, name="failing") as tracker:

        def full(*values, **named):
            raise OSError("database or disk is full")

        monkeypatch.setattr(tracker._sink._client, "log_batch", full)
        with pytest.warns(TrackingWarning, match="database or disk is full; the run goes on") as told:
            two_units(tracker)
    assert len(told) == 1
    assert read("failing")[1].info.status == "FAILED"


def two_units(tracker):
    for index in range(2):
        tracker.unit_started(index, 2, f"unit{index}", "layer", 9)
        tracker.step(0, {"Lp": 1.0})
        tracker.unit_finished(index, f"unit{index}", 2.0, 1.0)


def test_a_place_that_cannot_be_opened_is_told_before_the_run(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ArgumentError, match="mlflow: expected a place for runs that can be opened, got .*/file"):
        clcalib.tracking.mlflow(tmp_path / "file")


def test_the_variable_is_looked_at_only_when_it_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    assert mlflow_runs.resolved(str(tmp_path))[0] == f"sqlite:///{tmp_path}/mlflow.db"
    assert mlflow_runs.resolved("MLFLOW_TRACKING_URI") == ("http://127.0.0.1:9", None)
    assert mlflow_runs.resolved("sqlite:////data/a.db") == ("sqlite:////data/a.db", "file:///data/artifacts")
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    with pytest.raises(ArgumentError, match="expected an address in the variable MLFLOW_TRACKING_URI, got none"):
        clcalib.tracking.mlflow("MLFLOW_TRACKING_URI")


def test_a_missing_package_names_its_install_command(monkeypatch):
    monkeypatch.setattr(mlflow_runs.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingPackageError, match=re.escape('pip install "clcalib[mlflow]"')):
        clcalib.tracking.mlflow("nowhere")


def test_nothing_is_sent_and_the_environment_is_left_alone(place):
    """In a process of its own, which is no test to MLflow: there it would tell its makers of each use."""
    hidden = {"CI", "GITHUB_ACTIONS", "PYTEST_CURRENT_TEST"}
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    done = subprocess.run(
        [sys.executable, "-c", QUIET, str(place)], capture_output=True, text=True, env=environment, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["connections", "0", "threads", "1", "environment", "same"]
    assert done.stderr == ""


QUIET = """
import os, socket, sys, threading
made, before = [], dict(os.environ)
def refuse(*values):
    made.append(values)
    raise OSError("no network in this test")
socket.socket.connect = refuse
socket.getaddrinfo = refuse
import clcalib
with clcalib.tracking.mlflow(sys.argv[1], name="quiet") as tracker:
    tracker.unit_started(0, 1, "a", "layer", 1)
    tracker.step(0, {"Lp": 1.0})
print("connections", len(made), "threads", threading.active_count())
print("environment", "same" if dict(os.environ) == before else set(os.environ.items()) ^ set(before.items()))
"""
