"""``clcalib evaluate``: how good a saved model is, on any images."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from clcalib.cli.flags import (
    DeviceOption,
    EvaluationOption,
    ModelOption,
    SetOption,
    ThreadsOption,
    WeightsOption,
    given,
)
from clcalib.config import build
from clcalib.config_sections import EvaluationConfig
from clcalib.config_sources import merge, parse_assignment, with_absolute_paths
from clcalib.data.calibration import EvaluationSet
from clcalib.errors import ArgumentError, CheckpointError
from clcalib.evaluate.accuracy import agreement, logits, top1
from clcalib.evaluate.detection import SCORE_THRESHOLD, detection_agreement, detections, is_detector
from clcalib.model_source import load_model
from clcalib.pipeline import load
from clcalib.report.tables import accuracy_table, detection_table
from clcalib.run import CONFIG_FILE, evaluation_images, limited_threads

EXAMPLES = (
    "[bold]Examples[/bold]\n\n"
    "clcalib evaluate runs/w4a4\n\n"
    "clcalib evaluate runs/w4a4 --evaluation data/cifar10 --threads 1\n\n"
    "clcalib evaluate runs/w4a4 --model net.py:build --weights net.safetensors --evaluation images/"
)


def evaluate(
    folder: Annotated[Path, typer.Argument(metavar="OUT", help="The output folder of a run.")],
    *,
    model: ModelOption = None,
    weights: WeightsOption = None,
    evaluation: EvaluationOption = None,
    settings: SetOption = None,
    device: DeviceOption = None,
    threads: ThreadsOption = None,
    score_threshold: Annotated[
        float,
        typer.Option(
            "--score-threshold", min=0.0, max=1.0, metavar="SCORE", help="Of a detector: from which score boxes count."
        ),
    ] = SCORE_THRESHOLD,
) -> None:
    """Load a saved model and print its top-1 accuracy and its agreement with the float network.

    Of a detector (boxes, labels and scores for each image) it prints how many
    of the float network's boxes are found too.

    What is not given is taken from config.json in the folder.  The agreement
    needs the float network's weights.
    """
    flags = {
        "model": {"entry": model, "weights": weights},
        "data": {"evaluation": evaluation},
        "run": {"device": device, "threads": threads},
    }
    here = Path.cwd()
    assigned = [with_absolute_paths(parse_assignment(assignment), here) for assignment in settings or ()]
    table = merge(_saved_config(folder), *assigned, with_absolute_paths(given(flags), here))
    config = build(EvaluationConfig, table, str(folder))
    images = evaluation_images(config)
    if images is None:
        raise ArgumentError("--evaluation", "the path of the evaluation images", "none")
    with limited_threads(config.run.threads):
        float_model, place = load_model(config.model), config.run.device
        quantized, has_weights = load(folder, float_model).to(place), config.model.weights is not None
        floating = float_model.to(place).eval() if has_weights else None
        if is_detector(quantized, images.images[:1].to(place)):
            shown = _detections(quantized, floating, images.images, place, score_threshold)
        else:
            shown = _classes(quantized, floating, images, place)
    Console(highlight=False).print(shown)


def _classes(model: nn.Module, floating: nn.Module | None, images: EvaluationSet, place: str) -> Table:
    outputs = logits(model, images.images, device=place)
    float_outputs = None if floating is None else logits(floating, images.images, device=place)
    return accuracy_table(_rows(outputs, float_outputs, images.labels), len(images))


def _detections(model: nn.Module, floating: nn.Module | None, images: Tensor, place: str, threshold: float) -> Table:
    if floating is None:
        raise ArgumentError("--weights", "those of the float detector, whose boxes are compared with", "none")
    tables = [detections(each, images, device=place) for each in (floating, model)]
    found = detection_agreement(*tables, score_threshold=threshold)
    return detection_table([("quantized", found.matched, found.overlap)], found.count, threshold)


def _saved_config(folder: Path) -> dict[str, Any]:
    """The configuration that a run left; an empty table where the model was saved from Python."""
    if not folder.is_dir():
        raise ArgumentError("OUT", "the output folder of a run", str(folder), "there is no such folder")
    path = folder / CONFIG_FILE
    if not path.is_file():
        return {}
    try:
        saved = json.loads(path.read_bytes())
    except ValueError as error:
        raise CheckpointError(f"{path}: not a JSON file ({error}); delete it and give --model") from None
    if not isinstance(saved, dict):
        raise CheckpointError(f"{path}: not a configuration; delete it and give --model")
    return {section: _without_nulls(values) for section, values in saved.items()}


def _without_nulls(values: Any) -> Any:
    return {key: value for key, value in values.items() if value is not None} if isinstance(values, dict) else values


def _rows(
    outputs: Tensor, float_outputs: Tensor | None, labels: Tensor | None
) -> list[tuple[str, float | None, float | None]]:
    """(name, top-1, agreement with the float network) of each model."""
    rows = []
    if float_outputs is not None:
        rows.append(("float", None if labels is None else top1(float_outputs, labels), None))
    same = None if float_outputs is None else agreement(outputs, float_outputs)
    return [*rows, ("quantized", None if labels is None else top1(outputs, labels), same)]
