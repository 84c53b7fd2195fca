"""How much faster and smaller a quantized model is than its float original, in one runtime on this machine."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from clcalib.errors import ArgumentError
from clcalib.export.runtimes import peak_memory
from clcalib.export.runtimes.layers import LayerReport
from clcalib.export.runtimes.model_file import ImageInput, OnnxModel, read_model, written
from clcalib.export.runtimes.runtime import Runtime, runtime_named
from clcalib.export.runtimes.session import Array, Session

ROUNDS = 11
LEAST_SECONDS = 0.05  # of a model in a round; shorter ones are mostly the noise of the clock and of the machine
_WARM_UP = 3

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Timing:
    """One batch size and number of threads.

    Attributes:
        batch: images of a call.
        threads: that both models may use.
        float_ms: milliseconds of a call of the float model, median over the rounds.
        quantized_ms: of the quantized one.
        speedup: float time / quantized time, median over the rounds; each round has both models in turn.
        lower: quartile of these ratios.
        upper: quartile of these ratios.
        cpu_speedup: the same of CPU time, which all threads together took.
    """

    batch: int
    threads: int
    float_ms: float
    quantized_ms: float
    speedup: float
    lower: float
    upper: float
    cpu_speedup: float


@dataclass(frozen=True)
class Size:
    """Bytes of one model.

    Attributes:
        file: with its external tensors.
        peak: the most that a fresh process had in memory, which loaded it and ran one batch; None: not told here.
        runtime: what that process had with the runtime alone.
    """

    file: int
    peak: int | None
    runtime: int | None


@dataclass(frozen=True)
class Bench:
    """The comparison of a float and a quantized model; ``layers`` are those of the quantized one."""

    runtime: str
    version: str
    machine: str
    float_model: str
    quantized_model: str
    input_shape: tuple[int, ...]
    rounds: int
    timings: tuple[Timing, ...]
    float_size: Size
    quantized_size: Size
    layers: tuple[LayerReport, ...]


def bench(
    float_model: str | Path,
    quantized_model: str | Path,
    runtime: str = "onnxruntime",
    *,
    batches: Sequence[int] = (1, 64),
    threads: Sequence[int] = (1, 2),
    shape: Sequence[int] | None = None,
    rounds: int = ROUNDS,
    progress: Progress | None = None,
) -> Bench:
    """Time both models on the same random images, round by round in turn, and weigh them.

    Args:
        float_model: the path of an ONNX file.
        quantized_model: the path of another one, with the same input.
        runtime: a key of ``RUNTIMES``; it runs both.
        batches: images of a call.
        threads: numbers of threads.
        shape: of one image, where the model does not fix it.
        rounds: how often each of the two is timed.
        progress: told how many of how many measurements are done, and what comes.

    Raises:
        ArgumentError: the models have different inputs, a batch does not fit, or a number is below 1.
        CheckpointError: a file is damaged, or the runtime cannot load it.
        MissingPackageError: the runtime is not installed.
    """
    for argument, numbers in (("batches", batches), ("threads", threads), ("rounds", (rounds,))):
        if not numbers or min(numbers) < 1:
            raise ArgumentError(argument, "whole numbers above 0", list(numbers))
    engine, tell = runtime_named(runtime), progress or (lambda done, count, what: None)
    models = read_model(float_model), read_model(quantized_model)
    image = _image_shape(models, shape)
    for batch in batches:
        for model in models:
            model.image_input().check("batches", (batch, *image))
    pairs = [(count, batch) for count in threads for batch in batches]
    timings = []
    for place, (count, batch) in enumerate(pairs):
        tell(place, len(pairs) + 2, f"batch {batch}, {count} thread{'s' if count > 1 else ''}")
        timings.append(_time(engine, models, (batch, *image), count, rounds))
    tell(len(pairs), len(pairs) + 2, "memory")
    first, second = (_size(engine.name, model, (batches[0], *image)) for model in models)
    tell(len(pairs) + 1, len(pairs) + 2, "kernels")
    layers = engine.layers(models[1])
    tell(len(pairs) + 2, len(pairs) + 2, "done")
    return Bench(
        runtime=engine.name,
        version=engine.version(),
        machine=f"{platform.machine()}, {os.cpu_count()} cores",
        float_model=models[0].name,
        quantized_model=models[1].name,
        input_shape=image,
        rounds=rounds,
        timings=tuple(timings),
        float_size=first,
        quantized_size=second,
        layers=layers,
    )


def _image_shape(models: tuple[OnnxModel, OnnxModel], shape: Sequence[int] | None) -> tuple[int, ...]:
    """The shape of one image, which both models take."""
    first, second = (model.image_input() for model in models)
    if first.shape[1:] != second.shape[1:]:
        expected = f"an input of {written(first.shape[1:])}, as {models[0].name} has"
        raise ArgumentError("quantized_model", expected, written(second.shape[1:]), "give two forms of one network")
    if shape is not None:
        _check_image(first, tuple(shape))
        return tuple(shape)
    fixed = tuple(size for size in first.shape[1:] if size is not None)
    if len(fixed) != len(first.shape[1:]):
        remedy = f"the model takes {written(first.shape[1:])}"
        raise ArgumentError("shape", "the shape of one image, such as 3,224,224", "none", remedy)
    return fixed


def _check_image(image_input: ImageInput, shape: tuple[int, ...]) -> None:
    image_input.check("shape", (1, *shape), is_batch_free=True)


def _time(
    engine: Runtime, models: tuple[OnnxModel, OnnxModel], shape: tuple[int, ...], threads: int, rounds: int
) -> Timing:
    images = np.random.default_rng(0).standard_normal(shape, np.float32)
    sessions = [engine.session(model, threads, shape) for model in models]
    calls = [_calls(session, images) for session in sessions]
    walls: list[tuple[float, float]] = []
    processors: list[tuple[float, float]] = []
    for number in range(rounds):
        order = (0, 1) if number % 2 == 0 else (1, 0)  # so that neither of the two always comes behind the other
        measured = {place: _run(sessions[place], images, calls[place]) for place in order}
        walls.append((measured[0][0], measured[1][0]))
        processors.append((measured[0][1], measured[1][1]))
    ratios = [first / second for first, second in walls]
    lower, middle, upper = statistics.quantiles(ratios, n=4, method="inclusive") if rounds > 1 else 3 * ratios
    return Timing(
        batch=shape[0],
        threads=threads,
        float_ms=1e3 * statistics.median(first for first, _ in walls),
        quantized_ms=1e3 * statistics.median(second for _, second in walls),
        speedup=middle,
        lower=lower,
        upper=upper,
        cpu_speedup=statistics.median(first / max(second, 1e-9) for first, second in processors),
    )


def _calls(session: Session, images: Array) -> int:
    """How many calls make a round long enough, found after a few that warm up."""
    for _ in range(_WARM_UP):
        session.execute(images)
    return max(1, round(LEAST_SECONDS / max(_run(session, images, 2)[0], 1e-9)))


def _run(session: Session, images: Array, calls: int) -> tuple[float, float]:
    """Seconds of one call: by the clock, and of the processor."""
    wall, processor = time.perf_counter(), time.process_time()
    for _ in range(calls):
        session.execute(images)
    return (time.perf_counter() - wall) / calls, (time.process_time() - processor) / calls


def _size(runtime: str, model: OnnxModel, shape: tuple[int, ...]) -> Size:
    measured = peak_memory.measure(runtime, model.name, shape)
    return Size(model.size, *((None, None) if measured is None else (measured[1], measured[0])))
