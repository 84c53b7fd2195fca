"""``clcalib bench``: a float and a quantized ONNX model in the same runtime, timed in turn."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from clcalib.cli import completion
from clcalib.cli.names import number_of
from clcalib.cli.options import RUNTIME_HELP

_ROUNDS = int(number_of("clcalib.export.runtimes.bench", "ROUNDS"))
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
    rounds: Annotated[int, typer.Option("--rounds", metavar="N", help="How often each model is timed.")] = int(
        number_of("clcalib.export.runtimes.bench", "ROUNDS")
    ),
    is_json: Annotated[bool, typer.Option("--json", help="Print everything that was measured as JSON.")] = False,
) -> None:
    """Compare the speed and size of a quantized ONNX model with those of its float original.

    Both run in the same runtime on the CPU, in turn, on the same random
    images. The speed-up is the median of the rounds; how wide the middle
    half of them spreads tells how sure it is. Above 1 is faster.

    The last table names what the runtime computes in float all the same, and
    what to change in the model: quantized weights alone make nothing faster.
    """
    from clcalib.cli.actions.bench import compare_speed

    models = (float_model, quantized_model)
    compare_speed(models, runtime, batch or (1, 64), threads or (1, 2), shape=shape, rounds=rounds, is_json=is_json)
