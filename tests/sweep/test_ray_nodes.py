"""The same driver on Ray: a node that is lost, a worker that is killed, and where Ray listens."""

from __future__ import annotations

import os
import signal
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
from tests.sweep.small_jobs import digest_of, entry, hashed, odd

pytestmark = [
    pytest.mark.slow,
    # Ray's own: of pkg_resources, of files that it leaves open.
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning", "ignore::FutureWarning"),
]

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT / "src"), str(ROOT)]))


@pytest.fixture
def cluster() -> Iterator[Any]:
    found = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "node_ip_address": "127.0.0.1"})
    try:
        yield found
    finally:
        ray.shutdown()
        found.shutdown()


def listening() -> set[str]:
    """The addresses on which processes of this machine listen."""
    found = set()
    for name, loopback in (("tcp", "0100007F"), ("tcp6", "00000000000000000000000001000000")):
        for line in Path("/proc/net", name).read_text().splitlines()[1:]:
            local, state = line.split()[1], line.split()[3]
            if state == "0A" and not local.startswith(loopback):
                found.add(local)
    return found


@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="only Linux tells who listens where")
def test_ray_listens_on_the_loopback_alone(tmp_path: Path) -> None:
    before = listening()
    pool = RayNodes(1)
    try:
        assert ray.get_runtime_context().gcs_address.startswith("127.0.0.1:")
        assert listening() - before == set()
        assert not ray._private.worker._global_node.webui_url
    finally:
        pool.stop()


def test_every_run_is_done_once_and_failures_are_told(tmp_path: Path) -> None:
    database = Database.open(tmp_path / "sweep.db")
    entries = [entry(number, **({"mark": str(tmp_path / "mark")} if number == 3 else {})) for number in range(6)]
    summary = drive(entries, odd, database, RayNodes(2), most_attempts=2)
    assert set(summary.failures) == {"run0", "run1", "run2"}
    assert "its Ray task died: WorkerCrashedError" in summary.failures["run1"]
    assert summary.counts["done"] == 3


def test_a_lost_node_and_killed_workers_lose_nothing(cluster: Any, tmp_path: Path) -> None:
    database, marks = Database.open(tmp_path / "sweep.db"), tmp_path / "marks"
    marks.mkdir()
    second = cluster.add_node(num_cpus=2)
    pool = RayNodes(2, cluster.address)
    assert pool.slots == 3
    looks = [0]

    def disturb(progress: Progress) -> None:
        looks[0] += 1
        if looks[0] == 4:
            cluster.remove_node(second, allow_graceful=False)
            cluster.add_node(num_cpus=2)
        for path in list(marks.iterdir())[-1:] if looks[0] in (8, 12) else []:
            os.kill(int(path.name.split("-")[1]), signal.SIGKILL)

    entries = [entry(number, seconds=0.5, marks=str(marks)) for number in range(12)]
    summary = drive(entries, hashed, database, pool, watch=disturb, lease=5.0, most_attempts=99)
    assert summary.counts["done"] == 12
    assert {row["seed"]: row["digest"] for row in database.rows()} == {
        number: digest_of(number) for number in range(12)
    }
