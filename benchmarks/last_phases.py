"""The grid ``last_phase`` of fewer_steps.py, with the units of each host run once and its last phases behind copies.

    python benchmarks/last_phases.py --data DATA --host qdrop --seed 0

Each JSON line is what ``fewer_steps.py run --grid last_phase`` would write for the cell, in half the time; CPU seconds
are those of the units and the cell's own last phase.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch

import clcalib
from clcalib.calibrate.network import run_last_phase
from clcalib.calibrate.observer import SilentObserver
from clcalib.calibrate.precision import convolution_dtype
from clcalib.calibrate.walk import Walk
from clcalib.capture.chain import Chain, capture
from clcalib.evaluate.accuracy import logits, top1
from clcalib.files import write_atomically
from clcalib.quant.insert import QuantizedChain, chain_policy, insert_quantizers
from clcalib.quant.ranges import RANGE_RULES
from common import RESULTS, all_images, network, public_weights
from fewer_steps import parts, row
from fewer_steps_grids import Cell, last_phase

RULE = RANGE_RULES["mse_grid"]


def make(cell: Cell, pictures: torch.Tensor) -> tuple[Chain, QuantizedChain]:
    """The float chain and its copy under nearest rounding, as ``quantize`` makes them."""
    chain = capture(network(public_weights()), pictures[:2])
    policy = chain_policy(chain, clcalib.Bits(2, cell.activations))
    return chain, insert_quantizers(chain, policy, RULE)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--host", required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--only", nargs="+", default=[""], help="last phases whose cell's name holds one of these")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    pictures, labels = all_images(arguments.data, "train")
    chosen, others = (pictures[part].clone() for part in parts(arguments.seed))
    labels = labels[parts(arguments.seed)[1]]
    start = time.process_time()
    cells = [cell for cell in last_phase() if cell.recipe == arguments.host]
    cells = [cell for cell in cells if cell.last_phase is None or any(part in cell.name for part in arguments.only)]
    chain, units = make(cells[0], chosen)
    dtype = convolution_dtype("auto", torch.device("cpu"))
    unit_seconds = 0.0
    for cell in cells:
        quantized = units if cell.last_phase is None else units.copy()
        walk = Walk(chain, quantized, cell.make(), RULE, {}, arguments.seed, SilentObserver(), dtype)
        if cell.last_phase is None:  # the first cell
            list(walk.run(chosen, None))
            seconds = unit_seconds = time.process_time() - start
        else:
            start = time.process_time()
            trace = run_last_phase(walk, chosen, None)
            seconds = unit_seconds + time.process_time() - start
            print(trace, flush=True)
        accuracy = 100 * top1(logits(quantized.chain.module, others), labels)
        line = row(cell, arguments.seed, accuracy, seconds)
        path = RESULTS / "fewer_steps" / "last_phase" / f"{cell.name}-seed{arguments.seed}.json"
        write_atomically(path, (json.dumps(line) + "\n").encode())
        print(f"{cell.name} seed {arguments.seed}: {accuracy:.2f} ({line['cpu_seconds']} CPU s)", flush=True)


if __name__ == "__main__":
    main()
