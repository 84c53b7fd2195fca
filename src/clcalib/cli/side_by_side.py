"""Several models for one table of ``clcalib evaluate``: run folders and ONNX files, ours or not, on the same images."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from clcalib.config import build
from clcalib.config_sections import EvaluationConfig, ModelSection, OnnxEvaluationConfig
from clcalib.config_sources import CONFIG_FILE, Table, merge, over_saved, saved_config, without_nulls
from clcalib.data.calibration import EvaluationSet
from clcalib.errors import ArgumentError, UnusableFileError
from clcalib.evaluate.accuracy import agreement, logits, top1
from clcalib.evaluate.detection import is_detector
from clcalib.export.checkpoint import TENSORS
from clcalib.export.runtimes import LayerCounts, read_model
from clcalib.export.runtimes.runtime import Runtime, runtime_named
from clcalib.model_source import load_model
from clcalib.pipeline import load
from clcalib.reading.content import read_json
from clcalib.report.model_table import ModelRow
from clcalib.run import evaluation_images, limited_threads

ONNX = ".onnx"
Config = EvaluationConfig | OnnxEvaluationConfig


def side_by_side(paths: Sequence[Path], given: Sequence[Table], runtime: str) -> list[ModelRow]:
    """Evaluate models on the same images.

    Args:
        paths: output folders of runs, and ONNX files.
        given: tables of settings that win over those that runs left.
        runtime: what runs the ONNX files.

    Returns:
        A row for each model, and in front one of the float network where a run or a flag names it with its weights.
        The first row is what the others' agreement is with.

    Raises:
        ClcalibError: a model or the images cannot be used, or two runs name different images.
    """
    engine = runtime_named(runtime, "--runtime")
    tables = [config_beside(path) if is_onnx_file(path) else saved_config(path) for path in paths]
    for path, table in zip(paths, tables, strict=True):
        over_saved(table, path.parent if is_onnx_file(path) else path, *given)  # raises where it would run its own code
    usual: Table = next((table for table in tables if table), {})
    configs = [_config(path, merge(table or usual, *given)) for path, table in zip(paths, tables, strict=True)]
    _check_same_images(paths, configs)
    images = images_of(configs[0])
    rows: list[ModelRow] = []
    with limited_threads(configs[0].run.threads):
        reference = _float_outputs(configs, images)
        if reference is not None:
            row = ModelRow("float", "PyTorch", len(images))
            rows.append(dataclasses.replace(row, top1=_top1(reference, images)))
        for path, config in zip(paths, configs, strict=True):
            if isinstance(config, EvaluationConfig):
                row, outputs = _of_folder(path, config, images)
            else:
                row, outputs = _of_file(path, config, images, engine)
            same = None if reference is None else agreement(outputs, reference)
            reference = outputs if reference is None else reference
            rows.append(dataclasses.replace(row, top1=_top1(outputs, images), agreement=same))
    return rows


def is_onnx_file(path: Path) -> bool:
    """Whether a path is taken for an ONNX file; else it is the output folder of a run."""
    return path.is_file() or path.suffix == ONNX


def config_beside(path: Path) -> dict[str, Any]:
    """The configuration of the run that an ONNX file lies beside; an empty table for a file of anyone else."""
    try:
        saved = read_json(path.parent / CONFIG_FILE)
    except (OSError, UnusableFileError):
        return {}
    if not isinstance(saved, dict) or not all(isinstance(saved.get(key), dict) for key in ("model", "data", "run")):
        return {}
    return {section: without_nulls(values) for section, values in saved.items()}


def images_of(config: Config) -> EvaluationSet:
    """The evaluation images.

    Raises:
        ArgumentError: no path is given.
    """
    images = evaluation_images(config)
    if images is None:
        raise ArgumentError("--evaluation", "the path of the evaluation images", "none")
    return images


def _config(path: Path, table: dict[str, Any]) -> Config:
    if is_onnx_file(path):
        return build(OnnxEvaluationConfig, table, str(path))
    return build(EvaluationConfig, table, str(path))


def _check_same_images(paths: Sequence[Path], configs: Sequence[Config]) -> None:
    for path, config in zip(paths[1:], configs[1:], strict=True):
        if config.data != configs[0].data:
            found = [key for key, value in vars(config.data).items() if value != getattr(configs[0].data, key)]
            remedy = "give it for all with --evaluation or --set, or evaluate the models one by one"
            expected = f"the same images for all models, those of {paths[0]}"
            raise ArgumentError(f"data.{found[0]}", expected, f"another value for {path}", remedy)


def _float_outputs(configs: Sequence[Config], images: EvaluationSet) -> Tensor | None:
    """Of the first float network that is named with its weights."""
    for config in configs:
        outputs = None if config.model is None else float_logits(config.model, images, config.run.device)
        if outputs is not None:
            return outputs
    return None


def float_logits(model: ModelSection, images: EvaluationSet, device: str) -> Tensor | None:
    """Outputs of the float network; None where it has no trained weights."""
    return None if model.weights is None else logits(load_model(model).to(device), images.images, device=device)


def _of_folder(path: Path, config: EvaluationConfig, images: EvaluationSet) -> tuple[ModelRow, Tensor]:
    place = config.run.device
    network = load(path, load_model(config.model).to(place))
    if is_detector(network, images.images[:1].to(place)):
        raise ArgumentError("OUT", "networks with output (N, classes)", f"a detector in {path}", "evaluate it alone")
    size = (path / TENSORS).stat().st_size
    row = ModelRow(str(path), "simulation", len(images), file_bytes=size)
    return row, logits(network, images.images, device=place)


def _of_file(
    path: Path, config: OnnxEvaluationConfig, images: EvaluationSet, engine: Runtime
) -> tuple[ModelRow, Tensor]:
    read = read_model(path)
    outputs = logits(engine.session(read, config.run.threads).network(), images.images)
    counts = LayerCounts.of(engine.layers(read))
    row = ModelRow(
        model=str(path),
        computed_by=f"{engine.title} {engine.version()}",
        images=len(images),
        file_bytes=path.stat().st_size,
        integer_layers=counts.integer_layers,
        float_layers=counts.float_layers,
    )
    return row, outputs


def _top1(outputs: Tensor, images: EvaluationSet) -> float | None:
    return None if images.labels is None else top1(outputs, images.labels)
