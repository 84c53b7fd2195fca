"""``clcalib evaluate``: how good a saved model or any ONNX file is, or several side by side, on any images."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from clcalib.cli import completion
from clcalib.cli.given import FlagsOverSaved, ModelFlags
from clcalib.cli.names import number_of
from clcalib.cli.options import (
    RUNTIME_HELP,
    DeviceOption,
    EvaluationOption,
    ModelOption,
    PretrainedOption,
    SetOption,
    ThreadsOption,
    WeightsOption,
)

_SCORE_THRESHOLD = number_of("clcalib.evaluate.detection", "SCORE_THRESHOLD")
EXAMPLES = (
    "[bold]Examples[/bold]\n\n"
    "clcalib evaluate runs/w4a4\n\n"
    "clcalib evaluate runs/w4a4 --evaluation data/cifar10 --threads 1\n\n"
    "clcalib evaluate runs/w4a4 --model net.py:build --weights net.safetensors --evaluation images/\n\n"
    "clcalib evaluate quantized.onnx --evaluation images/ --runtime openvino\n\n"
    "clcalib evaluate quantized.onnx --evaluation images/ --model net.py:build --weights net.safetensors\n\n"
    "clcalib evaluate runs/w8a8 runs/w8a8/model.onnx theirs.onnx --evaluation images/"
)


def evaluate(
    models: Annotated[
        list[Path], typer.Argument(metavar="OUT|MODEL.onnx", help="Output folders of runs, and ONNX files.")
    ],
    *,
    model: ModelOption = None,
    weights: WeightsOption = None,
    pretrained: PretrainedOption = False,
    evaluation: EvaluationOption = None,
    settings: SetOption = None,
    runtime: Annotated[
        str | None, typer.Option("--runtime", metavar="NAME", autocompletion=completion.runtimes, help=RUNTIME_HELP)
    ] = None,
    device: DeviceOption = None,
    threads: ThreadsOption = None,
    score_threshold: Annotated[
        float,
        typer.Option(
            "--score-threshold", min=0.0, max=1.0, metavar="SCORE", help="Of a detector: from which score boxes count."
        ),
    ] = _SCORE_THRESHOLD,
    is_json: Annotated[bool, typer.Option("--json", help="Print a list with a row for each model as JSON.")] = False,
) -> None:
    """Load a saved model or any ONNX file and print its top-1 accuracy and its agreement with the float network.

    Several of them, ours or not, share one table, with the size of each file
    and how many of its layers the runtime computes in integers.  All see the
    same images, those of the first that names some.

    Of a detector (boxes, labels and scores for each image) it prints how many
    of the float network's boxes are found too.

    What is not given is taken from config.json in the folder, or beside the
    ONNX file.  The agreement needs the float network's weights.

    An ONNX file may come from anywhere, quantized or not: it has to take one
    batch of images and return (N, classes).  How images are resized and
    normalised for it is told by --set data.mean, data.standard_deviation,
    data.resize and data.crop, as for clcalib quantize.
    """
    from clcalib.cli.actions.evaluate import show_accuracy

    flags = FlagsOverSaved(ModelFlags(model, weights, pretrained), evaluation, settings, threads, device)
    show_accuracy(models, flags, runtime=runtime, score_threshold=score_threshold, is_json=is_json)
