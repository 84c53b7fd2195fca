"""What calibration is planned to hold in memory, by network and workers: benchmarks/results/largest_model.json.

    python benchmarks/largest_model.py            # some minutes, and 12 GB of memory for the largest
    python benchmarks/largest_model.py --smoke    # one small network, nothing written

Networks of torchvision with random weights are captured at 224 x 224 and dealt to workers as by
``--workers N --split units`` (``clcalib.placed.plan``): QDrop with the contrastive term at W4A4, 1,024 images, stores
of 2 GB in memory at most and the rest in files.  Nothing is calibrated.  From the largest of each family follows how
many bytes a parameter takes, and from that the largest network of the family that a memory has room for.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
import torchvision

import clcalib
from clcalib.capture.chain import capture
from clcalib.placed.plan import Amounts, planned
from clcalib.quant.insert import chain_policy
from common import provenance, write_result

FAMILIES = {"ResNet": ("resnet50", "resnet152"), "ViT": ("vit_b_16", "vit_l_16", "vit_h_14")}
MEMORIES = {"8 GB": 8e9, "24 GB": 24e9, "80 GB": 80e9, "141 GB": 141e9}
WORKERS, IMAGES, SIDE, STORES = (1, 4, 16), 1024, 224, 2 * 10**9


def measured(name: str) -> dict[str, Any]:
    """One network: the largest worker's bytes by their number, and what one worker holds in parts."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = torchvision.models.get_model(name, weights=None).eval()
    parameters = sum(parameter.numel() for parameter in model.parameters())
    chain = capture(model, torch.randn(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0)), unit="block")
    amounts = Amounts(IMAGES, memory_budget=STORES, is_read=True)
    policy = chain_policy(chain, clcalib.Bits(4, 4))
    plans = {workers: planned(chain, policy, amounts, workers) for workers in WORKERS if workers <= len(chain.units)}
    (alone,) = plans[1]
    return {
        "parameters": parameters,
        "units": len(chain.units),
        "parts_of_one_worker": {part: getattr(alone, part) for part in ("weights", "trained", "caches", "activation")},
        "largest_worker_bytes": {workers: max(row.total for row in plan) for workers, plan in plans.items()},
    }


def rooms(network: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Parameters that each memory has room for, by the number of workers that each have as much.

    Weights and codes grow with the number of units, and are shared out; what is trained, stores and the largest
    activation are those of one unit, and stay.  While it is captured, a network is in each worker's memory as a whole.
    """
    parts = network["parts_of_one_worker"]
    a_parameter = parts["weights"] / network["parameters"]
    unit = parts["trained"] + parts["caches"] + parts["activation"]

    def most(workers: int, size: float) -> float:
        return max(0.0, min(workers * (size - unit) / a_parameter, size / torch.float32.itemsize))

    return {memory: {str(n): most(n, size) for n in WORKERS} for memory, size in MEMORIES.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true", help="one small network, to see that it works")
    is_smoke = parser.parse_args().smoke
    families = {"ResNet": ("resnet18",)} if is_smoke else FAMILIES
    networks = {name: measured(name) for names in families.values() for name in names}
    for name, network in networks.items():
        print(name, network, flush=True)
    largest = {family: names[-1] for family, names in families.items()}
    result = {
        "images": IMAGES,
        "side": SIDE,
        "stores_in_memory": STORES,
        "networks": networks,
        "parameters_that_fit": {family: {"as": name, **rooms(networks[name])} for family, name in largest.items()},
    }
    if not is_smoke:
        print(write_result("largest_model", {**result, "torchvision": torchvision.__version__, **provenance(seed=0)}))


if __name__ == "__main__":
    main()
