"""Whether the number of threads changes the result: hashes of one calibration with 1, 2 and 3 threads.

    python benchmarks/threads.py

ResNet-20 with random weights, random images, QDrop with the contrastive term, few steps, in both precisions; each run
is done twice with one thread, so that a difference can be told from chance.  Writes
``benchmarks/results/threads.json``.
"""

from __future__ import annotations

import hashlib

import torch

import clcalib
from common import provenance, resnet20, write_result

THREADS, STEPS, IMAGES = (1, 1, 2, 3), 20, 64


def digest(threads: int, precision: str) -> str:
    torch.set_num_threads(threads)
    images = torch.randn(IMAGES, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    result = clcalib.quantize(
        resnet20().eval(),
        clcalib.CalibrationSet.from_tensor(images),
        recipe=clcalib.with_contrastive(clcalib.recipes.qdrop(steps=STEPS)),
        bits=clcalib.Bits(2, 2),
        measured_images=0,
        precision=precision,
    )
    state = hashlib.sha256()
    for name, tensor in sorted(result.model.state_dict().items()):
        state.update(name.encode() + tensor.contiguous().numpy().tobytes())
    return state.hexdigest()


def main() -> None:
    digests = {
        precision: {f"{threads}, run {number}": digest(threads, precision) for number, threads in enumerate(THREADS)}
        for precision in ("float32", "bfloat16")
    }
    equal = {precision: len(set(found.values())) == 1 for precision, found in digests.items()}
    print(write_result("threads", {"same_bits": equal, "digests": digests, "steps": STEPS, **provenance(seed=0)}))
    print(f"the same bits with 1, 2 and 3 threads: {equal}")


if __name__ == "__main__":
    main()
