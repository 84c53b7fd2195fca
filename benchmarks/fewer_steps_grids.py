"""The grids of ``fewer_steps.py``: each is a list of cells, and a cell is a recipe with changed settings."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

import clcalib
from clcalib.calibrate.recipe import Phase, Recipe
from clcalib.calibrate.recipes import RECIPES
from clcalib.objectives.rounding_penalty import RoundingPenalty

CALIBRATION_IMAGES = 1024


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
        precision: of convolutions.
        cache_precision: of the float network's stored values.
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
    precision: str = "auto"
    cache_precision: str = "float32"

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

    def _changed(self, phase: Phase) -> Phase:
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


def cache_precision() -> list[Cell]:
    """The float network's stored values in float32 and in bfloat16."""
    cells = []
    for activations in (2, 4):
        for name in ("float32", "bfloat16"):
            more = {"activations": activations, "precision": "float32", "cache_precision": name}
            cells.append(Cell(f"fast-200-w2a{activations}-{name}", "fast", {"steps": 200}, **more))
    return cells


def precision() -> list[Cell]:
    """Convolutions in float32 and in bfloat16, with and without a term that reads the rest of the network."""
    cells = []
    for activations in (2, 4):
        for term in (None, {"interval": 1, "images": "all"}):
            for kind in ("float32", "bfloat16"):
                name = f"fast-200-w2a{activations}{'-contrastive' if term else ''}-{kind}"
                more = {"activations": activations, "contrastive": term, "precision": kind}
                cells.append(Cell(name, "fast", {"steps": 200}, **more))
    return cells


def final() -> list[Cell]:
    """What was selected, on the test images; to be run with seeds that selected nothing."""
    cells = [Cell("gptq", "gptq"), Cell("gptq-w2a4", "gptq", activations=4), qdrop("qdrop-2000", 2000)]
    cells += [Cell("qdrop-2000-w2a4", "qdrop", {"steps": 2000}, activations=4), qdrop("qdrop-20000", 20_000)]
    for steps in (50, 100, 200, 400):
        cells += [Cell(f"fast-{steps}", "fast", {"steps": steps})]
        cells += [Cell(f"fast-{steps}-w2a4", "fast", {"steps": steps}, activations=4)]
    return cells


def curve() -> list[Cell]:
    """Accuracy against steps, for each recipe that takes a number of them; what is cheap first."""
    recipes = ("adaround", "brecq", "qdrop", "fast", "pd_quant", "genie_m", "straight_through", "scale_only")
    counts = (100, 300, 1000, 2000, 20_000)
    return [Cell(f"{recipe}-{steps}", recipe, {"steps": steps}) for steps in counts for recipe in recipes]


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
    "cache_precision": cache_precision,
    "precision": precision,
    "final": final,
    "curve": curve,
}
TESTED = ("final", "curve")  # the grids whose results are told with the test images
