"""``clcalib bench``: a float and a quantized ONNX model in the same runtime, timed in turn."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from clcalib.cli import completion
from clcalib.cli.flags import RUNTIME_HELP, split_shape
from clcalib.cli.messages import new_console
from clcalib.export.runtimes.bench import ROUNDS, bench
from clcalib.export.runtimes.layers import LayerCounts
from clcalib.report.runtime_tables import float_table, kernels_text, size_table, speed_table

EXAMPLES = (
    "[bold]Examples[/bold]\n\n"
    "clcalib bench float.onnx quantized.onnx\n\n"
    "clcalib bench float.onnx quantized.onnx --runtime openvino --batch 1\n\n"
    "clcalib bench float.onnx quantized.onnx --batch 1 --batch 8 --threads 1 --json"
)


def bench_command(
    float_model: Annotated[Path, typer.Argument(metavar="FLOAT.onnx", help="The network in float.")],
    quantized_model: Annotated[Path, typer.Argument(metavar="QUANTIZED.onnx", help="The same network, quantized.")],
    *,
    runtime: Annotated[
        str, typer.Option("--runtime", metavar="NAME", autocompletion=completion.runtimes, help=RUNTIME_HELP)
    ] = "onnxruntime",
    batch: Annotated[
        list[int] | None, typer.Option("--batch", metavar="N", help="Images of a call; again for more. 1 and 64.")
    ] = None,
    threads: Annotated[
        list[int] | None, typer.Option("--threads", metavar="N", help="Threads; again for more. 1 and 2.")
    ] = None,
    shape: Annotated[
        str | None, typer.Option("--shape", metavar="C,H,W", help="Shape of one image, where the model leaves it open.")
    ] = None,
    rounds: Annotated[int, typer.Option("--rounds", metavar="N", help="How often each model is timed.")] = ROUNDS,
    is_json: Annotated[bool, typer.Option("--json", help="Print everything that was measured as JSON.")] = False,
) -> None:
    """Compare the speed and size of a quantized ONNX model with those of its float original.

    Both run in the same runtime on the CPU, in turn, on the same random
    images. The speed-up is the median of the rounds; how wide the middle
    half of them spreads tells how sure it is. Above 1 is faster.

    The last table names what the runtime computes in float all the same, and
    what to change in the model: quantized weights alone make nothing faster.
    """
    log = new_console(is_stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(30), TimeElapsedColumn())
    with Progress(*columns, console=log, transient=True, disable=not log.is_terminal) as progress:
        task = progress.add_task("loading", total=None)
        result = bench(
            float_model,
            quantized_model,
            runtime,
            batches=batch or (1, 64),
            threads=threads or (1, 2),
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
