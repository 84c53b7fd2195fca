"""What a sweep costs beyond its runs: benchmarks/results/sweep_cost.json.

    python benchmarks/sweep_cost.py overhead      # 20 jobs of 60 s that wait, on two workers: against ten minutes
    python benchmarks/sweep_cost.py overhead_ray  # the same on Ray
    python benchmarks/sweep_cost.py memory        # of the driver of 1,000 runs of the embedded network
    python benchmarks/sweep_cost.py memory_ray    # the same on Ray

Workers have the whole package, with torch, as users have it.  The jobs of the first two wait instead of computing: two
that compute would take what the driver is to be measured by.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

from sweep_common import ROOT, SCRATCH, run_part, use_package

use_package()

from clcalib.durable.stop import stopping_politely  # noqa: E402 - the paths are settled above
from clcalib.forking import CAPTURING  # noqa: E402
from clcalib.sweep.database import Database  # noqa: E402
from clcalib.sweep.driver import Progress, Summary, drive  # noqa: E402
from clcalib.sweep.elsewhere import PRELOADED, carry_out, plan_elsewhere  # noqa: E402
from clcalib.sweep.jobs import Executor  # noqa: E402
from clcalib.sweep.processes import Processes  # noqa: E402
from clcalib.sweep.ray_nodes import RayNodes  # noqa: E402
from sweep_jobs import entry, hashed  # noqa: E402

LONG, LONG_JOBS, WORKERS = 60.0, 20, 2
QUEUED, LOOKS = 1000, 40


def pool_of(name: str) -> Executor:
    """As the command makes them."""
    return RayNodes(WORKERS) if name.endswith("ray") else Processes(WORKERS, (*PRELOADED, *CAPTURING))


def overhead(size: float, name: str) -> dict[str, Any]:
    """What a sweep takes beyond its jobs: the start of the pool, and all after the first job has begun."""
    seconds = LONG * size
    with tempfile.TemporaryDirectory(dir=SCRATCH) as place:
        start = time.time()
        entries = [entry(number, seconds=seconds, marks=place) for number in range(LONG_JOBS)]
        summary = drive(entries, hashed, Database.open(Path(place) / "sweep.db"), pool_of(name))
        end = time.time()
        begun = min(int(path.name.split("-")[2]) for path in Path(place).glob("*-*-*")) / 1e9
    assert summary.counts["done"] == LONG_JOBS, summary
    ideal = seconds * LONG_JOBS / WORKERS
    return {
        "job_seconds": seconds,
        "jobs": LONG_JOBS,
        "workers": WORKERS,
        "seconds": round(end - start, 2),
        "seconds_until_the_first_job": round(begun - start, 2),
        "overhead": round((end - start) / ideal - 1, 4),
        "overhead_after_the_first_job_began": round((end - begun) / ideal - 1, 4),
    }


def memory(size: float, name: str) -> dict[str, Any]:
    """The most memory of the real driver while its first runs go on and the others wait."""
    start, most = _held(), dict[str, int]()
    with tempfile.TemporaryDirectory(dir=SCRATCH) as place:
        plan = plan_elsewhere(_many(Path(place), round(QUEUED * size)), (), (), Path(place), None)
        looks, queued = [0], list[int]()

        def watch(progress: Progress) -> None:
            looks[0] += 1
            queued.append(progress.counts["queued"])
            most.update({kind: max(held, most.get(kind, 0)) for kind, held in _held().items()})

        # Of the first runs, each of two workers has one under way when it is over.
        with stopping_politely(30.0):
            summary: Summary = drive(
                plan.entries, carry_out, Database.open(plan.database), pool_of(name), watch=watch,
                is_wanted=lambda: looks[0] < LOOKS,
            )  # fmt: skip
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {
        "runs": len(plan.entries),
        "queued": max(queued),
        "done": summary.counts["done"],
        "peak_bytes": peak,
        "before_planning": start,
        "most_while_driving": most,
    }


def _many(folder: Path, count: int) -> Path:
    """The small sweep with one cell of many seeds."""
    examples = ROOT / "examples"
    text = (examples / "sweep" / "small.toml").read_text().partition("[[grids]]")[0].replace('"../', f'"{examples}/')
    grid = {"widths": ["W2A2"], "recipes": ["qdrop"], "contrastive": ["none"], "seeds": list(range(count))}
    path = folder / "many.toml"
    path.write_text(text + "[[grids]]\n" + "\n".join(f"{key} = {json.dumps(value)}" for key, value in grid.items()))
    return path


def _held() -> dict[str, int]:
    """Bytes of this process: resident, those that it shares with no other, and those that come from no file."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()[1:]
    sizes = {name: 1024 * int(rest.split()[0]) for name, _, rest in (line.partition(":") for line in lines)}
    private = sizes["Private_Clean"] + sizes["Private_Dirty"]
    return {"resident": sizes["Rss"], "private": private, "anonymous": sizes["Anonymous"]}


PARTS = {
    "overhead": lambda size: overhead(size, "processes"),
    "overhead_ray": lambda size: overhead(size, "ray"),
    "memory": lambda size: memory(size, "processes"),
    "memory_ray": lambda size: memory(size, "ray"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--size", type=float, default=1.0, help="a share of the seconds, or of the runs")
    os.environ["OMP_NUM_THREADS"] = "1"
    run_part(PARTS, parser.parse_args(), "sweep_cost")


if __name__ == "__main__":
    main()
