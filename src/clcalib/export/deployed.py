"""A quantized chain as a file for its target, and the simulation made to compute exactly what the file says."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

from clcalib.capture.chain import Chain
from clcalib.errors import UnsupportedOperatorError
from clcalib.export.onnx.emit import Emitted, emit, round_biases, unsupported
from clcalib.export.onnx.rules import OnnxRules
from clcalib.files import write_atomically
from clcalib.quant.insert import QuantizedChain
from clcalib.quant.targets import TARGETS, Target

PAPER = TARGETS["paper"]
_RULES = {
    "paper": OnnxRules(is_packed=True, is_bias_integer=False),
    "onnxruntime": OnnxRules(is_packed=True, are_codes_integer=True),
    "openvino": OnnxRules(is_packed=True, are_codes_integer=True),
    "tensorrt": OnnxRules(is_bias_integer=False),
}


def onnx_rules(target: Target | None) -> OnnxRules:
    """How the ONNX file of a target looks; ``paper`` where there is none."""
    return _RULES[(target or PAPER).name]


def check_operators(chain: Chain, target: Target | None) -> None:
    """Raise ``UnsupportedOperatorError``, naming all of them, where a float chain cannot be written for a target."""
    problems = unsupported(chain, onnx_rules(target))
    if problems:
        summary = f"the network cannot be written for target {(target or PAPER).name}"
        raise UnsupportedOperatorError(summary, [str(problem) for problem in problems])


def round_to_target(quantized: QuantizedChain, target: Target) -> None:
    """Give every bias the value that the target's kernels add, int32 times s_x * s_w; in place."""
    round_biases(quantized.chain, onnx_rules(target))


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


def write_float_onnx(chain: Chain, path: Path) -> None:
    """Write a float chain; the file that a quantized one is timed against.

    Raises:
        MissingPackageError: the package ``onnx`` is not installed.
        UnsupportedOperatorError: an operator cannot be written.
    """
    write_atomically(path, emit(chain).model.SerializeToString())


def _digest(quantized: QuantizedChain) -> str:
    """sha256 over all codes and scales."""
    found = hashlib.sha256()
    for layer in quantized.weights:
        weight = quantized.weight(layer)
        found.update(layer.encode())
        for tensor in (weight.codes, weight.scale, weight.zero_point):
            found.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return found.hexdigest()
