"""MLflow: runs in a database of its own in a folder, or wherever an address names; no server unless one is named."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from clcalib.errors import ArgumentError, MissingPackageError
from clcalib.tracking.measures import Setting, clean
from clcalib.tracking.tracker import Status, Tracker, silenced

EXPERIMENT = "clcalib"
VARIABLE = "MLFLOW_TRACKING_URI"
_DATABASE, _ARTIFACTS, _KEY = "mlflow.db", "artifacts", "clcalib.key"
_SQLITE = "sqlite:///"
_STATES = {"finished": "FINISHED", "failed": "FAILED", "stopped": "KILLED"}
_MOST_METRICS, _MOST_SETTINGS, _LONGEST = 1000, 100, 6000  # what MLflow takes at a time
_SECONDS = 5.0  # how long numbers may wait before they can be seen


def mlflow(
    place: str | Path,
    *,
    name: str = "clcalib",
    experiment: str = EXPERIMENT,
    settings: Mapping[str, Setting] | None = None,
    key: str | None = None,
    is_resumed: bool = False,
) -> Tracker:
    """A tracker that writes a run of MLflow.

    Args:
        place: a folder, which gets the database ``mlflow.db`` and the folder ``artifacts``; or an address that MLflow
            knows, such as ``"sqlite:///runs.db"`` or ``"http://localhost:5000"``; or ``"MLFLOW_TRACKING_URI"`` for the
            address in that variable, which is not looked at otherwise.
        name: of the run.
        experiment: that it belongs to; made where it is missing.
        settings: of the run, by name; by default those that its record has.
        key: by which an interrupted run is found again; by default its name.
        is_resumed: whether to go on with the newest run of this key, if there is one.

    Returns:
        The tracker, to be used in a ``with`` block as the ``observer`` of a run.

    Raises:
        MissingPackageError: MLflow is not installed.
        ArgumentError: the place cannot be opened, or the variable is not set.
    """
    require_mlflow()
    address, artifacts = resolved(str(place))
    sink = MlflowRun(address, artifacts, experiment, name, key or name, is_resumed=is_resumed)
    try:
        return Tracker(f"MLflow at {place}", sink, settings)
    except Exception as error:  # of a database, a disk or a server
        told = str(error).strip().splitlines()
        reason = told[0] if told else type(error).__name__
        remedy = "name a folder that can be written to, or leave the tracker out"
        raise ArgumentError("mlflow", "a place for runs that can be opened", f"{place} ({reason})", remedy) from error


def require_mlflow() -> None:
    """Raise where it, or what its databases need, is not installed.

    Raises:
        MissingPackageError: one of them is not.
    """
    missing = [name for name in ("mlflow", "sqlalchemy", "alembic") if importlib.util.find_spec(name) is None]
    if missing:
        raise MissingPackageError(f'{missing[0]} is not installed; pip install "clcalib[mlflow]"')


def resolved(place: str) -> tuple[str, str | None]:
    """The address of the runs, and where a new experiment has its files; None leaves that to a server.

    Raises:
        ArgumentError: the variable is named and not set.
    """
    address = place
    if place == VARIABLE:
        address = os.environ.get(VARIABLE, "")
        if not address:
            raise ArgumentError("mlflow", f"an address in the variable {VARIABLE}", "none", "set it, or name a folder")
    if is_address(address):
        path = Path(address.removeprefix(_SQLITE)).absolute()
        return address, (path.parent / _ARTIFACTS).as_uri() if address.startswith(_SQLITE) else None
    folder = Path(address).absolute()
    return f"{_SQLITE}{folder / _DATABASE}", (folder / _ARTIFACTS).as_uri()


def is_address(place: str) -> bool:
    """Whether it is one of MLflow's, or the variable that has one, and no folder."""
    return "://" in place or place in (VARIABLE, "databricks")


class MlflowRun:
    """A sink that writes one run, through a client of its own: what the caller set up for MLflow is left alone."""

    def __init__(
        self, address: str, artifacts: str | None, experiment: str, name: str, key: str, *, is_resumed: bool
    ) -> None:
        self._address, self._artifacts = address, artifacts
        # In a search of MLflow an apostrophe ends a text, and there is no way to write one.
        self._experiment, self._name, self._key, self._is_resumed = experiment, name, key.replace("'", ""), is_resumed
        self._metrics = list[Any]()
        self._flushed = time.monotonic()

    def begin(self, settings: Mapping[str, Setting]) -> Mapping[str, int]:
        """Open the database, and begin a run or go on with one."""
        if self._address.startswith(_SQLITE):
            Path(self._address.removeprefix(_SQLITE)).absolute().parent.mkdir(parents=True, exist_ok=True)
        with untold():
            from mlflow import MlflowClient
            from mlflow.entities import Metric

        self._metric = Metric
        self._client = MlflowClient(tracking_uri=self._address, registry_uri=self._address)
        known = self._client.get_experiment_by_name(self._experiment)
        experiment = (
            self._client.create_experiment(self._experiment, artifact_location=self._artifacts)
            if known is None
            else known.experiment_id
        )
        run = self._interrupted(experiment) if self._is_resumed else None
        if run is None:
            run = self._client.create_run(experiment, run_name=self._name, tags={_KEY: self._key})
        else:
            self._client.update_run(run.info.run_id, status="RUNNING")
        self._run: str = run.info.run_id
        self._log_settings(settings)
        return {each: self._last_step(each) for each in run.data.metrics}

    def number(self, name: str, value: float, step: int) -> None:
        """Keep it for the next flush."""
        self._metrics.append(self._metric(name, float(value), time.time_ns() // 1_000_000, step))
        if len(self._metrics) >= _MOST_METRICS or time.monotonic() - self._flushed > _SECONDS:
            self.flush()

    def flush(self) -> None:
        """Write the numbers that wait."""
        waiting, self._metrics = self._metrics, []
        self._flushed = time.monotonic()
        if waiting:
            with silenced():
                self._client.log_batch(self._run, metrics=waiting)

    def finish(self, settings: Mapping[str, Setting], results: Mapping[str, float], texts: Mapping[str, str]) -> None:
        """The settings as parameters, the texts as artifacts."""
        self.flush()
        self._log_settings(settings)
        for name, text in texts.items():
            self._client.log_text(self._run, text, name)

    def close(self, status: Status) -> None:
        """Say how the run ended."""
        try:
            self.flush()
        finally:
            self._client.set_terminated(self._run, _STATES[status])

    def _interrupted(self, experiment: str) -> Any:
        """The newest run of the key."""
        order = ["attributes.start_time DESC"]
        found = self._client.search_runs([experiment], f"tags.`{_KEY}` = '{self._key}'", max_results=1, order_by=order)
        return self._client.get_run(found[0].info.run_id) if found else None

    def _last_step(self, name: str) -> int:
        return max(each.step for each in self._client.get_metric_history(self._run, name))

    def _log_settings(self, settings: Mapping[str, Setting]) -> None:
        """Write those that are not there: MLflow lets no parameter be changed."""
        from mlflow.entities import Param

        there = self._client.get_run(self._run).data.params
        new = [
            Param(clean(name), str(value)[:_LONGEST]) for name, value in settings.items() if clean(name) not in there
        ]
        for start in range(0, len(new), _MOST_SETTINGS):
            self._client.log_batch(self._run, params=new[start : start + _MOST_SETTINGS])


@contextlib.contextmanager
def untold() -> Iterator[None]:
    """Keep MLflow from telling its makers of each use, which it decides when it is first imported."""
    name = "MLFLOW_DISABLE_TELEMETRY"
    before = os.environ.get(name)
    if "mlflow" not in sys.modules:
        os.environ[name] = "true"
    try:
        with silenced():
            yield
    finally:
        if before is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = before
