"""Writes ``scores.json``: cosines of float keys and quantized queries on 16 images of the embedded network.

    python docs/pictures/scores.py     # half a minute

The float network, the same under nearest rounding and calibrated (QDrop with the contrastive term, 100 steps), W2A2.
The feature is that in front of the classifier; behind the whole network, so that the frozen remainder is that layer.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

HERE = Path(__file__).resolve().parent
EXAMPLES = HERE.parent.parent / "examples"
sys.path.insert(0, str(EXAMPLES))

import clcalib  # noqa: E402
from clcalib.data.sources import load_calibration, load_evaluation  # noqa: E402
from clcalib.data.transform import Transform  # noqa: E402
from demo_network import MEAN, STANDARD_DEVIATION, resnet20  # noqa: E402

CLASSES = ("airplane", "car", "bird", "cat", "deer", "dog", "frog", "horse")
STEPS, SEED, EACH = 100, 0, 2


def main() -> None:
    model = resnet20().eval()
    model.load_state_dict(load_file(EXAMPLES / "demo" / "resnet20.safetensors"))
    transform = Transform(mean=MEAN, standard_deviation=STANDARD_DEVIATION)
    calibration = load_calibration(EXAMPLES / "demo" / "calibration.json", transform=transform)
    test = load_evaluation(EXAMPLES / "demo" / "test.json", transform=transform)
    assert test.labels is not None
    chosen = [int(place) for label in range(len(CLASSES)) for place in (test.labels == label).nonzero()[:EACH, 0]]
    images = test.images[chosen]
    keys = features(clcalib.capture(model, images[:2]), images)
    bits, found = clcalib.Bits(2, 2), {"float": keys}
    recipes = {
        "nearest": clcalib.recipes.nearest(),
        "calibrated": clcalib.with_contrastive(clcalib.recipes.qdrop(steps=STEPS)),
    }
    for name, recipe in recipes.items():
        result = clcalib.quantize(
            model, calibration, recipe=recipe, bits=bits, seed=SEED, precision="float32", measured_images=0
        )
        found[name] = features(result.quantized.chain, images)
    scores = {name: cosines(queries, keys) for name, queries in found.items()}
    classes = [name for name in CLASSES for _ in range(EACH)]
    text = {"classes": classes, "steps": STEPS, "seed": SEED, **scores}
    (HERE / "scores.json").write_text(json.dumps(text) + "\n")


def features(chain: clcalib.Chain, images: Tensor) -> Tensor:  # (N, C, H, W) -> (N, d)
    """What the last layer reads."""
    with torch.no_grad():
        output: Tensor = chain.subgraph((chain.input_name,), (chain.feature_name,))(images)[0]
    return output.flatten(1)


def cosines(queries: Tensor, keys: Tensor) -> list[list[float]]:
    table = F.normalize(queries, dim=1) @ F.normalize(keys, dim=1).T
    return [[round(float(value), 3) for value in row] for row in table]


if __name__ == "__main__":
    main()
