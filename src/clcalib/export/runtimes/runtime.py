"""The runtimes by name."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Protocol

from clcalib.errors import ArgumentError
from clcalib.export.runtimes.layers import LayerReport
from clcalib.export.runtimes.model_file import ModelSource, OnnxModel, read_model
from clcalib.export.runtimes.onnx_runtime import OnnxRuntime
from clcalib.export.runtimes.open_vino import OpenVino
from clcalib.export.runtimes.session import Session


class Runtime(Protocol):
    """What loads and runs ONNX models."""

    @property
    def name(self) -> str:
        """The key in ``RUNTIMES``, which is also its package and the extra that brings it."""

    @property
    def title(self) -> str:
        """How its makers write it."""

    def version(self) -> str:
        """Of the installed package."""

    def session(self, model: OnnxModel, threads: int | None = None, shape: Sequence[int] | None = None) -> Session:
        """Load a model on the CPU; ``shape`` is that of every batch to come, where it is known."""

    def layers(self, model: OnnxModel) -> tuple[LayerReport, ...]:
        """What became of each operation of a model."""


RUNTIMES: dict[str, Runtime] = {"onnxruntime": OnnxRuntime(), "openvino": OpenVino()}


def runtime_named(name: str, argument: str = "runtime") -> Runtime:
    """Look up a runtime.

    Raises:
        ArgumentError: there is none of this name.
    """
    if name not in RUNTIMES:
        near = difflib.get_close_matches(name, RUNTIMES, 1, 0.0)
        raise ArgumentError(argument, f"one of {', '.join(RUNTIMES)}", repr(name), f"nearest: {near[0]}")
    return RUNTIMES[name]


def session(
    model: ModelSource,
    runtime: str = "onnxruntime",
    *,
    threads: int | None = None,
    shape: Sequence[int] | None = None,
) -> Session:
    """Load an ONNX model, quantized or float, on the CPU.

    Args:
        model: its path, or its bytes.
        runtime: a key of ``RUNTIMES``.
        threads: as many as the machine has cores by default.
        shape: of every batch (N, ...) to come, where it is known; OpenVINO is faster then, by a tenth of a millisecond
            a call on small networks.

    Returns:
        A function from a batch (N, ...) float32 to the outputs by name.

    Raises:
        ArgumentError: there is no such file or runtime, or the model has several inputs.
        CheckpointError: the file is damaged, or the runtime cannot load it.
        MissingPackageError: the runtime is not installed.
    """
    return runtime_named(runtime).session(read_model(model), threads, shape)


def integer_report(model: ModelSource, runtime: str = "onnxruntime") -> tuple[LayerReport, ...]:
    """What computes each operation of a model, whether with integers, and why not where it is not.

    Args:
        model: its path, or its bytes.
        runtime: a key of ``RUNTIMES``; what it says holds for this version on this machine.

    Raises:
        ClcalibError: the errors of ``session``.
    """
    return runtime_named(runtime).layers(read_model(model))
