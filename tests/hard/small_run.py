"""A run of a fraction of a second, and child processes that carry it out and may be killed."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import multiprocessing
import os
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch

import clcalib
from clcalib import pipeline
from clcalib.calibrate.journal import Journal
from clcalib.calibrate.recipe import Recipe
from clcalib.durable.stop import stopping_politely
from tests.tiny import images, tiny

STEPS = 40


def recipe(name: str = "qdrop", *, is_contrastive: bool = False, steps: int = STEPS) -> Recipe:
    own = clcalib.recipes.RECIPES[name](steps=steps)
    return clcalib.with_contrastive(own) if is_contrastive else own


def quantize(state: Path | None, *, is_resumed: bool = False, **changes: object) -> clcalib.QuantizationResult:
    settings: dict[str, object] = {
        "model": tiny(),
        "calibration": clcalib.CalibrationSet.from_tensor(images()),
        "recipe": recipe(),
        "bits": clcalib.Bits(2, 4),
        "measured_images": 0,
        "precision": "float32",
        **changes,
    }
    return clcalib.quantize(**settings, state_folder=state, is_resumed=is_resumed)


def digest(result: clcalib.QuantizationResult, folder: Path) -> str:
    """sha256 of what is saved of a result."""
    result.save(folder, overwrite=True)
    return digest_in(folder)


def digest_in(folder: Path) -> str:
    """sha256 of a saved model."""
    content = b"".join((folder / name).read_bytes() for name in ("model.safetensors", "model.json"))
    return hashlib.sha256(content).hexdigest()


def often(monkeypatch, seconds: float = 0.0) -> None:
    """Let the steps of a unit be saved every few milliseconds."""
    monkeypatch.setattr("clcalib.pipeline.Journal", lambda state: Journal(state, snapshot_seconds=seconds))


# Children come from a server that has loaded torch and has never computed: forked in milliseconds, and safely.
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["tests.hard.small_run"])


@dataclasses.dataclass(frozen=True)
class Task:
    """A run for a child."""

    state: Path
    out: Path | None = None
    is_resumed: bool = False
    snapshot_seconds: float = 60.0
    steps: int = STEPS
    is_polite: bool = False

    def carry_out(self) -> None:
        """The run; the exit code is 130 where it was asked to stop."""
        torch.set_num_threads(1)
        pipeline.Journal = lambda state: Journal(state, snapshot_seconds=self.snapshot_seconds)
        try:
            with stopping_politely() if self.is_polite else contextlib.nullcontext():
                result = quantize(self.state, is_resumed=self.is_resumed, recipe=recipe(steps=self.steps))
        except KeyboardInterrupt:
            os._exit(130)
        if self.out is not None:
            digest(result, self.out)


def started(task: Task) -> BaseProcess:
    process = FORKS.Process(target=task.carry_out)
    process.start()
    return process


def code_of(process: BaseProcess) -> int | None:
    """Its exit code, or less its signal, when it has ended."""
    process.join()
    return process.exitcode
