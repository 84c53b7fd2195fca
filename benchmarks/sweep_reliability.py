"""Kill the workers, nodes, drivers and writers of sweeps, and count rows: benchmarks/results/sweep_reliability.json.

    python benchmarks/sweep_reliability.py writers             # 8 writers of one SQLite file, 500 kills
    python benchmarks/sweep_reliability.py writers_postgresql  # the same of a server, which is started here
    python benchmarks/sweep_reliability.py processes           # 200 jobs on processes, 100 workers, 2 drivers killed
    python benchmarks/sweep_reliability.py ray                 # the same on 2 Ray nodes, 5 nodes killed, too

Each part is written by itself, so that they can be run one after the other.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import os
import random
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sweep_common import SCRATCH, Part, run_part, use_package

use_package()

from tests.sweep.postgresql_server import initdb, new_database, running  # noqa: E402 - the paths are settled above
from tests.sweep.ray_starting import HEAD, NODE, patiently  # noqa: E402

from clcalib.sweep.database import Database  # noqa: E402
from clcalib.sweep.driver import drive  # noqa: E402
from clcalib.sweep.jobs import Outcome  # noqa: E402
from clcalib.sweep.processes import Processes  # noqa: E402
from clcalib.sweep.ray_nodes import RayNodes  # noqa: E402
from sweep_jobs import entry, hashed  # noqa: E402

JOBS, WORKER_KILLS, NODE_KILLS, DRIVER_KILLS = 200, 100, 5, 2
SECONDS = 0.5  # of a tiny job
LEASE = 5.0
SLOTS = 4
WRITERS, WRITER_KILLS, ROWS_FOR_A_KILL = 8, 500, 4
LINE = 130  # bytes of what a writer says of a row


def writers(size: float, address: str | None = None) -> dict[str, Any]:
    """Writers that say what they have written only when the database has said that it has."""
    kills = max(1, round(WRITER_KILLS * size))
    with tempfile.TemporaryDirectory(dir=SCRATCH) as place:
        folder = Path(place)
        address = address or str(folder / "sweep.db")
        database, start = Database.open(address), time.monotonic()
        _kill_writers(folder, address, kills)
        told = [line for path in folder.glob("told-*") for line in path.read_text().split("\n")[:-1]]
        rows = {row["key"]: row["digest"] for row in database.rows() if row["digest"] is not None}
        found = {
            "writers": WRITERS,
            "kills": kills,
            "acknowledged": len(told),
            "acknowledged_twice": len(told) - len(set(told)),
            "lost": sum(rows.get(line.split()[0]) != line.split()[1] for line in told),
            "rows": len(rows),
            "seconds": round(time.monotonic() - start, 1),
        }
        if database.is_file:
            with contextlib.closing(sqlite3.connect(address)) as connection:
                found["integrity_check"] = connection.execute("PRAGMA integrity_check").fetchone()[0]
    return found


def _kill_writers(folder: Path, address: str, kills: int) -> None:
    context, random_, at_work = multiprocessing.get_context("fork"), random.Random(0), dict[int, Any]()
    killed = 0
    while killed < kills:
        for number in range(WRITERS):
            if number not in at_work or not at_work[number].is_alive():
                first = killed * 1_000_000 + number * 100_000
                at_work[number] = context.Process(target=_write, args=(folder, address, number, first), daemon=True)
                at_work[number].start()
        # Some rows for each kill, so that the kills hit what writes and not what starts.
        enough, end = ROWS_FOR_A_KILL * killed * LINE, time.monotonic() + 5.0
        while sum(path.stat().st_size for path in folder.glob("told-*")) < enough and time.monotonic() < end:
            time.sleep(random_.uniform(0.0, 0.02))
        time.sleep(random_.uniform(0.0, 0.05))
        victim = at_work[random_.randrange(WRITERS)]
        if victim.is_alive():
            victim.kill()
            victim.join()
            killed += 1
    for writer in at_work.values():
        writer.kill()
        writer.join()


def _write(folder: Path, address: str, number: int, first: int) -> None:
    database = Database.open(address, is_checked=False)
    told = os.open(folder / f"told-{number}", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for each in range(first, first + 100_000):
        run = entry(each)
        database.add([run])
        if database.claim(run.key, f"{number} {each}", "writer", 60.0):
            outcome = Outcome(run.key[::-1], {"seconds": 1.0})
            if database.finish(run.key, f"{number} {each}", "writer", outcome):
                os.write(told, f"{run.key} {run.key[::-1]}\n".encode())


def part_writers_postgresql(size: float) -> dict[str, Any]:
    program = initdb()
    if program is None:
        raise SystemExit("there is no PostgreSQL server here; Debian's package is postgresql")
    version = subprocess.run([program, "--version"], capture_output=True, text=True).stdout.split()[2]
    with running(program) as server:
        return {"postgresql": version, **writers(size, new_database(server))}


class Drivers:
    """A driver in a process of its own, which is killed and started again."""

    def __init__(self, folder: Path, jobs: int, address: str | None) -> None:
        self.folder, self.kills = folder, 0
        self._command = [sys.executable, __file__, "drive", "--folder", str(folder), "--jobs", str(jobs)]
        self._command += [] if address is None else ["--address", address]
        self._start()

    def _start(self) -> None:
        with (self.folder / "driver.log").open("ab") as log:
            self.process = subprocess.Popen(self._command, stdout=log, stderr=log)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        self.kills += 1
        self._start()


def mixed(jobs: int, worker_kills: int, driver_kills: int, node_kills: int, cluster: Any = None) -> dict[str, Any]:
    """Tiny jobs under a driver, all of which are killed now and then; and what the database holds in the end."""
    random_ = random.Random(0)
    with tempfile.TemporaryDirectory(dir=SCRATCH) as place:
        folder = Path(place)
        marks = folder / "marks"
        marks.mkdir()
        database, start = Database.open(folder / "sweep.db"), time.monotonic()
        drivers = Drivers(folder, jobs, None if cluster is None else cluster.address)
        killed, nodes, seen = 0, 0, set[str]()
        node = None if cluster is None else patiently(lambda: cluster.add_node(**NODE, num_cpus=2))
        while drivers.process.poll() is None:
            time.sleep(random_.uniform(0.1, 0.4))
            done = list(database.states().values()).count("done")
            begun = sorted((path.name for path in marks.iterdir()), key=lambda name: int(name.split("-")[2]))
            fresh = [name for name in begun[-SLOTS:] if name not in seen]
            # Kills go with the jobs, so that they hit all of the sweep; the last before its end.
            if killed < min(worker_kills, (done + SLOTS) * worker_kills / (0.9 * jobs)) and fresh:
                name = random_.choice(fresh)
                seen.add(name)
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(name.split("-")[1]), signal.SIGKILL)
                    killed += 1
            if drivers.kills < driver_kills and done >= (drivers.kills + 1) * jobs // (driver_kills + 2):
                drivers.kill()
            if cluster is not None and nodes < node_kills and done >= (nodes + 1) * jobs // (node_kills + 2):
                cluster.remove_node(node, allow_graceful=False)
                nodes += 1
                node = patiently(lambda: cluster.add_node(**NODE, num_cpus=2))
        seconds = time.monotonic() - start
        rows = [row for row in database.rows() if row["digest"] is not None]
        serial = {entry(number).key: hashed(entry(number, seconds=0.0).payload).digest for number in range(jobs)}
        times = Counter(int(path.name.partition("-")[0]) for path in marks.iterdir())
        log = (folder / "driver.log").read_text().splitlines()[-3:]
    return {
        "jobs": jobs,
        "job_seconds": SECONDS,
        "worker_kills": killed,
        "node_kills": nodes,
        "driver_kills": drivers.kills,
        "rows": len(rows),
        "twice": len(rows) - len({row["key"] for row in rows}),
        "lost": jobs - len({row["key"] for row in rows}),
        "equal_to_a_serial_run": sum(serial[row["key"]] == row["digest"] for row in rows),
        "begun": times.total(),
        "exit_code": drivers.process.returncode,
        "log": [] if drivers.process.returncode == 0 else log,
        "seconds": round(seconds, 1),
    }


def part_processes(size: float) -> dict[str, Any]:
    return mixed(round(JOBS * size), round(WORKER_KILLS * size), DRIVER_KILLS, 0)


@contextlib.contextmanager
def ray_cluster() -> Iterator[Any]:
    """A head with two CPUs on the loopback; ``mixed`` adds the second node."""
    from ray.cluster_utils import Cluster

    cluster = patiently(lambda: Cluster(initialize_head=True, head_node_args={**HEAD, "num_cpus": 2}))
    try:
        yield cluster
    finally:
        cluster.shutdown()


def part_ray(size: float) -> dict[str, Any]:
    with ray_cluster() as cluster:
        return mixed(round(JOBS * size), round(WORKER_KILLS * size), DRIVER_KILLS, NODE_KILLS, cluster)


def drive_one(folder: Path, jobs: int, address: str | None) -> None:
    """The driver that is killed."""
    entries = [entry(number, seconds=SECONDS, marks=str(folder / "marks")) for number in range(jobs)]
    pool = Processes(2, ["clcalib.sweep.database"]) if address is None else RayNodes(2, address)
    database = Database.open(folder / "sweep.db")
    summary = drive(entries, hashed, database, pool, lease=LEASE, most_attempts=1000)
    print(summary.counts, flush=True)


PARTS: dict[str, Part] = {
    "writers": writers,
    "writers_postgresql": part_writers_postgresql,
    "processes": part_processes,
    "ray": part_ray,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=[*PARTS, "drive"])
    parser.add_argument("--size", type=float, default=1.0, help="a share of the full battery")
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--jobs", type=int, default=JOBS)
    parser.add_argument("--address")
    arguments = parser.parse_args()
    if arguments.part == "drive":
        drive_one(arguments.folder, arguments.jobs, arguments.address)
    else:
        run_part(PARTS, arguments, "sweep_reliability")


if __name__ == "__main__":
    main()
