"""Bad numbers in images, weights, batch norms and activations: nothing that is not finite is ever saved.

A run is stopped before it optimises anything, by an error that says where the number is, or it ends with a finite
result and a warning that names the matter; a case without a matter ends with a result that is close to float.
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.hard.bad_numbers import CASES, Numbers
from tests.hard.figures import IS_FULL, record

import clcalib
from clcalib.calibrate.observer import SilentObserver
from clcalib.errors import ClcalibError, ClcalibWarning, SmallCalibrationWarning, WorseThanNearestWarning

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


class Counter(SilentObserver):
    """Counts what is told of steps."""

    def __init__(self) -> None:
        self.steps = 0

    def step(self, step: int, losses: object) -> None:
        self.steps += 1


def run(
    numbers: Numbers, recipe: clcalib.Recipe, bits: int, folder: Path, observer: Counter
) -> clcalib.QuantizationResult:
    result = clcalib.quantize(
        numbers.model,
        clcalib.CalibrationSet.from_tensor(numbers.images),
        recipe=recipe,
        bits=clcalib.Bits(bits, bits),
        held_out=clcalib.CalibrationSet.from_tensor(numbers.held_out),
        precision="float32",
        observer=observer,
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


def sqnr(numbers: Numbers, result: clcalib.QuantizationResult) -> float:
    rows = clcalib.CalibrationSet.from_tensor(numbers.images).images
    floats, own = numbers.model(rows).double(), result.model(rows).double()
    assert torch.isfinite(own).all()
    return 10 * math.log10(float(floats.square().sum()) / max(float((floats - own).square().sum()), 1e-300))


@pytest.mark.parametrize("name", CASES if IS_FULL else FEW)
def test_bad_numbers(name: str, tmp_path: Path) -> None:
    case, runs = CASES[name], {"refused": 0, "warned": 0, "sound": 0}
    for recipe_name, recipe in recipes():
        for bits in WIDTHS:
            numbers, observer, where = case.build(), Counter(), f"{name}, {recipe_name}, {bits} bits"
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                try:
                    result = run(numbers, recipe, bits, tmp_path, observer)
                except ClcalibError as error:
                    outcome = "refused"
                    assert observer.steps == 0, f"{where}: refused after a step: {error}"
                    is_equal = "different images" in str(error)  # what a contrastive term asks for
                    assert case.outcome == "refused" or (is_equal and "contrastive" in recipe_name), f"{where}: {error}"
                    assert any(part in str(error) for part in ("layer", "`", "image")), f"{where}: {error}"
                else:
                    check_files(tmp_path)
                    told = [one.category for one in caught if issubclass(one.category, ClcalibWarning)]
                    outcome = "warned" if any(not issubclass(one, _ABOUT_OTHERS) for one in told) else "sound"
                    ratio = sqnr(numbers, result)
                    assert outcome == case.outcome, f"{where}: {told}"
                    assert outcome == "warned" or bits < 8 or ratio > LEAST_SQNR, f"{where}: {ratio:.1f} dB"
            runs[outcome] += 1
    record("bad numbers", case=name, **runs, not_finite=0)
