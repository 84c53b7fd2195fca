"""A result becomes a file for its target, and is proved: the runtime against the simulation, code by code."""

from __future__ import annotations

import dataclasses
import functools
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from clcalib.capture.graph import input_node, value_of
from clcalib.capture.placing import move
from clcalib.capture.running import images_at_once
from clcalib.checks import check_images
from clcalib.data.calibration import EvaluationSet
from clcalib.errors import ArgumentError, KernelDifferenceWarning, MissingPackageError, RuntimeMissingWarning
from clcalib.evaluate.accuracy import agreement, top1
from clcalib.export.deployed import (
    ONNX,
    PROGRAM,
    PTE,
    kind_of,
    onnx_rules,
    pte_with_codes,
    write_onnx,
    write_program,
    write_pte,
)
from clcalib.export.onnx.emit import Emitted, with_rounded_biases
from clcalib.export.program import executorch
from clcalib.export.program.emit import grids_of
from clcalib.export.program.executorch import PteNetwork
from clcalib.export.program.x86 import load_program, lower, version
from clcalib.export.roundtrip import MOST_CODES, Roundtrip, compare_codes, with_codes
from clcalib.export.runtimes import LayerCounts, LayerReport, Runtime, read_model
from clcalib.export.runtimes.runtime import RUNTIMES
from clcalib.pipeline import QuantizationResult
from clcalib.processor import adds_in_16_bits
from clcalib.quant.insert import QuantizedChain
from clcalib.quant.targets import Target, target_of
from clcalib.report.deployment import DeploymentRecord, FloatOperationRecord, TensorRecord
from clcalib.report.environment import collected_warnings

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
        path: of the file, ONNX or a program of ``torch.export``; its folder exists.
        evaluation: images on which runtime and simulation are compared; None: only the file is written and looked at.
        count: of them, as many as are compared.

    Returns:
        The same result, with ``record.deployment``, and with what is warned of here among ``record.warnings``.

    Raises:
        MissingPackageError: the package that writes the file is not installed.

    Warns:
        RuntimeMissingWarning: the target's runtime is not installed, so that nothing is proved.
        KernelDifferenceWarning: a kernel of the runtime gives other codes than were calibrated.
    """
    target = target_of(result.record.runtime_target or "paper")
    assert target is not None
    # What a runtime is given lies on the CPU, whatever the network was calibrated on.
    quantized = result.quantized.copy()
    move(quantized.chain.module, torch.device("cpu"))
    with collected_warnings() as messages:
        record = deployment_of(quantized, target, Path(path), evaluation, count)
    told = tuple(dict.fromkeys((*result.record.warnings, *messages)))
    update = {"deployment": record, "warnings": told}
    return dataclasses.replace(result, record=result.record.model_copy(update=update))


def deployment_of(
    quantized: QuantizedChain, target: Target, path: Path, evaluation: EvaluationSet | None, count: int = CHECKED_IMAGES
) -> DeploymentRecord:
    """Write a calibrated chain on the CPU for a target, and check the file; see ``deploy``."""
    if type(count) is not int or count < 1:
        raise ArgumentError("count", "a whole number of images, at least 1", repr(count))
    check_images("evaluation", evaluation)
    load = WRITERS[kind_of(target)](quantized, target, path)
    record = DeploymentRecord(target=target.name, file=path.name, file_bytes=path.stat().st_size)
    if load is None:
        return record
    try:
        loaded = load()
    except MissingPackageError as error:
        warnings.warn(f"{path} was written and not tried: {error}", RuntimeMissingWarning, stacklevel=3)
        return record
    update = _kernels(loaded)
    if evaluation is not None and not evaluation.images.is_floating_point():
        message = f"{path} was not compared with the simulation: runtimes are given images here, not token numbers"
        warnings.warn(message, RuntimeMissingWarning, stacklevel=3)
    elif evaluation is not None:
        update |= _compared(loaded, evaluation, count, _remedy(quantized, target))
    return record.model_copy(update=update)


@dataclasses.dataclass(frozen=True)
class _Loaded:
    """A written file in its runtime.

    Attributes:
        title: of the runtime.
        version: of the runtime.
        layers: what computes each operation.
        compare: images -> what the runtime and the simulation make of them.
    """

    title: str
    version: str
    layers: tuple[LayerReport, ...]
    compare: Callable[[Tensor], Roundtrip]


Load = Callable[[], _Loaded]


def _write_onnx(quantized: QuantizedChain, target: Target, path: Path) -> Load | None:
    emitted = write_onnx(quantized, path, target)
    if target.runtime is None:
        return None
    return functools.partial(_load_onnx, quantized, path, emitted, RUNTIMES[target.runtime], target)


def _write_program(quantized: QuantizedChain, target: Target, path: Path) -> Load | None:
    write_program(quantized, path, target)
    return functools.partial(_load_program, quantized, path)


def _write_pte(quantized: QuantizedChain, target: Target, path: Path) -> Load | None:
    return functools.partial(_load_pte, quantized, path, write_pte(quantized, path))


# By what the name of a target's file ends in: a calibrated chain, its target and the path of the file to what loads the
# file to be proved, or None where nothing here can.
WRITERS: Mapping[str, Callable[[QuantizedChain, Target, Path], Load | None]] = {
    ONNX: _write_onnx,
    PROGRAM: _write_program,
    PTE: _write_pte,
}


def _load_onnx(quantized: QuantizedChain, path: Path, emitted: Emitted, runtime: Runtime, target: Target) -> _Loaded:
    simulated = with_rounded_biases(quantized.chain, onnx_rules(target))  # those that are read elsewhere too

    def compare(images: Tensor) -> Roundtrip:
        session = runtime.session(read_model(with_codes(emitted)), torch.get_num_threads())
        return compare_codes(simulated, emitted, session, images)

    return _Loaded(runtime.title, runtime.version(), runtime.layers(read_model(path)), compare)


def _load_program(quantized: QuantizedChain, path: Path) -> _Loaded:
    chain = quantized.chain
    batch, image = images_at_once(chain.module), value_of(input_node(chain.module.graph))
    lowered = lower(load_program(path), torch.zeros(batch, *image.shape[1:], dtype=image.dtype))
    shifts = {name: grid.shift for name, grid in grids_of(quantized).items()}

    def compare(images: Tensor) -> Roundtrip:
        return compare_codes(chain, lowered, lambda part: lowered.arrays(part, shifts), images, batch_size=batch)

    return _Loaded("PyTorch", version(), lowered.layers(), compare)


def _load_pte(quantized: QuantizedChain, path: Path, layers: tuple[LayerReport, ...]) -> _Loaded:
    network = PteNetwork(path.read_bytes())
    # At least two: torch.export takes a batch of one for a fixed one.
    batch = min(executorch.LARGEST_BATCH, max(2, images_at_once(quantized.chain.module)))

    def compare(images: Tensor) -> Roundtrip:
        found = pte_with_codes(quantized, network, batch)
        return compare_codes(quantized.chain, found, found.arrays, images, batch_size=batch)

    return _Loaded("ExecuTorch", executorch.version(), layers, compare)


def _kernels(loaded: _Loaded) -> dict[str, object]:
    """What the runtime computes with integers, and what not."""
    in_float = [row for row in loaded.layers if row.kernel and not row.is_integer]
    return {
        "runtime": f"{loaded.title} {loaded.version}",
        **dataclasses.asdict(LayerCounts.of(loaded.layers)),
        "in_float": tuple(
            FloatOperationRecord(name=row.name, operation=row.operation, reason=row.reason) for row in in_float
        ),
    }


def _remedy(quantized: QuantizedChain, target: Target) -> str:
    """What helps where codes differ."""
    if not (adds_in_16_bits() and target.overflowing(quantized.policy)):
        return "report the network"
    reason = "this processor has no VNNI and adds two products in 16 bits, which may overflow"
    return f"calibrate with --target {target.exact_without_vnni} ({reason}), or run it on one that has"


def _compared(loaded: _Loaded, evaluation: EvaluationSet, count: int, remedy: str) -> dict[str, object]:
    images = evaluation.images[:count]
    found = loaded.compare(images)
    worst = max(found.tensors, key=lambda row: row.own, default=None)
    if worst is not None and worst.own > MOST_CODES:
        warnings.warn(
            f"{loaded.title} differs from the simulation by {worst.own} codes at {worst.name}, and a kernel may by "
            f"{MOST_CODES}: do not trust the file, and {remedy}",
            KernelDifferenceWarning,
            stacklevel=4,
        )
    return {
        "images": len(images),
        "largest_output_difference": float((found.runtime - found.simulated).abs().max()),
        "max_code_difference": found.max_code_difference if found.tensors else None,
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
