"""Kill the workers, nodes, drivers and writers of sweeps, and count the rows: benchmarks/sweep_reliability.json.

    python benchmarks/sweep_reliability.py writers     # 8 writers of one SQLite file, 500 kills
    python benchmarks/sweep_reliability.py processes   # 200 jobs on processes, 100 workers and 2 drivers killed
    python benchmarks/sweep_reliability.py ray         # the same on 2 Ray nodes, 5 nodes killed, too
    python benchmarks/sweep_reliability.py overhead    # jobs of 60 s, against 60 s
    python benchmarks/sweep_reliability.py memory      # of the driver of 1,000 runs of the embedded network

Each part is written by itself, so that they can be run one after the other.  But for the last one, they use the package
without its ``__init__``, which imports torch: workers are killed by the hundred, and begin anew.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import platform
import random
import resource
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
SCRATCH = ROOT / "build"  # on a disk, which a temporary folder need not be
RESULT = ROOT / "benchmarks" / "sweep_reliability.json"


def light_path() -> str:
    """A folder in which ``clcalib`` is the package, but for what its ``__init__`` imports."""
    folder = Path(os.environ.setdefault("CLCALIB_LIGHT", tempfile.mkdtemp(prefix="clcalib-light-")))
    package = folder / "clcalib"
    package.mkdir(exist_ok=True)
    (package / "__init__.py").write_text(f"__path__ = [{str(ROOT / 'src' / 'clcalib')!r}]\n")
    return str(folder)


IS_LIGHT = "memory" not in sys.argv
PATHS = [*([light_path()] if IS_LIGHT else []), str(ROOT / "src"), str(ROOT / "benchmarks")]
sys.path[:0] = PATHS
os.environ["PYTHONPATH"] = os.pathsep.join(PATHS)

from clcalib.durable.stop import stopping_politely  # noqa: E402 - the paths are settled above
from clcalib.files import write_atomically  # noqa: E402
from clcalib.sweep.database import Database  # noqa: E402
from clcalib.sweep.driver import Progress, Summary, drive  # noqa: E402
from clcalib.sweep.jobs import Outcome  # noqa: E402
from clcalib.sweep.processes import Processes  # noqa: E402
from clcalib.sweep.ray_nodes import RayNodes  # noqa: E402
from sweep_jobs import entry, hashed  # noqa: E402

JOBS, WORKER_KILLS, NODE_KILLS, DRIVER_KILLS = 200, 100, 5, 2
SECONDS = 0.5  # of a tiny job
LEASE = 5.0
WRITERS, WRITER_KILLS, ROWS_FOR_A_KILL = 8, 500, 4
LINE = 130  # bytes of what a writer says of a row
LONG, LONG_JOBS = 60.0, 4
QUEUED = 1000


def part_writers(size: float) -> dict[str, Any]:
    """Writers that say what they have written only when the database has said that it has."""
    kills = max(1, round(WRITER_KILLS * size))
    context, random_ = multiprocessing.get_context("fork"), random.Random(0)
    with tempfile.TemporaryDirectory(dir=SCRATCH) as place:
        folder = Path(place)
        database = Database.open(folder / "sweep.db")
        start, killed, writers = time.monotonic(), 0, dict[int, Any]()
        while killed < kills:
            for number in range(WRITERS):
                if number not in writers or not writers[number].is_alive():
                    first = killed * 1_000_000 + number * 100_000
                    writers[number] = context.Process(target=_write, args=(folder, number, first), daemon=True)
                    writers[number].start()
            # Some rows for each kill, so that the kills hit what writes and not what starts.
            enough, end = ROWS_FOR_A_KILL * killed * LINE, time.monotonic() + 5.0
            while sum(path.stat().st_size for path in folder.glob("told-*")) < enough and time.monotonic() < end:
                time.sleep(random_.uniform(0.0, 0.02))
            time.sleep(random_.uniform(0.0, 0.05))
            victim = writers[random_.randrange(WRITERS)]
            if victim.is_alive():
                victim.kill()
                victim.join()
                killed += 1
        for writer in writers.values():
            writer.kill()
            writer.join()
        told = [line for path in folder.glob("told-*") for line in path.read_text().split("\n")[:-1]]
        rows = {row["key"]: row["digest"] for row in database.rows() if row["digest"] is not None}
        with contextlib.closing(sqlite3.connect(folder / "sweep.db")) as connection:
            integrity = connection.execute("PRAGMA integrity_check").fetchone()[0]
        lost = [line for line in told if rows.get(line.split()[0]) != line.split()[1]]
    return {
        "writers": WRITERS,
        "kills": killed,
        "acknowledged": len(told),
        "acknowledged_twice": len(told) - len(set(told)),
        "lost": len(lost),
        "rows": len(rows),
        "integrity_check": integrity,
        "seconds": round(time.monotonic() - start, 1),
    }


def _write(folder: Path, number: int, first: int) -> None:
    database = Database.open(folder / "sweep.db", is_checked=False)
    told = os.open(folder / f"told-{number}", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for each in range(first, first + 100_000):
        run = entry(each)
        database.add([run])
        if database.claim(run.key, f"{number} {each}", "writer", 60.0):
            outcome = Outcome(run.key[::-1], {"seconds": 1.0})
            if database.finish(run.key, f"{number} {each}", "writer", outcome):
                os.write(told, f"{run.key} {run.key[::-1]}\n".encode())


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
        node = None if cluster is None else cluster.add_node(num_cpus=2)
        while drivers.process.poll() is None:
            time.sleep(random_.uniform(0.1, 0.4))
            done = list(database.states().values()).count("done")
            fresh = sorted({path.name for path in marks.iterdir()} - seen)
            if killed < worker_kills and fresh:
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
                node = cluster.add_node(num_cpus=2)
        seconds = time.monotonic() - start
        rows = [row for row in database.rows() if row["digest"] is not None]
        serial = {entry(number).key: hashed(entry(number, seconds=0.0).payload).digest for number in range(jobs)}
        begun = Counter(int(path.name.partition("-")[0]) for path in marks.iterdir())
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
        "begun": sum(begun.values()),
        "exit_code": drivers.process.returncode,
        "log": [] if drivers.process.returncode == 0 else log,
        "seconds": round(seconds, 1),
    }


def part_processes(size: float) -> dict[str, Any]:
    return mixed(round(JOBS * size), round(WORKER_KILLS * size), DRIVER_KILLS, 0)


@contextlib.contextmanager
def ray_cluster() -> Iterator[Any]:
    """A head with two CPUs on the loopback; ``mixed`` adds the second node."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    from ray.cluster_utils import Cluster

    head = {"num_cpus": 2, "include_dashboard": False, "node_ip_address": "127.0.0.1"}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        yield cluster
    finally:
        cluster.shutdown()


def part_ray(size: float) -> dict[str, Any]:
    with ray_cluster() as cluster:
        return mixed(round(JOBS * size), round(WORKER_KILLS * size), DRIVER_KILLS, NODE_KILLS, cluster)


def part_overhead(size: float) -> dict[str, Any]:
    """What a sweep of jobs of a minute takes beyond them, on two workers, the start of both pools included."""
    seconds = LONG * size
    found: dict[str, Any] = {"job_seconds": seconds, "jobs": LONG_JOBS, "workers": 2}
    pools: dict[str, Callable[[], Any]] = {"processes": lambda: Processes(2, ["clcalib.sweep.database"])}
    with contextlib.suppress(ImportError):
        import ray  # noqa: F401 - only whether it is there

        pools["ray"] = lambda: RayNodes(2)
    for name, make in pools.items():
        with tempfile.TemporaryDirectory(dir=SCRATCH) as place:
            start = time.monotonic()
            entries = [entry(number, seconds=seconds) for number in range(LONG_JOBS)]
            summary = drive(entries, hashed, Database.open(Path(place) / "sweep.db"), make())
            assert summary.counts["done"] == LONG_JOBS, summary
            took = time.monotonic() - start
        ideal = seconds * LONG_JOBS / 2
        found[name] = {"seconds": round(took, 2), "overhead": round(took / ideal - 1, 4)}
    return found


def part_memory(size: float) -> dict[str, Any]:
    """The most memory of the real driver, torch and all, while its first runs go on and the others wait."""
    from clcalib.config_sources import read_toml
    from clcalib.sweep.plan import absolute
    from clcalib.sweep.planning import parse_sweep, plan_of
    from clcalib.sweep.runs import carry_out

    path = ROOT / "examples" / "sweep" / "small.toml"
    table = absolute(read_toml(path), path.parent)
    count = round(QUEUED * size)
    grid = {"widths": ["W2A2"], "recipes": ["qdrop"], "contrastive": ["none"], "seeds": list(range(count))}
    with tempfile.TemporaryDirectory(dir=SCRATCH) as place:
        plan = plan_of(parse_sweep({**table, "grids": [grid]}, str(path)), str(path), out=Path(place))
        looks, most = [0], list[int]()

        def watch(progress: Progress) -> None:
            looks[0] += 1
            most.append(progress.counts["queued"])

        # Of the first runs, each of two workers has one under way when it is over.
        with stopping_politely(30.0):
            summary: Summary = drive(
                plan.entries, carry_out, Database.open(plan.database), Processes(2), watch=watch,
                is_wanted=lambda: looks[0] < 40,
            )  # fmt: skip
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"runs": len(plan.entries), "queued": max(most), "peak_bytes": peak, "done": summary.counts["done"]}


def drive_one(folder: Path, jobs: int, address: str | None) -> None:
    """The driver that is killed."""
    entries = [entry(number, seconds=SECONDS, marks=str(folder / "marks")) for number in range(jobs)]
    pool = Processes(2, ["clcalib.sweep.database"]) if address is None else RayNodes(2, address)
    database = Database.open(folder / "sweep.db")
    summary = drive(entries, hashed, database, pool, lease=LEASE, most_attempts=1000)
    print(summary.counts, flush=True)


def provenance() -> dict[str, Any]:
    run = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True)
    names = ("model name",)
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    processor = next((line.split(":", 1)[1].strip() for line in lines if line.startswith(names)), platform.processor())
    return {
        "python": platform.python_version(),
        "sqlite": sqlite3.sqlite_version,
        "machine": f"{platform.machine()}, {processor}, {os.cpu_count()} cores",
        "load": [round(value, 1) for value in os.getloadavg()],
        "commit": run.stdout.strip() or "unknown",
    }


PARTS = {
    "writers": part_writers,
    "processes": part_processes,
    "ray": part_ray,
    "overhead": part_overhead,
    "memory": part_memory,
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
        return
    where = provenance()
    SCRATCH.mkdir(exist_ok=True)
    found = {**PARTS[arguments.part](arguments.size), "size": arguments.size, **where}
    print(json.dumps(found, indent=1))
    result = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    write_atomically(RESULT, (json.dumps({**result, arguments.part: found}, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
