"""A result becomes a file for its target, and is proved: the runtime against the simulation, code by code."""

from __future__ import annotations

import dataclasses
import warnings
from pathlib import Path

import torch

from clcalib.data.calibration import EvaluationSet
from clcalib.errors import ArgumentError, KernelDifferenceWarning, MissingPackageError, RuntimeMissingWarning
from clcalib.evaluate.accuracy import agreement, top1
from clcalib.export.deployed import write_onnx
from clcalib.export.onnx.emit import Emitted
from clcalib.export.roundtrip import MOST_CODES, Roundtrip, compare_codes, with_codes
from clcalib.export.runtimes import LayerCounts, Runtime, read_model
from clcalib.export.runtimes.runtime import RUNTIMES
from clcalib.pipeline import QuantizationResult
from clcalib.quant.insert import QuantizedChain
from clcalib.quant.targets import Target, target_of
from clcalib.report.deployment import DeploymentRecord, FloatOperationRecord, TensorRecord

CHECKED_IMAGES = 512  # of the evaluation images, on which codes are compared


def deploy(
    result: QuantizationResult,
    path: str | Path,
    evaluation: EvaluationSet | None = None,
    *,
    count: int = CHECKED_IMAGES,
) -> QuantizationResult:
    """Write a result for its target and let the target's runtime prove it.

    Args:
        result: of ``quantize(..., target=...)``; without a target, a reference graph in float is written.
        path: of the ONNX file; its folder exists.
        evaluation: images on which runtime and simulation are compared; None: only the file is written and looked at.
        count: of them, as many as are compared.

    Returns:
        The same result, with ``record.deployment``.

    Raises:
        MissingPackageError: the package ``onnx`` is not installed.

    Warns:
        RuntimeMissingWarning: the target's runtime is not installed, so that nothing is proved.
        KernelDifferenceWarning: a kernel of the runtime gives other codes than were calibrated.
    """
    target = target_of(result.record.runtime_target or "paper")
    assert target is not None
    # What a runtime is given lies on the CPU, whatever the network was calibrated on.
    quantized = result.quantized.copy()
    quantized.chain.module.cpu()
    record = deployment_of(quantized, target, Path(path), evaluation, count)
    return dataclasses.replace(result, record=result.record.model_copy(update={"deployment": record}))


def deployment_of(
    quantized: QuantizedChain, target: Target, path: Path, evaluation: EvaluationSet | None, count: int = CHECKED_IMAGES
) -> DeploymentRecord:
    """Write a calibrated chain on the CPU for a target, and check the file; see ``deploy``."""
    if type(count) is not int or count < 1:
        raise ArgumentError("count", "a whole number of images, at least 1", repr(count))
    emitted = write_onnx(quantized, path, target)
    record = DeploymentRecord(target=target.name, file=path.name, file_bytes=path.stat().st_size)
    runtime = None if target.runtime is None else RUNTIMES[target.runtime]
    if runtime is None:
        return record
    try:
        update = _kernels(runtime, path)
    except MissingPackageError as error:
        warnings.warn(f"{path} was written and not tried: {error}", RuntimeMissingWarning, stacklevel=3)
        return record
    if evaluation is not None:
        update |= _compared(quantized, emitted, runtime, evaluation, count)
    return record.model_copy(update=update)


def _kernels(runtime: Runtime, path: Path) -> dict[str, object]:
    """What the runtime computes with integers, and what not."""
    layers = runtime.layers(read_model(path))
    in_float = [row for row in layers if row.kernel and not row.is_integer]
    return {
        "runtime": f"{runtime.title} {runtime.version()}",
        **dataclasses.asdict(LayerCounts.of(layers)),
        "in_float": tuple(
            FloatOperationRecord(name=row.name, operation=row.operation, reason=row.reason) for row in in_float
        ),
    }


def _compared(
    quantized: QuantizedChain, emitted: Emitted, runtime: Runtime, evaluation: EvaluationSet, count: int
) -> dict[str, object]:
    session = runtime.session(read_model(with_codes(emitted)), torch.get_num_threads())
    images = evaluation.images[:count]
    found = compare_codes(quantized.chain, emitted, session, images)
    worst = max(found.tensors, key=lambda row: row.own, default=None)
    if worst is not None and worst.own > MOST_CODES:
        warnings.warn(
            f"{runtime.title} differs from the simulation by {worst.own} codes at {worst.name}, and a kernel may by "
            f"{MOST_CODES}: do not trust the file, and report the network",
            KernelDifferenceWarning,
            stacklevel=4,
        )
    return {
        "images": len(images),
        "largest_output_difference": float((found.runtime - found.simulated).abs().max()),
        "max_code_difference": found.max_code_difference,
        "parting": None if found.parting is None else found.parting.name,
        "tensors": tuple(TensorRecord(**dataclasses.asdict(row)) for row in found.tensors),
        **_accuracies(found, evaluation),
    }


def _accuracies(found: Roundtrip, evaluation: EvaluationSet) -> dict[str, object]:
    """Top-1 of both and their agreement, where the output is one row of classes for each image."""
    if found.runtime.ndim != 2:
        return {}
    same = {"agreement": agreement(found.runtime, found.simulated)}
    if evaluation.labels is None:
        return {**same}
    labels = evaluation.labels[: len(found.runtime)]
    return {**same, "top1_simulated": top1(found.simulated, labels), "top1_runtime": top1(found.runtime, labels)}
