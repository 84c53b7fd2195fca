"""Time and error of the search for the weight ranges of ResNet-20, against the loop over all candidates.

Both run on one thread, per output channel, on the same weights; times are CPU seconds.  The loop is what the reference
implementations do: vectorised over the channels, one candidate (scale, zero point) after the other.

    python benchmarks/range_speed.py [--bits 2 3 4 8]
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from clcalib.quant.functional import fake_quantize
from clcalib.quant.ranges import MseGrid
from clcalib.quant.spec import PerChannel, QParams, QuantSpec
from common import provenance, write_result

ROOT = Path(__file__).resolve().parent.parent
WEIGHTS = ROOT / "examples" / "demo" / "resnet20.safetensors"
RULE = MseGrid(exponent=2.4, steps=100)


def load_weights() -> tuple[list[Tensor], str]:
    if WEIGHTS.exists():
        tensors, source = load_file(WEIGHTS), str(WEIGHTS.relative_to(ROOT))
    else:
        sys.path.insert(0, str(ROOT / "examples"))
        import demo_network

        torch.manual_seed(0)
        tensors, source = demo_network.resnet20().state_dict(), "random weights of examples/demo_network.py, seed 0"
    return [tensor.float() for tensor in tensors.values() if tensor.dim() >= 2], source


def loop_over_candidates(weight: Tensor, spec: QuantSpec) -> QParams:
    """The 2-D grid search, one candidate after the other, all channels at once."""
    rows = weight.flatten(1)
    lowest, highest = rows.amin(1).clamp(max=0), rows.amax(1).clamp(min=0)  # (C,), (C,)
    top = spec.levels - 1
    best_error = torch.full_like(lowest, torch.inf)
    best_scale, best_zero = torch.ones_like(lowest), torch.zeros_like(lowest)
    for step in range(1, RULE.steps + 1):
        scale = (highest - lowest) / RULE.steps * step / top
        for zero in range(spec.levels):
            values = ((rows / scale[:, None]).round().add(zero).clamp(0, top) - zero) * scale[:, None]
            error = (rows - values).abs().pow(RULE.exponent).sum(1)
            is_better = error < best_error
            best_error = torch.where(is_better, error, best_error)
            best_scale = torch.where(is_better, scale, best_scale)
            best_zero = torch.where(is_better, float(zero), best_zero)
    shape = (-1, *[1] * (weight.dim() - 1))
    return QParams(best_scale.view(shape), best_zero.view(shape) + spec.q_min)


def measure(rule: Callable[[Tensor, QuantSpec], QParams], weights: list[Tensor], spec: QuantSpec) -> dict[str, Any]:
    start = time.process_time()
    found = [rule(weight, spec) for weight in weights]
    seconds = time.process_time() - start
    errors = []
    for weight, parameters in zip(weights, found, strict=True):
        values = fake_quantize(weight, parameters.scale, parameters.zero_point, spec.q_min, spec.q_max)
        errors.append(float((weight.double() - values.double()).abs().pow(RULE.exponent).sum()))
    return {"cpu_seconds": round(seconds, 3), "error": sum(errors), "error_per_layer": errors}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bits", type=int, nargs="+", default=[2, 3, 4, 8])
    bits_wanted = parser.parse_args().bits
    torch.set_num_threads(1)
    weights, source = load_weights()
    RULE(weights[0], QuantSpec(2, granularity=PerChannel()))  # the first call sets PyTorch up
    rows = []
    print(f"{sum(w.numel() for w in weights)} weights in {len(weights)} layers: {source}")
    print(f"{'bits':>4}  {'ours, s':>8}  {'loop, s':>8}  {'faster':>7}  {'our error / loop error':>22}")
    for bits in bits_wanted:
        spec = QuantSpec(bits, granularity=PerChannel())
        ours, loop = measure(RULE, weights, spec), measure(loop_over_candidates, weights, spec)
        pairs = zip(ours["error_per_layer"], loop["error_per_layer"], strict=True)
        worst = max(our / their for our, their in pairs)
        rows.append({"bits": bits, "ours": ours, "loop": loop, "worst_error_ratio_of_a_layer": worst})
        speed, ratio = loop["cpu_seconds"] / ours["cpu_seconds"], ours["error"] / loop["error"]
        print(f"{bits:>4}  {ours['cpu_seconds']:>8.2f}  {loop['cpu_seconds']:>8.2f}  {speed:>6.0f}x  {ratio:>22.6f}")
    about = {"weights": source, "exponent": RULE.exponent, "steps": RULE.steps, **provenance(seed=None)}
    print(write_result("range_speed", {**about, "rows": rows}).name)


if __name__ == "__main__":
    main()
