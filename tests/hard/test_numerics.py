"""Bad numbers in images, weights, batch norms and activations: nothing that is not finite is ever saved.

A run is stopped before it optimises anything, by an error that says where the number is, or it ends with a finite
result and a warning that names the matter; a case without a matter ends with a result that is close to float.
"""

from __future__ import annotations

import json
import math
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import clcalib
from clcalib.calibrate.observer import SilentObserver
from clcalib.errors import ClcalibError, ClcalibWarning, SmallCalibrationWarning, WorseThanNearestWarning
from tests.hard.bad_numbers import CASES, Case, Numbers
from tests.hard.figures import IS_FULL, record

STEPS = 3
LEAST_SQNR = 20.0  # dB at 8 bits, of what is called sound
_ABOUT_OTHERS = (SmallCalibrationWarning, WorseThanNearestWarning)  # neither is about a bad number
RECIPES: dict[str, Callable[[], clcalib.Recipe]] = {
    "nearest": clcalib.recipes.nearest,
    "gptq": clcalib.recipes.gptq,
    "adaround": lambda: clcalib.recipes.adaround(steps=STEPS),
    "brecq": lambda: clcalib.recipes.brecq(steps=STEPS),
    "qdrop": lambda: clcalib.recipes.qdrop(steps=STEPS),
    "fast": lambda: clcalib.recipes.fast(steps=STEPS),
    "pd_quant": lambda: clcalib.recipes.pd_quant(steps=STEPS, correction_steps=2),
}
FEW = ["1e6 in an image", "1e18 in an image", "a denormal channel", "gamma 0 in the first layer", "images of zeros"]
WIDTHS = (2, 4, 8) if IS_FULL else (8,)


def recipes() -> Iterator[tuple[str, clcalib.Recipe]]:
    for name, make in RECIPES.items():
        if not IS_FULL and name not in ("nearest", "fast"):
            continue
        yield name, make()
        if name not in ("nearest", "gptq") and (IS_FULL or name == "fast"):
            yield f"{name} + contrastive", clcalib.with_contrastive(make(), interval=1)


class Steps(SilentObserver):
    """Counts what is told of steps."""

    def __init__(self) -> None:
        self.count = 0

    def step(self, step: int, losses: object) -> None:
        self.count += 1


def tried(case: Case, recipe: clcalib.Recipe, bits: int, folder: Path) -> tuple[str, str]:
    """What came of a run, and what is wrong with that, if anything is."""
    numbers, steps = case.build(), Steps()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            result = run(numbers, recipe, bits, folder, steps)
        except ClcalibError as error:
            return "refused", refusal_problem(case, recipe, str(error), steps.count)
    check_files(folder)
    told = [one.category for one in caught if issubclass(one.category, ClcalibWarning)]
    outcome, ratio = (
        "warned" if any(not issubclass(one, _ABOUT_OTHERS) for one in told) else "sound",
        sqnr(numbers, result),
    )
    expected = case.outcome if recipe.correction is None else case.corrected or case.outcome
    if outcome != expected:
        return outcome, f"{expected} is expected, {outcome} came, with {told}"
    is_close = outcome == "warned" or bits < 8 or ratio > LEAST_SQNR
    return outcome, "" if is_close else f"{ratio:.1f} dB"


def refusal_problem(case: Case, recipe: clcalib.Recipe, message: str, steps: int) -> str:
    if steps:
        return f"refused behind {steps} steps: {message}"
    needs_two = recipe.contrastive is not None and "different images" in message
    if case.outcome != "refused" and not needs_two:
        return f"{case.outcome} is expected, not: {message}"
    return "" if any(part in message for part in ("layer", "`", "image")) else f"no place is named: {message}"


def run(numbers: Numbers, recipe: clcalib.Recipe, bits: int, folder: Path, steps: Steps) -> clcalib.QuantizationResult:
    result = clcalib.quantize(
        numbers.model,
        clcalib.CalibrationSet.from_tensor(numbers.images),
        recipe=recipe,
        bits=clcalib.Bits(bits, bits),
        held_out=clcalib.CalibrationSet.from_tensor(numbers.held_out),
        precision="float32",
        observer=steps,
    )
    result.save(folder, overwrite=True)
    return result


def check_files(folder: Path) -> None:
    for name, tensor in load_file(folder / "model.safetensors").items():
        assert not tensor.is_floating_point() or torch.isfinite(tensor).all(), name

    def refuse(constant: str) -> Any:
        raise AssertionError(f"{constant} in a JSON file")

    for name in ("model.json", "run.json"):
        json.loads((folder / name).read_text(), parse_constant=refuse)


@torch.no_grad()
def sqnr(numbers: Numbers, result: clcalib.QuantizationResult) -> float:
    rows = clcalib.CalibrationSet.from_tensor(numbers.images).images
    floats, own = numbers.model(rows).double(), result.model(rows).double()
    assert torch.isfinite(own).all()
    return 10 * math.log10(float(floats.square().sum()) / max(float((floats - own).square().sum()), 1e-300))


@pytest.mark.usefixtures("exported_once")
@pytest.mark.parametrize("name", CASES if IS_FULL else FEW)
def test_bad_numbers(name: str, tmp_path: Path) -> None:
    runs, problems = Counter[str](), list[str]()
    for recipe_name, recipe in recipes():
        for bits in WIDTHS:
            outcome, problem = tried(CASES[name], recipe, bits, tmp_path)
            problems += [f"{recipe_name}, {bits} bits: {problem}"] if problem else []
            runs[outcome] += 1
    record("bad numbers", case=name, **runs, problems=problems)
    assert not problems
