"""``clcalib evaluate``: how good a saved model or any ONNX file is, or several side by side, on any images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text
from torch import Tensor, nn

from clcalib.cli.flags import tables_of
from clcalib.cli.given import FlagsOverSaved
from clcalib.cli.messages import new_console
from clcalib.cli.results import plain, show_json, transform_line
from clcalib.cli.side_by_side import config_beside, float_logits, images_of, is_onnx_file, side_by_side
from clcalib.config import build
from clcalib.config_sections import EvaluationConfig, OnnxEvaluationConfig
from clcalib.config_sources import over_saved, saved_config
from clcalib.data.calibration import EvaluationSet
from clcalib.errors import ArgumentError
from clcalib.evaluate.accuracy import agreement, logits, top1
from clcalib.evaluate.detection import DetectionAgreement, detection_agreement, detections, is_detector
from clcalib.export.runtimes import read_model
from clcalib.export.runtimes.runtime import runtime_named
from clcalib.model_source import load_model
from clcalib.pipeline import load
from clcalib.report.model_table import ModelRow, model_table
from clcalib.report.tables import accuracy_table, detection_table
from clcalib.run import limited_threads


def show_accuracy(
    models: Sequence[Path], flags: FlagsOverSaved, *, runtime: str | None, score_threshold: float, is_json: bool
) -> None:
    """Measure the models and print what came of it.

    Raises:
        ArgumentError: a flag is wrong, or what is given does not suffice.
    """
    given_here = tables_of(flags)
    console = new_console()
    if runtime is not None and not any(is_onnx_file(path) for path in models):
        raise ArgumentError("--runtime", "an ONNX file that it is to run", f"the folder {models[0]}", "leave it out")
    if len(models) > 1:
        _show_rows(side_by_side(models, given_here, runtime or "onnxruntime"), console, is_json=is_json)
        return
    (saved,) = models
    if is_onnx_file(saved) and is_json:
        _show_rows(side_by_side(models, given_here, runtime or "onnxruntime"), console, is_json=True)
        return
    if is_onnx_file(saved):
        table = over_saved(config_beside(saved), saved.parent, *given_here)
        _evaluate_onnx(saved, table, runtime or "onnxruntime", console)
        return
    config = build(EvaluationConfig, over_saved(saved_config(saved), saved, *given_here), str(saved))
    images = images_of(config)
    _tell_images(config)
    shown: Any
    with limited_threads(config.run.threads):
        place = config.run.device
        float_model = load_model(config.model).to(place)
        quantized, has_weights = load(saved, float_model), config.model.weights is not None
        floating = float_model.eval() if has_weights else None
        if is_detector(quantized, images.images[:1].to(place)):
            found = _detections(quantized, floating, images.images, place, score_threshold)
            row = {"model": str(saved), "images": len(images), "score_threshold": score_threshold, **plain(found)}
            boxes = [("quantized", found.matched, found.overlap)]
            shown = [row] if is_json else detection_table(boxes, found.count, score_threshold)
        elif is_json:
            shown = side_by_side(models, given_here, "onnxruntime")
        else:
            shown = _classes(quantized, floating, images, place)
    if is_json:
        show_json(shown)
    else:
        console.print(shown)


def _tell_images(config: EvaluationConfig | OnnxEvaluationConfig) -> None:
    log = new_console(is_stderr=True)
    log.print(transform_line(config.model, config.data, config.data.evaluation), soft_wrap=True)


def _show_rows(rows: Sequence[ModelRow], console: Console, *, is_json: bool) -> None:
    if is_json:
        show_json(rows)
    else:
        console.print(model_table(rows))


def _classes(model: nn.Module, floating: nn.Module | None, images: EvaluationSet, place: str) -> Table:
    outputs = logits(model, images.images, device=place)
    float_outputs = None if floating is None else logits(floating, images.images, device=place)
    return accuracy_table(_rows("quantized", outputs, float_outputs, images.labels), len(images))


def _detections(
    model: nn.Module, floating: nn.Module | None, images: Tensor, place: str, threshold: float
) -> DetectionAgreement:
    if floating is None:
        raise ArgumentError("--weights", "those of the float detector, whose boxes are compared with", "none")
    tables = [detections(each, images, device=place) for each in (floating, model)]
    return detection_agreement(*tables, score_threshold=threshold)


def _evaluate_onnx(path: Path, table: dict[str, Any], runtime: str, console: Console) -> None:
    config = build(OnnxEvaluationConfig, table, str(path))
    engine, read = runtime_named(runtime, "--runtime"), read_model(path)
    session = engine.session(read, config.run.threads)
    images = images_of(config)
    _tell_images(config)
    with limited_threads(config.run.threads):
        outputs = logits(session.network(), images.images)
        float_outputs = None if config.model is None else float_logits(config.model, images, config.run.device)
    console.print(accuracy_table(_rows(path.name, outputs, float_outputs, images.labels), len(images)))
    console.print(Text(f"{path.name} ran in {engine.title} {engine.version()}"), soft_wrap=True)


def _rows(
    name: str, outputs: Tensor, float_outputs: Tensor | None, labels: Tensor | None
) -> list[tuple[str, float | None, float | None]]:
    """(name, top-1, agreement with the float network) of each model."""
    rows = []
    if float_outputs is not None:
        rows.append(("float", None if labels is None else top1(float_outputs, labels), None))
    same = None if float_outputs is None else agreement(outputs, float_outputs)
    return [*rows, (name, None if labels is None else top1(outputs, labels), same)]
