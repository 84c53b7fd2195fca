"""Several workers as real processes over loopback, each with a run of a fraction of a second."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import multiprocessing
import traceback
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any

import torch
import torch._dynamo  # with the next two, what a capture loads: once in the server, and not in each child
import torch._inductor
import torch.distributed as dist
import torch.export._trace

import clcalib
from clcalib.calibrate.observer import SilentObserver
from clcalib.calibrate.recipe import Recipe
from clcalib.team.group import ProcessGroup
from clcalib.team.team import Team
from tests.tiny import images, tiny

# Children come from a server that has loaded torch and has never computed: forked in milliseconds, and safely.
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["tests.team.workers"])

r = clcalib.recipes
RECIPES: Mapping[str, Callable[[], Recipe]] = {
    "qdrop": lambda: r.qdrop(steps=8),
    "contrastive": lambda: clcalib.with_contrastive(r.qdrop(steps=8), interval=2, images=8),
    "in_batch": lambda: clcalib.with_contrastive(r.qdrop(steps=6), read="activations", interval=1, images="all"),
    "brecq": lambda: r.brecq(steps=6, activation_steps=4),
    "feedback": lambda: dataclasses.replace(r.qdrop(steps=4), start="error_feedback"),
    "pd_quant": lambda: r.pd_quant(steps=4),
    "last_phase": lambda: clcalib.with_last_phase(r.gptq(), steps=20),
    "tuning": lambda: clcalib.with_tuning(r.nearest(), steps=6),
    "biases": lambda: clcalib.with_biases(r.brecq(steps=6, activation_steps=4)),
    "nearest": r.nearest,
}


def quantized(team: Team, name: str = "qdrop", *, count: int = 50, **changes: Any) -> clcalib.QuantizationResult:
    """One worker's result; with a number of images that no number of shards divides."""
    settings: dict[str, Any] = {
        "calibration": clcalib.CalibrationSet.from_tensor(images(count)),
        "held_out": clcalib.CalibrationSet.from_tensor(images(22, seed=9)),
        "recipe": RECIPES[name](),
        "bits": clcalib.Bits(2, 4),
        "precision": "float32",
        "measured_images": 64,
        **changes,
    }
    return clcalib.quantize(tiny(), **settings, team=team)


def digest(result: clcalib.QuantizationResult) -> str:
    """sha256 of weights, losses and errors."""
    state = result.model.state_dict()
    content = b"".join(name.encode() + state[name].contiguous().numpy().tobytes() for name in sorted(state))
    told = [result.trace.model_dump(mode="json"), [unit.model_dump(mode="json") for unit in result.record.units]]
    return hashlib.sha256(content + json.dumps(told, sort_keys=True).encode()).hexdigest()


def facts(team: Team, name: str, **changes: Any) -> dict[str, Any]:
    """What a worker tells of its result."""
    result = quantized(team, name, **changes)
    return {
        "digest": digest(result),
        "stored_bytes": result.record.stored_bytes,
        "resumptions": result.record.resumptions,
    }


class Stopping(SilentObserver):
    """Ends a run in its second unit."""

    def __init__(self) -> None:
        self.units = 0

    def unit_started(self, index: int, count: int, name: str, kind: str, steps: int) -> None:
        self.units += 1

    def step(self, step: int, losses: Any) -> None:
        if self.units == 2 and step:
            raise KeyboardInterrupt


Task = Callable[[Team], Any]


def together(workers: int, task: Task, *, shards: int = 4, timeout: float = 300) -> list[Any]:
    """What a task gives on each of the workers, by rank; a failure is raised here."""
    return answers_of(workers, functools.partial(_work, task, shards), timeout)


def answers_of(workers: int, work: Callable[..., None], timeout: float) -> list[Any]:
    """By rank, the answers of processes that each call ``work(workers, rank, port, answers)``."""
    answers = FORKS.Queue()
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    children = [FORKS.Process(target=work, args=(workers, rank, store.port, answers)) for rank in range(workers)]
    for child in children:
        child.start()
    found: dict[int, Any] = {}
    try:
        while len(found) < workers:
            rank, error, answer = answers.get(timeout=timeout)
            if error:
                raise AssertionError(f"worker {rank} of {workers}: {error}")
            found[rank] = answer
    finally:
        for child in children:
            child.join(5 if len(found) == workers else 0)
            child.kill()
    return [found[rank] for rank in range(workers)]


def alone(task: Task, *, shards: int = 4) -> Any:
    """What it gives on one worker, in this process."""
    return task(Team(shards=shards))


def _work(task: Task, shards: int, workers: int, rank: int, port: int, answers: Any) -> None:
    torch.set_num_threads(1)
    try:
        store = dist.TCPStore("127.0.0.1", port, timeout=timedelta(seconds=60))
        exchange = ProcessGroup.join(store, rank, workers, address="127.0.0.1")
        answer = task(Team(shards, workers, rank, exchange))
    except BaseException:  # whatever it is, the test has to be told
        answers.put((rank, traceback.format_exc(), None))
    else:
        answers.put((rank, None, answer))


def runs_of(*names: str, **changes: Any) -> Task:
    """``facts`` of some recipes, one after the other, as a task."""
    return functools.partial(_runs, names=names, changes=changes)


def _runs(team: Team, names: tuple[str, ...], changes: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [facts(team, name, **changes) for name in names]


class Echo:
    """An exchange in which all other workers have what this one has."""

    def __init__(self, workers: int) -> None:
        self.workers = workers

    def begin(self, tensor: torch.Tensor) -> Callable[[], list[torch.Tensor]]:
        """The same tensor from each."""
        return lambda: [tensor] * self.workers

    def broadcast(self, data: bytes | None) -> bytes:
        """What was given."""
        return data or b"{}"
