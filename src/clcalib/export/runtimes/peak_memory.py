"""Peak memory of a process that does nothing but load a model and run one batch.

``measure`` starts this file as a script of its own: it imports nothing of clcalib, whose own modules would be counted.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

LIMIT_SECONDS = 600
_KIB = 1024


def measure(runtime: str, model: str | Path, shape: Sequence[int]) -> tuple[int, int] | None:
    """Load a model in a fresh process, run one batch of zeros on one thread, and ask for the most memory it ever had.

    Args:
        runtime: ``onnxruntime`` or ``openvino``.
        model: the path of an ONNX file.
        shape: of the batch.

    Returns:
        Bytes with the runtime loaded alone, and at the peak; None where the system does not tell, or the
        process failed.
    """
    sizes = [str(size) for size in shape]
    command = [sys.executable, __file__, runtime, str(model), *sizes]
    run = subprocess.run(command, capture_output=True, text=True, check=False, timeout=LIMIT_SECONDS)
    if run.returncode:
        return None
    alone, peak = json.loads(run.stdout.splitlines()[-1])
    return (alone, peak) if peak else None


def most_memory() -> int:
    """The most bytes this process ever had in memory; 0 where the system does not tell.

    ``getrusage`` would tell that of the parent too, as a child begins as its copy.
    """
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * _KIB for line in lines if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        return 0


def _with_onnxruntime(model: str, batch: np.ndarray) -> None:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    session.run(None, {session.get_inputs()[0].name: batch})


def _with_openvino(model: str, batch: np.ndarray) -> None:
    import openvino

    settings = {"INFERENCE_PRECISION_HINT": "f32", "NUM_STREAMS": 1, "INFERENCE_NUM_THREADS": 1}
    openvino.Core().compile_model(model, "CPU", settings)([batch])


def main(arguments: Sequence[str]) -> None:
    """Print the two numbers of ``measure`` as JSON."""
    name, model, *sizes = arguments
    __import__(name)
    alone = most_memory()
    batch = np.zeros([int(size) for size in sizes], np.float32)
    {"onnxruntime": _with_onnxruntime, "openvino": _with_openvino}[name](model, batch)
    print(json.dumps([alone, most_memory()]))


if __name__ == "__main__":
    main(sys.argv[1:])
