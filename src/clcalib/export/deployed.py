"""A quantized chain as a file for its target, and the simulation made to compute exactly what the file says."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor
from torch.export import ExportedProgram

from clcalib.capture.chain import Chain
from clcalib.errors import UnsupportedOperatorError
from clcalib.export.onnx.emit import Emitted, emit, least_weight_scales, round_biases, unsupported
from clcalib.export.onnx.model import require_onnx
from clcalib.export.onnx.rules import OnnxRules
from clcalib.export.program.emit import emit_float_program, emit_program, grids_of
from clcalib.export.program.executorch import LARGEST_BATCH, PteCodes, PteNetwork, partition, require_executorch
from clcalib.export.program.operators import operators
from clcalib.export.runtimes import LayerReport
from clcalib.files import write_atomically
from clcalib.quant.functional import quantize
from clcalib.quant.insert import QuantizedChain
from clcalib.quant.modules import IntegerWeight
from clcalib.quant.spec import QParams
from clcalib.quant.targets import TARGETS, Target

PAPER = TARGETS["paper"]
_RULES = {
    "paper": OnnxRules(is_packed=True, is_bias_integer=False, is_compact=True),
    "onnxruntime": OnnxRules(is_packed=True, are_codes_integer=True, is_compact=True, channel_multiple=4),
    "openvino": OnnxRules(is_packed=True, are_codes_integer=True, is_compact=True),
    "tensorrt": OnnxRules(is_bias_integer=False, is_compact=True),
}
ONNX, PROGRAM, PTE = ".onnx", ".pt2", ".pte"


def onnx_rules(target: Target | None) -> OnnxRules:
    """How the ONNX file of a target looks: as ``_RULES`` says, or else as its runtime wants it.

    The rules are those of ``paper`` where there is no target.
    """
    target = target or PAPER
    return _RULES[target.name if target.name in _RULES else target.runtime or PAPER.name]


def kind_of(target: Target | None) -> str:
    """What the name of a target's file ends in, which says how it is written; ``.onnx`` where there is no target."""
    return Path((target or PAPER).file).suffix


def is_onnx(target: Target | None) -> bool:
    """Whether the file of a target is ONNX."""
    return kind_of(target) == ONNX


def require_writer(target: Target | None) -> None:
    """Raise ``MissingPackageError`` where the package that writes the file of a target is not installed."""
    required: Mapping[str, Callable[[], object]] = {ONNX: require_onnx, PROGRAM: operators, PTE: require_executorch}
    if kind_of(target) in required:
        required[kind_of(target)]()


def check_operators(chain: Chain, target: Target | None) -> None:
    """Raise ``UnsupportedOperatorError``, naming all of them, where a float chain cannot be written for a target."""
    if not is_onnx(target):
        return  # it holds PyTorch's operators, whatever they are
    problems = unsupported(chain, onnx_rules(target))
    if problems:
        summary = f"the network cannot be written for target {(target or PAPER).name}"
        raise UnsupportedOperatorError(summary, [str(problem) for problem in problems])


def round_to_target(quantized: QuantizedChain, target: Target) -> None:
    """Give every bias the value that the target's kernels add, int32 times s_x * s_w; in place.

    Where a channel's weights are so small that its bias would not fit, they get the larger scale that it needs: what
    they lose is below 2^-30 of the bias for each input at its largest.
    """
    if kind_of(target) not in (ONNX, PTE):
        return  # PyTorch's kernels add floats
    rules = onnx_rules(target) if is_onnx(target) else OnnxRules()  # XNNPACK adds int32 too
    for name, least in least_weight_scales(quantized.chain, rules).items():
        module = quantized.chain.module.get_submodule(name)
        assert isinstance(module, IntegerWeight)
        quantized.replace(name, _with_scale(module, least))
    round_biases(quantized.chain, rules)


def _with_scale(weight: IntegerWeight, least: Tensor) -> IntegerWeight:
    spec, zero_point = weight.spec, weight.zero_point
    least = least.max() if weight.scale.numel() == 1 else least
    scale = torch.maximum(weight.scale, least.reshape(weight.scale.shape))
    codes = quantize(weight(), scale, zero_point, spec.q_min, spec.q_max)
    return IntegerWeight(codes, QParams(scale, zero_point), spec)


def write_onnx(
    quantized: QuantizedChain, path: Path, target: Target | None = None, metadata: Mapping[str, str] | None = None
) -> Emitted:
    """Write the file at once or not at all.

    Args:
        quantized: calibrated, for this target.
        path: of the file; its folder exists.
        target: whose kernels it is for.
        metadata: goes into the file beside the target and the digest of the weights.

    Returns:
        What was written, with the places of codes and layers in it.

    Raises:
        MissingPackageError: the package ``onnx`` is not installed.
        UnsupportedOperatorError: an operator cannot be written.
    """
    known = {"clcalib.target": (target or PAPER).name, "clcalib.codes": _digest(quantized)}
    emitted = emit(
        quantized.chain,
        rules=onnx_rules(target),
        metadata={**known, **(metadata or {})},
        weights=quantized.weights,
    )
    write_atomically(path, emitted.model.SerializeToString())
    return emitted


def write_program(quantized: QuantizedChain, path: Path, target: Target) -> None:
    """Write a program of ``torch.export`` at once or not at all.

    Args:
        quantized: calibrated, for this target, on the CPU.
        path: of the file; its folder exists.
        target: whose kernels it is for.

    Raises:
        UnsupportedOperatorError: a quantizer cannot be written.
        MissingPackageError: this version of PyTorch lacks the operators.
    """
    known = {"clcalib.target": target.name, "clcalib.codes": _digest(quantized)}
    _save(emit_program(quantized), path, known)


def write_pte(quantized: QuantizedChain, path: Path) -> tuple[LayerReport, ...]:
    """Write a .pte file of ExecuTorch; returns what computes each operation, which the file does not tell.

    Args:
        quantized: calibrated, for the target executorch, on the CPU.
        path: of the file; its folder exists.

    Raises:
        UnsupportedOperatorError: a quantizer cannot be written.
        MissingPackageError: the package ``executorch`` is not installed.
    """
    found = partition(emit_program(quantized, is_signed=True, largest_batch=LARGEST_BATCH))
    write_atomically(path, found.content)
    return found.layers


def pte_with_codes(quantized: QuantizedChain, file: PteNetwork, largest_batch: int) -> PteCodes:
    """A written .pte file beside the same program that returns its codes too."""
    shifts = {name: grid.shift for name, grid in grids_of(quantized, is_signed=True).items()}
    program = emit_program(quantized, is_signed=True, largest_batch=largest_batch, returned_codes=list(shifts))
    return PteCodes(file, PteNetwork(partition(program).content), shifts)


def write_float(chain: Chain, path: Path, target: Target | None = None) -> None:
    """Write a float chain in the form of a target; the file that a quantized one is timed against.

    Raises:
        MissingPackageError: the package ``onnx`` is not installed, and the target needs it.
        UnsupportedOperatorError: an operator cannot be written.
    """
    if is_onnx(target):
        write_atomically(path, emit(chain, rules=OnnxRules(is_compact=True)).model.SerializeToString())
    else:
        _save(emit_float_program(chain), path, {})


def _save(program: ExportedProgram, path: Path, metadata: Mapping[str, str]) -> None:
    content = io.BytesIO()
    torch.export.save(program, content, extra_files=dict(metadata))
    write_atomically(path, content.getvalue())


def _digest(quantized: QuantizedChain) -> str:
    """sha256 over all codes and scales."""
    found = hashlib.sha256()
    for layer in quantized.weights:
        weight = quantized.weight(layer)
        found.update(layer.encode())
        for tensor in (weight.codes, weight.scale, weight.zero_point):
            found.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return found.hexdigest()
