"""What all adapters share: it runs in a peer's own venv and needs torch and NumPy only.

``python -m peers.NAME JOB.json`` in the folder ``benchmarks``: the job names the widths, the method and a folder with
``weights.npz``, ``calibration.npy`` and ``test.npy``; logits of the test images, seconds and versions go to the job's
``out`` folder.
"""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples"))
from demo_network import resnet20

Predict = Callable[[Tensor], Tensor]
EDGE_BITS = 8
FIRST, LAST = "conv1", "linear"
BATCH = 64


@dataclasses.dataclass(frozen=True)
class Job:
    """One run: a method of a peer at two widths; ``keep`` is where its ONNX file goes, "" for nowhere."""

    peer: str
    method: str
    weights: int
    activations: int
    seed: int
    data: str
    out: str
    keep: str = ""


def batches(images: Tensor, size: int = BATCH) -> Iterator[Tensor]:
    yield from images.split(size)


def declare_vision_operators() -> None:
    """Let a torchvision that was built for another torch be imported: it registers fakes of two operators.

    Declared only where they are missing, and never called: no peer detects boxes here.
    """
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        if not hasattr(torch.ops.torchvision, name):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    VISION_LIBRARIES.append(library)  # a library that is collected takes its operators away


VISION_LIBRARIES: list[torch.library.Library] = []


def float_network(folder: Path) -> nn.Module:
    model = resnet20()
    arrays = np.load(folder / "weights.npz")
    model.load_state_dict({name: torch.from_numpy(arrays[name]) for name in arrays.files})
    return model.eval()


def main(quantize: Callable[[nn.Module, Tensor, Job], Predict], packages: tuple[str, ...]) -> None:
    """Run the job of the command line; only ``quantize`` is timed, imports and testing are not."""
    job = Job(**json.loads(Path(sys.argv[1]).read_text()))
    torch.set_num_threads(1)
    torch.manual_seed(job.seed)
    np.random.seed(job.seed)
    data, out = Path(job.data), Path(job.out)
    model = float_network(data)
    calibration = torch.from_numpy(np.load(data / "calibration.npy"))
    start = time.process_time()
    predict = quantize(model, calibration, job)
    seconds = time.process_time() - start
    test = torch.from_numpy(np.load(data / "test.npy"))
    with torch.no_grad():
        outputs = torch.cat([predict(batch).float() for batch in batches(test, 500)])
    np.save(out / "logits.npy", outputs.numpy())
    result = {
        "cpu_seconds": round(seconds, 1),
        "versions": {name: version(name) for name in ("torch", *packages)},
        "python": platform.python_version(),
        "threads": os.environ.get("OMP_NUM_THREADS"),
    }
    (out / "result.json").write_text(json.dumps(result))
