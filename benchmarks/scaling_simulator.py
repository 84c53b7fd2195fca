"""How long a step takes on many workers, on paper: benchmarks/results/scaling.json.

    python benchmarks/scaling_simulator.py measure    # latency and bandwidth of an exchange here; quiet machine
    python benchmarks/scaling_simulator.py predict    # steps for 1 to 64 workers, checked against results/workers.json

A step on W workers, each with S / W of the S shards, in order of time:

    each worker computes one shard after the other, and begins to exchange a shard's row when it is computed;
    an exchange takes (W - 1) (latency + row / bandwidth), as each row passes all other workers; they follow each other;
    when the last one has come, every worker takes the step itself, which is the same work on each.

What one shard and the step itself take comes from runs of one worker and of two; runs of four are what is predicted.
Where a machine has fewer cores than workers, these take turns.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import multiprocessing
import statistics
import time
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from clcalib.team.group import ProcessGroup
from clcalib.team.nearby import joined
from common import RESULTS, provenance, write_result

SIZES, ROUNDS = (1_000, 100_000, 500_000), 50  # bytes of a row
MOST_WORKERS = 64
# Links as they are sold: latency of a message through gloo and TCP, assumed, and the line's rate.
LINKS = {"1 Gb/s": (1e-4, 1.25e8), "10 Gb/s": (5e-5, 1.25e9), "100 Gb/s": (3e-5, 1.25e10)}
# The same through NCCL, between GPUs: a network card that they reach by themselves, and NVLink of one direction.
GPU_LINKS = {"400 Gb/s, NCCL": (1e-5, 5e10), "NVLink, NCCL": (1e-5, 4.5e11)}
# Weights of a unit, which are nearly all that it trains: blocks of known networks.
UNITS = {"ResNet-20, last block": 73_728, "ResNet-50, last block": 4_456_448, "ViT-B, a block": 7_077_888}
SPAWN = multiprocessing.get_context("spawn")


@dataclasses.dataclass(frozen=True)
class Step:
    """What a step is made of.

    Args:
        shard_seconds: to compute one shard.
        own_seconds: of the step itself, on every worker.
        row_bytes: what is sent of each shard.
        latency, bandwidth: seconds, and bytes a second, of one message.
        cores: that the workers share; None for one each.
    """

    shard_seconds: float
    own_seconds: float
    row_bytes: float
    latency: float
    bandwidth: float
    cores: int | None = None

    def exchange_seconds(self, workers: int) -> float:
        """Of one row of each worker."""
        return (workers - 1) * (self.latency + self.row_bytes / self.bandwidth)

    def seconds(self, workers: int, shards: int) -> float:
        """A step, event by event.

        Example:
            >>> Step(1.0, 0.5, 0.0, 0.25, 1.0).seconds(2, 4)  # two shards, the second exchange, the step
            2.75
        """
        turns = max(1.0, workers / self.cores) if self.cores else 1.0
        computed = exchanged = 0.0
        for _ in range(shards // workers):
            computed += self.shard_seconds * turns
            exchanged = max(computed, exchanged) + self.exchange_seconds(workers)
        return exchanged + self.own_seconds * turns

    def is_saturated(self, workers: int) -> bool:
        """Whether the exchange of a row takes longer than the shard that it could hide behind."""
        return self.exchange_seconds(workers) > self.shard_seconds


def fitted(one: float, two: float, shards: int, row_bytes: float, latency: float, bandwidth: float, cores: int) -> Step:
    """A step from the seconds of one worker, and of two.

    One worker takes S c + f; two take S / 2 c + e + f, where the exchange e hides behind all shards but the last.
    """
    exchange = latency + row_bytes / bandwidth
    shard = max(0.0, one - two + exchange) / (shards - shards // 2)
    return Step(shard, max(0.0, one - shards * shard), row_bytes, latency, bandwidth, cores)


def checked(workers: dict[str, Any], latency: float, bandwidth: float, cores: int) -> list[dict[str, Any]]:
    """Measured steps of 1, 2 and 4 workers beside the predicted ones."""
    rows = []
    for run in workers["runs"]:
        per_step = run["sent_per_step"]["2"]
        names = dict.fromkeys(row["unit"] for row in per_step)
        steps = len(names) * run["steps"]
        taken = {n: statistics.median(run["reconstruction_seconds"][str(n)]) / steps for n in (1, 2, 4)}
        row_bytes = statistics.mean(row["bytes_per_message"] for row in per_step)
        step = fitted(taken[1], taken[2], run["shards"], row_bytes, latency, bandwidth, cores)
        predicted = {n: step.seconds(n, run["shards"]) for n in taken}
        rows.append(
            {
                "contrastive": run["contrastive"],
                "units": len(names),
                "bytes_per_message": row_bytes,
                "messages_per_step": statistics.mean(row["messages"] for row in per_step),
                "shard_ms": 1e3 * step.shard_seconds,
                "own_ms": 1e3 * step.own_seconds,
                "measured_ms": {n: 1e3 * seconds for n, seconds in taken.items()},
                "predicted_ms": {n: 1e3 * seconds for n, seconds in predicted.items()},
            }
        )
    return rows


def predicted(shard_seconds: float, own_seconds: float) -> list[dict[str, Any]]:
    """Steps of 64 shards, by unit, link and workers, each a machine of its own."""
    rows = []
    for unit, values in UNITS.items():
        for link, (latency, bandwidth) in LINKS.items():
            step = Step(shard_seconds, own_seconds, 4.0 * values, latency, bandwidth)
            numbers = [2**power for power in range(MOST_WORKERS.bit_length())]
            alone = step.seconds(1, MOST_WORKERS)
            speed = {n: alone / step.seconds(n, MOST_WORKERS) for n in numbers}
            saturated = next((n for n in numbers if step.is_saturated(n)), None)
            rows.append({"unit": unit, "link": link, "row_bytes": 4 * values, "speed": speed, "saturated": saturated})
    return rows


def exchanges() -> list[dict[str, Any]]:
    """By unit and link, what a shard must take for the exchange of its row to hide behind it; arithmetic alone."""
    rows = []
    for unit, values in UNITS.items():
        for link, (latency, bandwidth) in (LINKS | GPU_LINKS).items():
            step = Step(0.0, 0.0, 4.0 * values, latency, bandwidth)
            rows.append({"unit": unit, "link": link, "ms": {n: 1e3 * step.exchange_seconds(n) for n in (2, 8, 64)}})
    return rows


def part_measure() -> dict[str, Any]:
    """Latency and bandwidth among two workers and four, through memory in common and by gloo over the loopback."""
    return {kind: {str(n): _measured(n, is_near=kind == "memory") for n in (2, 4)} for kind in ("memory", "loopback")}


def _measured(workers: int, *, is_near: bool) -> dict[str, Any]:
    answers = SPAWN.Queue()
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    processes = [
        SPAWN.Process(target=_exchange, args=(workers, rank, store.port, answers, is_near)) for rank in range(workers)
    ]
    for process in processes:
        process.start()
    times = answers.get(timeout=600)
    for process in processes:
        process.join()
    small, large = times[0], times[-1]
    bandwidth = (SIZES[-1] - SIZES[0]) / max(1e-12, large - small) * (workers - 1)
    latency = max(0.0, small / (workers - 1) - SIZES[0] / bandwidth)
    return {"seconds": dict(zip(map(str, SIZES), times, strict=True)), "latency": latency, "bandwidth": bandwidth}


def _exchange(workers: int, rank: int, port: int, answers: Any, is_near: bool) -> None:
    torch.set_num_threads(1)
    store = dist.TCPStore("127.0.0.1", port, timeout=timedelta(seconds=120))
    exchange, medians = ProcessGroup.join(store, rank, workers, address="127.0.0.1"), []
    given = joined(exchange, store, rank, workers) if is_near else exchange
    for size in SIZES:
        tensor, times = torch.zeros(size // 4), []
        for _ in range(ROUNDS):
            clock = time.perf_counter()
            given.begin(tensor)()
            times.append(time.perf_counter() - clock)
        medians.append(statistics.median(times))
    if rank == 0:
        answers.put(medians)


def part_predict() -> dict[str, Any]:
    """The check against what was measured, and the table for many workers."""
    near = json.loads((RESULTS / "scaling.json").read_text())["memory"]["2"]
    workers = json.loads((RESULTS / "workers.json").read_text())
    cores = int(workers["machine"].rsplit(", ", 1)[1].split()[0])
    rows = checked(workers, near["latency"], near["bandwidth"], cores)
    plain = next(row for row in rows if not row["contrastive"])
    return {
        "checked": rows,
        "predicted": predicted(plain["shard_ms"] / 1e3, plain["own_ms"] / 1e3),
        "hidden_behind": exchanges(),
        "assumed": {
            "links": LINKS | GPU_LINKS,
            "shards": MOST_WORKERS,
            "shard_ms": plain["shard_ms"],
            "own_ms": plain["own_ms"],
        },
    }


PARTS = {"measure": part_measure, "predict": part_predict}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=PARTS)
    part = parser.parse_args().part
    found, path = PARTS[part](), RESULTS / "scaling.json"
    result = json.loads(path.read_text()) if path.exists() else {}
    print(write_result("scaling", {**result, **found, f"{part}_provenance": provenance()}))


if __name__ == "__main__":
    main()
