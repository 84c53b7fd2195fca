"""``clcalib bench``: a float and a quantized ONNX model in the same runtime, timed in turn."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from clcalib.cli.flags import split_shape
from clcalib.cli.messages import new_console
from clcalib.export.runtimes.bench import bench
from clcalib.export.runtimes.layers import LayerCounts
from clcalib.report.runtime_tables import float_table, kernels_text, size_table, speed_table


def compare_speed(
    models: tuple[Path, Path],
    runtime: str,
    batches: Sequence[int],
    threads: Sequence[int],
    *,
    shape: str | None,
    rounds: int,
    is_json: bool,
) -> None:
    """Time both models, and print what came of it."""
    log = new_console(is_stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(30), TimeElapsedColumn())
    with Progress(*columns, console=log, transient=True, disable=not log.is_terminal) as progress:
        task = progress.add_task("loading", total=None)
        result = bench(
            *models,
            runtime,
            batches=batches,
            threads=threads,
            shape=None if shape is None else split_shape(shape),
            rounds=rounds,
            progress=_teller(progress, task),
        )
    if is_json:
        counts = dataclasses.asdict(LayerCounts.of(result.layers))
        sys.stdout.write(json.dumps({**dataclasses.asdict(result), "counts": counts}, indent=1) + "\n")
        return
    console = new_console()
    console.print(speed_table(result))
    console.print()
    console.print(size_table(result))
    console.print()
    console.print(kernels_text(result.layers, result.runtime, result.version))
    if any(row.kernel and not row.is_integer for row in result.layers):
        console.print()
        console.print(float_table(result.layers))


def _teller(progress: Progress, task: TaskID) -> Callable[[int, int, str], None]:
    def tell(done: int, count: int, what: str) -> None:
        progress.update(task, completed=done, total=count, description=what)

    return tell
