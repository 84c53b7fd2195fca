"""How few steps reach QDrop's accuracy at 2,000: ResNet-20, CIFAR-10, W2A2.

    python benchmarks/fewer_steps.py run --data DATA --grid rates
    python benchmarks/fewer_steps.py summary

A grid is a list of cells; each run (cell and seed) is one JSON line in ``benchmarks/results/fewer_steps/GRID/``, and a
run that is there is not repeated.  Settings are *selected* by the accuracy on 5,000 training images that are not
calibrated on (the float network was trained on them, so their level is too high; their order is what counts).  The
test images are read by the grids ``final`` and ``curve`` alone, with seeds that selected nothing.  Needs the public
weights.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch

import clcalib
from clcalib.calibrate.recipe import Recipe
from clcalib.calibrate.recipes import RECIPES
from clcalib.evaluate.accuracy import logits, top1
from clcalib.files import write_atomically
from clcalib.objectives.rounding_penalty import RoundingPenalty
from common import RESULTS, all_images, network, provenance, public_weights, shuffled, write_result

CALIBRATION_IMAGES = 1024
SELECTION_IMAGES = 5000
PROVENANCE = provenance()  # at the start: the tree may change while the runs go on


@dataclasses.dataclass(frozen=True)
class Cell:
    """A recipe with changed settings.

    Args:
        name: of the cell.
        recipe: name in ``RECIPES``.
        options: its arguments.
        phase: fields of its phase that are replaced.
        penalty: fields of its rounding penalty that are replaced.
        start: the codes that units start from.
        activations: bits.
        contrastive: settings of the contrastive term, None for none.
        last_phase: settings of the phase over the whole network, None for none.
        images: how many are calibrated on.
        augment: names of augmentations.
        copies: how many augmented copies of each image are added.
    """

    name: str
    recipe: str
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    phase: dict[str, Any] = dataclasses.field(default_factory=dict)
    penalty: dict[str, Any] = dataclasses.field(default_factory=dict)
    start: str = "nearest"
    activations: int = 2
    contrastive: dict[str, Any] | None = None
    last_phase: dict[str, Any] | None = None
    images: int = CALIBRATION_IMAGES
    augment: tuple[str, ...] = ()
    copies: int = 1

    def make(self) -> Recipe:
        recipe = RECIPES[self.recipe](**self.options)
        if self.contrastive is not None:
            recipe = clcalib.with_contrastive(recipe, **self.contrastive)
        if self.last_phase is not None:
            recipe = clcalib.with_last_phase(recipe, **self.last_phase)
        return dataclasses.replace(
            recipe,
            phases=tuple(self._changed(phase) for phase in recipe.phases),
            start="error_feedback" if self.start == "error_feedback" else recipe.start,
        )

    def calibration(self, pictures: torch.Tensor, seed: int) -> clcalib.CalibrationSet:
        originals = clcalib.CalibrationSet.from_tensor(pictures[: self.images])
        if not self.augment:
            return originals
        return clcalib.augmented(originals, self.augment, copies=self.copies, seed=seed)

    def _changed(self, phase: Any) -> Any:
        terms = tuple(
            dataclasses.replace(term, objective=dataclasses.replace(term.objective, **self.penalty))
            if isinstance(term.objective, RoundingPenalty)
            else term
            for term in phase.terms
        )
        return dataclasses.replace(phase, terms=terms, **self.phase)


def qdrop(name: str, steps: int, **options: Any) -> Cell:
    """QDrop with options for the recipe, for its phase (``phase``), for its penalty (``penalty``), and a ``start``."""
    cell = {key: options.pop(key) for key in ("phase", "penalty", "start") if key in options}
    return Cell(name, "qdrop", {"steps": steps, **options}, **cell)


def base() -> list[Cell]:
    """What is to be reached, and where one starts."""
    return [qdrop("qdrop-2000", 2000), qdrop("qdrop-200", 200), qdrop("qdrop-400", 400)]


def rates() -> list[Cell]:
    """Rounding rate and its schedule."""
    return [
        qdrop(f"{steps}-{schedule}-rate-{rate:g}", steps, phase={"rounding_schedule": schedule}, rounding_rate=rate)
        for steps in (100, 200, 400)
        for schedule in ("constant", "warm_up_cosine")
        for rate in (3e-3, 1e-2, 2e-2, 4e-2, 8e-2, 0.16, 0.32)
    ]


def starts() -> list[Cell]:
    """Error feedback alone, and as the start of the rounding."""
    alone = [Cell(name, name) for name in ("nearest", "gptq")]
    alone += [Cell(f"{name}-w2a4", name, activations=4) for name in ("nearest", "gptq")]
    return alone


def levers() -> list[Cell]:
    """One setting changed at a time, from the best rate on."""
    changes: dict[str, dict[str, Any]] = {
        "plain": {},
        "feedback": {"start": "error_feedback"},
        "feedback-share-0.5": {"start": "error_feedback", "phase": {"start_share": 0.5}},
        "feedback-share-0.8": {"start": "error_feedback", "phase": {"start_share": 0.8}},
        "nearest-share-0.5": {"phase": {"start_share": 0.5}},
        "scales-1e-3": {"activation_rate": 1e-3},
        "scales-4e-3": {"activation_rate": 4e-3},
        "scales-1e-2": {"activation_rate": 1e-2},
        "warm-up-0": {"penalty": {"warm_up": 0.0}},
        "warm-up-0.4": {"penalty": {"warm_up": 0.4}},
        "penalty-0.003": {"rounding_weight": 0.003},
        "penalty-0.03": {"rounding_weight": 0.03},
        "keep-0.75": {"keep_quantized_probability": 0.75},
        "keep-1": {"keep_quantized_probability": 1.0},
    }
    cells = []
    for steps in (100, 200, 400):
        for rate in (0.16, 0.32):
            for name, change in changes.items():
                phase = {"rounding_schedule": "warm_up_cosine", **change.get("phase", {})}
                settings = {"rounding_rate": rate, **change, "phase": phase}
                cells.append(qdrop(f"{steps}-{rate:g}-{name}", steps, **settings))
    return cells


def together() -> list[Cell]:
    """The settings that helped one at a time, together, and what lies around them."""
    changes: dict[str, dict[str, Any]] = {
        "all": {},
        "share-0.9": {"phase": {"start_share": 0.9}},
        "share-0.65": {"phase": {"start_share": 0.65}},
        "rate-0.16": {"rounding_rate": 0.16},
        "rate-0.6": {"rounding_rate": 0.6},
        "keep-0.35": {"keep_quantized_probability": 0.35},
        "penalty-0.01": {"rounding_weight": 0.01},
        "penalty-0.1": {"rounding_weight": 0.1},
        "scales-4e-4": {"activation_rate": 4e-4},
        "scales-5e-3": {"activation_rate": 5e-3},
        "cosine": {"phase": {"rounding_schedule": "cosine"}},
        "warm-up-0.4": {"penalty": {"warm_up": 0.4}},
        "nearest": {"start": "nearest", "phase": {"start_share": 0.0}},
    }
    cells = []
    for steps in (25, 50, 100, 200, 400, 800):
        for name, change in changes.items():
            phase = {"rounding_schedule": "warm_up_cosine", "start_share": 0.8, **change.get("phase", {})}
            settings = {"rounding_rate": 0.32, "activation_rate": 2e-3, "rounding_weight": 0.03} | change
            settings = {"start": "error_feedback"} | settings | {"phase": phase}
            cells.append(qdrop(f"{steps}-{name}", steps, **settings))
    return cells


def widths() -> list[Cell]:
    """What was selected at W2A2, at W2A4: does it hold there?"""
    cells = [Cell(f"fast-{steps}-w2a4", "fast", {"steps": steps}, activations=4) for steps in (50, 100, 400)]
    return [*cells, Cell("qdrop-2000-w2a4", "qdrop", {"steps": 2000}, activations=4)]


def contrastive() -> list[Cell]:
    """The contrastive term at every m-th step and on part of the batch: what saving costs in accuracy."""
    cells = [Cell("fast-200", "fast", {"steps": 200})]
    for interval, images in ((1, None), (4, None), (8, None), (1, 4), (2, 8), (4, 8), (4, 4), (8, 8)):
        some = {"interval": interval, "images": images or "all"}
        name = f"fast-200-every-{interval}" + ("" if images is None else f"-images-{images}")
        cells.append(Cell(name, "fast", {"steps": 200}, contrastive=some))
    return cells


def scales() -> list[Cell]:
    """Activation scales alone: the input, what is kept quantized, and the exponent."""
    changes: dict[str, dict[str, Any]] = {
        "mixed-4e-3": {"quantized_input_probability": 0.5, "keep_quantized_probability": 0.5},
        "float-input-4e-3": {"quantized_input_probability": 0.0, "exponent": 2.4},
        "quantized-4e-3": {},
    }
    same = {"quantized_input_probability": 1.0, "keep_quantized_probability": 1.0, "exponent": 2.0}
    same["activation_rate"] = 4e-3
    return [Cell(f"200-{name}", "scale_only", {"steps": 200} | same | change) for name, change in changes.items()]


def genie() -> list[Cell]:
    """The weights' scales trained beside soft rounding: the paper's recipe, and its lever alone on others."""
    cells = [qdrop("qdrop-200", 200), Cell("fast-200", "fast", {"steps": 200})]
    cells += [Cell(f"200-{rate:g}", "genie_m", {"steps": 200, "weight_scale_rate": rate}) for rate in (1e-3, 1e-2)]
    return [
        *cells,
        qdrop("qdrop-200-weight-scales", 200, phase={"weight_scale_rate": 5e-3}),
        Cell("fast-200-weight-scales", "fast", {"steps": 200}, phase={"weight_scale_rate": 5e-3}),
    ]


def straight_through() -> list[Cell]:
    """Straight-through rounding with learned scales: its rates and its start."""
    changes: dict[str, dict[str, Any]] = {
        "plain": {},
        "rate-0.005": {"rounding_rate": 5e-3},
        "rate-0.08": {"rounding_rate": 8e-2},
        "weight-scales-5e-4": {"weight_scale_rate": 5e-4},
        "weight-scales-2e-2": {"weight_scale_rate": 2e-2},
        "scales-4e-4": {"activation_rate": 4e-4},
    }
    same = {"steps": 200, "rounding_rate": 2e-2, "weight_scale_rate": 5e-3, "activation_rate": 2e-3}
    cells = [Cell(f"200-{name}", "straight_through", same | change) for name, change in changes.items()]
    start: dict[str, Any] = {"start": "error_feedback", "phase": {"start_share": 0.8}}
    return [*cells, Cell("200-feedback", "straight_through", same, **start)]


def augmentation() -> list[Cell]:
    """Augmented copies behind the calibration images, at the same number of steps."""
    cells = []
    for count in (128, 1024):
        cells.append(Cell(f"qdrop-200-images-{count}", "qdrop", {"steps": 200}, images=count))
        for names in (("flip",), ("flip", "crop"), ("cutmix",)):
            for copies in (1, 3):
                name = f"qdrop-200-images-{count}-{'-'.join(names)}-copies-{copies}"
                cells.append(Cell(name, "qdrop", {"steps": 200}, images=count, augment=names, copies=copies))
    return cells


def last_phase() -> list[Cell]:
    """A phase over the whole network behind the units: its rate and its steps."""
    cells = []
    for host in ("qdrop", "fast"):
        cells.append(Cell(f"{host}-200", host, {"steps": 200}))
        for steps, rate in ((200, 0.1), (100, 0.1), (100, 0.3)):
            settings = {"steps": steps, "rounding_rate": rate}
            cells.append(Cell(f"{host}-200-last-{steps}-rate-{rate:g}", host, {"steps": 200}, last_phase=settings))
    return cells


def final() -> list[Cell]:
    """What was selected, on the test images; to be run with seeds that selected nothing."""
    cells = [Cell("gptq", "gptq"), Cell("gptq-w2a4", "gptq", activations=4), qdrop("qdrop-2000", 2000)]
    for steps in (50, 100, 200, 400):
        cells += [Cell(f"fast-{steps}", "fast", {"steps": steps})]
        cells += [Cell(f"fast-{steps}-w2a4", "fast", {"steps": steps}, activations=4)]
    return cells


def curve() -> list[Cell]:
    """Accuracy against steps, for each recipe."""
    cells = []
    for recipe in ("adaround", "brecq", "qdrop", "fast"):
        cells += [Cell(f"{recipe}-{steps}", recipe, {"steps": steps}) for steps in (100, 300, 1000, 2000)]
    return [*cells, Cell("qdrop-20000", "qdrop", {"steps": 20_000})]


GRIDS = {
    "starts": starts,
    "base": base,
    "rates": rates,
    "levers": levers,
    "together": together,
    "widths": widths,
    "contrastive": contrastive,
    "scales": scales,
    "genie": genie,
    "straight_through": straight_through,
    "augmentation": augmentation,
    "last_phase": last_phase,
    "final": final,
    "curve": curve,
}


TESTED = ("final", "curve")  # the grids whose results are told with the test images


def parts(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The numbers of the training images that are calibrated on and of those that settings are selected on."""
    order = shuffled(seed)
    return order[:CALIBRATION_IMAGES], order[-SELECTION_IMAGES:]


def run_cell(cell: Cell, seed: int, data: Path, is_final: bool) -> dict[str, Any]:
    """One run; the test images are looked at in the final grid only."""
    pictures, labels = all_images(data, "train")
    chosen, others = parts(seed)
    start = time.process_time()
    result = clcalib.quantize(
        network(public_weights()),
        cell.calibration(pictures[chosen], seed),
        recipe=cell.make(),
        bits=clcalib.Bits(2, cell.activations),
        seed=seed,
        measured_images=0,
    )
    seconds = time.process_time() - start
    test = None
    if is_final:
        tests, test_labels = all_images(data, "test")
        test = 100 * top1(logits(result.model, tests), test_labels)
    selection = 100 * top1(logits(result.model, pictures[others]), labels[others])
    return row(cell, seed, selection, seconds) | {"test_top1": test}


def row(cell: Cell, seed: int, selection: float, seconds: float) -> dict[str, Any]:
    """What is written down about a run."""
    return {
        "cell": cell.name,
        "settings": dataclasses.asdict(cell),
        "seed": seed,
        "selection_top1": selection,
        "test_top1": None,
        "cpu_seconds": round(seconds, 1),
        **PROVENANCE,
    }


def run(arguments: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    folder = RESULTS / "fewer_steps" / arguments.grid
    cells = [cell for cell in GRIDS[arguments.grid]() if any(part in cell.name for part in arguments.only)]
    for seed in arguments.seeds:
        for cell in cells:
            path = folder / f"{cell.name}-seed{seed}.json"
            if path.exists():
                continue
            row = run_cell(cell, seed, arguments.data, arguments.grid in TESTED)
            write_atomically(path, (json.dumps(row) + "\n").encode())
            print(f"{cell.name} seed {seed}: {row['selection_top1']:.2f} ({row['cpu_seconds']} CPU s)", flush=True)


def summary(arguments: argparse.Namespace) -> None:
    grids: dict[str, dict[str, Any]] = {}
    for grid, cells in GRIDS.items():
        runs = [json.loads(path.read_text()) for path in sorted((RESULTS / "fewer_steps" / grid).glob("*.json"))]
        by_cell = {cell.name: [run for run in runs if run["cell"] == cell.name] for cell in cells()}
        grids[grid] = {name: summarise(rows) for name, rows in by_cell.items() if rows}
    print(write_result("fewer_steps", {"grids": grids, **PROVENANCE}))
    for grid, summaries in grids.items():
        for name, row in summaries.items():
            print(f"{grid:10} {name:32} {row['selection_top1']} test {row['test_top1']} ({row['cpu_seconds']} CPU s)")


def summarise(runs: list[dict[str, Any]]) -> dict[str, Any]:
    tested = [run["test_top1"] for run in runs if run["test_top1"] is not None]
    return {
        "settings": runs[0]["settings"],
        "seeds": [run["seed"] for run in runs],
        "selection_top1": [round(run["selection_top1"], 2) for run in runs],
        "selection": spread([run["selection_top1"] for run in runs]),
        "test_top1": [round(value, 2) for value in tested],
        "test": spread(tested) if tested else None,
        "cpu_seconds": round(sum(run["cpu_seconds"] for run in runs) / len(runs), 1),
        "commits": sorted({run["commit"] for run in runs}),
    }


def spread(values: list[float]) -> dict[str, float | int]:
    """Mean, deviation between seeds (0 for a single one) and number of seeds."""
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return {"mean": round(statistics.fmean(values), 2), "deviation": round(deviation, 2), "n": len(values)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    runner = commands.add_parser("run", help="run what is missing of a grid")
    runner.add_argument("--data", type=Path, required=True, help="folder with CIFAR-10 (clcalib data cifar10)")
    runner.add_argument("--grid", choices=GRIDS, required=True)
    runner.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    runner.add_argument("--only", nargs="+", default=[""], help="run only cells whose name holds one of these")
    runner.set_defaults(function=run)
    commands.add_parser("summary", help="write fewer_steps.json").set_defaults(function=summary)
    arguments = parser.parse_args()
    if not public_weights().is_file():
        sys.exit(f"skipped: {public_weights().name} (public weights) is not there")
    arguments.function(arguments)


if __name__ == "__main__":
    main()
