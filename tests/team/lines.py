"""Workers that have a network's units in a line, as real processes over loopback."""

from __future__ import annotations

import functools
import tempfile
import traceback
import warnings
from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

import clcalib
from clcalib.attending import attend
from clcalib.errors import ClcalibWarning
from clcalib.export.checkpoint import TENSORS
from clcalib.team.line import Line, PairLinks
from tests.team.workers import RECIPES, answers_of
from tests.tiny import images, tiny

Task = Callable[[Line], Any]


def settings_of(name: str, **changes: Any) -> dict[str, Any]:
    """What ``quantize`` is called with, but for the model."""
    settings: dict[str, Any] = {
        "calibration": clcalib.CalibrationSet.from_tensor(images(50)),
        "held_out": clcalib.CalibrationSet.from_tensor(images(22, seed=9)),
        "evaluation": clcalib.EvaluationSet.from_tensor(images(12, seed=5)),
        "recipe": RECIPES[name](),
        "bits": clcalib.Bits(2, 4),
        "precision": "float32",
        "measured_images": 64,
    }
    return settings | changes


def facts(line: Line | None, name: str, model: Callable[[], torch.nn.Module] = tiny, **changes: Any) -> dict[str, Any]:
    """What the run leaves, as worker 0 has it; nothing on the others."""
    settings = settings_of(name, **changes)
    if line is not None and line.rank > 0:
        attend(model(), **settings, line=line)
        return {}
    with warnings.catch_warnings():
        warnings.simplefilter("always", ClcalibWarning)  # the record has what is shown, wherever it runs
        result = clcalib.quantize(model(), **settings, line=line)
    record = result.record.model_dump(mode="json")
    kept = ("units", "warnings", "agreement", "nearest_agreement", "model_digest", "recipe", "shards", "resumptions")
    return {
        "tensors": saved(result),
        "trace": result.trace.model_dump(mode="json"),
        "record": {key: record[key] for key in kept},
    }


def saved(result: clcalib.QuantizationResult) -> bytes:
    """The file of the network."""
    with tempfile.TemporaryDirectory() as folder:
        result.save(folder, overwrite=True)
        return (Path(folder) / TENSORS).read_bytes()


def in_line(workers: int, task: Task, *, timeout: float = 300) -> list[Any]:
    """What a task gives on each of the workers, by rank; a failure is raised here."""
    return answers_of(workers, functools.partial(_work, task), timeout)


def _work(task: Task, workers: int, rank: int, port: int, answers: Any) -> None:
    torch.set_num_threads(1)
    try:
        store = dist.TCPStore("127.0.0.1", port, timeout=timedelta(seconds=60))
        links = PairLinks.join(store, rank, workers, address="127.0.0.1")
        answer = task(Line(workers, rank, links))
    except BaseException:  # whatever it is, the test has to be told
        answers.put((rank, traceback.format_exc(), None))
    else:
        answers.put((rank, None, answer))


def run_of(name: str, **changes: Any) -> Task:
    """``facts`` of a recipe, as a task."""
    return functools.partial(_run, name=name, changes=changes)


def _run(line: Line, name: str, changes: Mapping[str, Any]) -> dict[str, Any]:
    return facts(line, name, **changes)
