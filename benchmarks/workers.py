"""What several workers bring on one machine: wall time, bits, stored bytes, and what they send each other.

    python benchmarks/workers.py            # about an hour on two quiet cores
    python benchmarks/workers.py --smoke    # a few steps, nothing written

The embedded ResNet-20 and its calibration images, QDrop at W2A4 with 200 steps for each unit, with and without the
contrastive term, in four shards; each worker is a process with one thread, connected as by ``--workers``.  One worker
and two take turns, and with them one worker with one shard, which is the default.  Stores are counted for 4,096 random
images under nearest rounding.  Writes ``benchmarks/results/workers.json``.
"""

from __future__ import annotations

import argparse
import hashlib
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

import clcalib
from clcalib.calibrate.observer import SilentObserver
from clcalib.calibrate.precision import convolution_dtype
from clcalib.data.sources import load_calibration
from clcalib.team.group import ProcessGroup
from clcalib.team.nearby import joined
from clcalib.team.team import Alone, Exchange
from common import NETWORKS, provenance, write_result
from demo_images import CALIBRATION, TRANSFORM

SHARDS, STEPS, REPEATS, STORED_IMAGES, SEED = 4, 200, 3, 4096, 0
SPAWN = multiprocessing.get_context("spawn")
Task = Mapping[str, Any]


class Counting(SilentObserver):
    """Notes what was sent between two steps of each unit that are reported, 25 steps apart."""

    def __init__(self, exchange: Exchange) -> None:
        self.exchange, self.per_step = exchange, list[dict[str, Any]]()
        self._unit, self._before = "", (0, 0, 0)

    def unit_started(self, index: int, count: int, name: str, kind: str, steps: int) -> None:
        self._unit, self._before = name, (0, 0, 0)

    def step(self, step: int, losses: Mapping[str, float]) -> None:
        now = step, getattr(self.exchange, "messages", 0), getattr(self.exchange, "sent_bytes", 0)
        steps, messages, sent = (new - old for new, old in zip(now, self._before, strict=True))
        if step and self._before[1]:
            row = {"unit": self._unit, "messages": messages / steps, "bytes_per_message": sent / messages}
            if row not in self.per_step:
                self.per_step.append(row)
        self._before = now


def measured(task: Task, team: clcalib.Team) -> dict[str, Any]:
    """One worker's run."""
    observer, cpu = Counting(team.exchange), time.process_time()
    recipe = clcalib.recipes.qdrop(steps=task["steps"]) if task["steps"] else clcalib.recipes.nearest()
    if task["images"] is None:
        calibration = load_calibration(CALIBRATION, transform=TRANSFORM)
    else:
        generator = torch.Generator().manual_seed(SEED)
        calibration = clcalib.CalibrationSet.from_tensor(torch.randn(task["images"], 3, 32, 32, generator=generator))
    result = clcalib.quantize(
        NETWORKS["demo"].load(),
        calibration,
        recipe=clcalib.with_contrastive(recipe) if task["contrastive"] else recipe,
        bits=clcalib.Bits(2, 4),
        seed=SEED,
        measured_images=0,
        precision=task["precision"],
        observer=observer,
        team=team,
    )
    with tempfile.TemporaryDirectory() as folder:
        result.save(Path(folder) / "out")
        digest = hashlib.sha256((Path(folder) / "out" / "model.safetensors").read_bytes()).hexdigest()
    return {
        "reconstruction_seconds": result.record.seconds_per_stage["reconstruction"],
        "seconds_per_stage": result.record.seconds_per_stage,
        "cpu_seconds": time.process_time() - cpu,
        "stored_bytes": result.record.stored_bytes,
        "images": len(calibration),
        "sha256": digest,
        "per_step": observer.per_step,
    }


def work(task: Task, workers: int, rank: int, port: int, answers: Any) -> None:
    """One process."""
    torch.set_num_threads(1)
    exchange: Exchange = Alone()
    if workers > 1:
        store = dist.TCPStore("127.0.0.1", port, timeout=timedelta(seconds=300))
        group = ProcessGroup.join(store, rank, workers, address="127.0.0.1")
        exchange = joined(group, store, rank, workers)
    answers.put((rank, measured(task, clcalib.Team(task["shards"], workers, rank, exchange))))


def together(task: Task, workers: int) -> list[dict[str, Any]]:
    """What all workers of one run tell, by rank."""
    answers = SPAWN.Queue()
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    processes = [SPAWN.Process(target=work, args=(task, workers, rank, store.port, answers)) for rank in range(workers)]
    for process in processes:
        process.start()
    found: dict[int, dict[str, Any]] = {}
    while len(found) < workers:
        if any(process.exitcode for process in processes):
            raise SystemExit("a worker failed; its error is above")
        if not answers.empty():
            rank, answer = answers.get()
            found[rank] = answer
        time.sleep(0.1)
    for process in processes:
        process.join()
    return [found[rank] for rank in range(workers)]


def compared(task: Task, repeats: int) -> dict[str, Any]:
    """One worker and two in turns, then four once."""
    rows: dict[int, list[dict[str, Any]]] = {1: [], 2: [], 4: []}
    unsplit = list[dict[str, Any]]()
    for _ in range(repeats):
        unsplit += together({**task, "shards": 1}, 1)
        for workers in (1, 2):
            rows[workers] += together(task, workers)
    rows[4] += together(task, 4)
    seconds = {workers: [row["reconstruction_seconds"] for row in rows[workers][::workers]] for workers in rows}
    ratios = [one / two for one, two in zip(seconds[1], seconds[2], strict=True)]
    digests = {row["sha256"] for found in rows.values() for row in found}
    print(f"{dict(task)}: {statistics.median(ratios):.2f}x, {len(digests)} digest(s)", flush=True)
    return {
        **task,
        "images": rows[1][0]["images"],
        "reconstruction_seconds": seconds,
        "one_shard_seconds": [row["reconstruction_seconds"] for row in unsplit],
        "cpu_seconds": {workers: [row["cpu_seconds"] for row in found] for workers, found in rows.items()},
        "seconds_per_stage": {workers: found[0]["seconds_per_stage"] for workers, found in rows.items()},
        "ratios_of_two_to_one": ratios,
        "median_ratio": statistics.median(ratios),
        "same_bits": len(digests) == 1,
        "sha256": sorted(digests),
        "sent_per_step": {workers: rows[workers][0]["per_step"] for workers in (2, 4)},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true", help="few steps and images, once, to see that it works")
    parser.add_argument("--steps", type=int, default=STEPS, help="for each unit (%(default)s)")
    parser.add_argument("--repeats", type=int, default=REPEATS, help="turns of one worker and two (%(default)s)")
    arguments = parser.parse_args()
    smoke = arguments.smoke
    torch.set_num_threads(1)
    steps, repeats, images, few = arguments.steps, arguments.repeats, STORED_IMAGES, None
    if smoke:
        steps, repeats, images, few = 30, 1, 256, 64
    # Chosen by time, and once, so that all runs have the same.
    precision = str(convolution_dtype("auto", torch.device("cpu"))).removeprefix("torch.")
    tasks = [
        {"steps": steps, "contrastive": own, "images": few, "shards": SHARDS, "precision": precision}
        for own in (False, True)
    ]
    runs = [compared(task, repeats) for task in tasks]
    many = {"precision": precision, "steps": 0, "contrastive": False, "images": images, "shards": SHARDS}
    stored = {workers: [row["stored_bytes"] for row in together(many, workers)] for workers in (1, 4)}
    print(f"stored bytes: {stored}")
    result = {"threads_per_worker": 1, "runs": runs, "stored_bytes": {"images": images, **stored}}
    if not smoke:
        print(write_result("workers", {**result, **provenance(seed=SEED)}))


if __name__ == "__main__":
    main()
