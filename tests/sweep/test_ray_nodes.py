"""The same driver on Ray: where Ray listens, killed workers, a lost node, and an end before all is done."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("ray", reason="Ray is not installed; its extra is clcalib[ray]")
pytest.importorskip("sqlalchemy", reason="SQLAlchemy is not installed")

import ray
from ray.cluster_utils import Cluster

from clcalib.sweep.database import Database
from clcalib.sweep.driver import Progress, drive
from clcalib.sweep.ray_nodes import RayNodes
from tests.sweep.conftest import RAY_CLUSTERS
from tests.sweep.ray_starting import HEAD, NODE, patiently
from tests.sweep.small_jobs import digest_of, entry, hashed, odd

pytestmark = [
    pytest.mark.slow,
    # Ray's own: of pkg_resources, of files that it leaves open.
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning", "ignore::FutureWarning"),
]


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch, python_path: str) -> None:
    monkeypatch.setenv("PYTHONPATH", python_path)


@pytest.fixture
def cluster() -> Iterator[Any]:
    found = patiently(lambda: Cluster(initialize_head=True, head_node_args={**HEAD, "num_cpus": 1}))
    try:
        yield found
    finally:
        ray.shutdown()
        found.shutdown()


@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="only Linux tells who listens where")
@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "several: True, elsewhere: [], dashboard: ''"),
        (["early"], "--on ray: expected Ray to listen on the loopback alone, got"),
    ],
)
def test_ray_listens_on_the_loopback_alone_or_not_at_all(arguments: list[str], told: str) -> None:
    command = [sys.executable, "-m", "tests.sweep.ray_listening", *arguments]
    environment = {name: value for name, value in os.environ.items() if name != RAY_CLUSTERS}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert told in ended.stdout, ended.stderr


def test_every_run_is_done_once_and_failures_are_told(tmp_path: Path) -> None:
    database = Database.open(tmp_path / "sweep.db")
    entries = [entry(number, **({"mark": str(tmp_path / "mark")} if number == 3 else {})) for number in range(6)]
    summary = drive(entries, odd, database, RayNodes(2), most_attempts=2)
    assert set(summary.failures) == {"run0", "run1", "run2"}
    assert "its Ray task died: WorkerCrashedError" in summary.failures["run1"]
    attempts = {row["seed"]: (row["state"], row["attempts"]) for row in database.rows()}
    assert [attempts[number] for number in (3, 4, 5)] == [("done", 2), ("done", 1), ("done", 1)]


def test_a_lost_node_and_killed_workers_lose_nothing(cluster: Any, tmp_path: Path) -> None:
    database, marks = Database.open(tmp_path / "sweep.db"), tmp_path / "marks"
    marks.mkdir()
    second = patiently(lambda: cluster.add_node(**NODE, num_cpus=2))
    pool = RayNodes(2, cluster.address)
    assert pool.slots == 3
    looks, killed = [0], list[int]()

    def disturb(progress: Progress) -> None:
        looks[0] += 1
        if looks[0] == 4:
            cluster.remove_node(second, allow_graceful=False)
            patiently(lambda: cluster.add_node(**NODE, num_cpus=2))
        for path in list(marks.iterdir())[-1:] if len(killed) < 2 else []:
            killed.append(int(path.name.split("-")[1]))
            os.kill(killed[-1], signal.SIGKILL)
            path.rename(tmp_path / path.name)

    entries = [entry(number, seconds=0.5, marks=str(marks)) for number in range(12)]
    summary = drive(entries, hashed, database, pool, watch=disturb, lease=5.0, most_attempts=99)
    assert (summary.counts["done"], len(killed)) == (12, 2)
    assert pool.slots > 0  # also when Ray is gone
    assert {row["seed"]: row["digest"] for row in database.rows()} == {
        number: digest_of(number) for number in range(12)
    }


def test_what_runs_gives_its_run_back_when_the_sweep_is_stopped(tmp_path: Path) -> None:
    database, marks = Database.open(tmp_path / "sweep.db"), tmp_path / "marks"
    marks.mkdir()
    entries = [entry(number, seconds=600.0, marks=str(marks)) for number in range(2)]
    summary = drive(entries, hashed, database, RayNodes(1), is_wanted=lambda: not any(marks.iterdir()))
    assert summary.is_stopped
    assert [(row["state"], row["attempts"]) for row in database.rows()] == [("queued", 0)] * 2
