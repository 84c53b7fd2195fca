"""Where exported models run: load any ONNX model, see which kernels do its work, time it.

ONNX Runtime and OpenVINO are optional packages, imported when they are first used.
"""

from __future__ import annotations

from clcalib.export.runtimes.layers import LayerCounts, LayerReport
from clcalib.export.runtimes.model_file import ModelSource, OnnxModel, read_model
from clcalib.export.runtimes.runtime import RUNTIMES, Runtime, integer_report, session
from clcalib.export.runtimes.session import Session

__all__ = [
    "RUNTIMES",
    "LayerCounts",
    "LayerReport",
    "ModelSource",
    "OnnxModel",
    "Runtime",
    "Session",
    "integer_report",
    "read_model",
    "session",
]
