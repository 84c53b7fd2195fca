"""A loss that is not finite is named, the unit is done again with care, and it is never left worse than nearest."""

from __future__ import annotations

import dataclasses
import itertools
import warnings

import pytest
import torch

import clcalib
from clcalib.calibrate import device_step
from clcalib.calibrate.recipe import Recipe, Term
from clcalib.errors import NonFiniteLossWarning
from clcalib.objectives.batch import Need, UnitBatch
from tests.calibrate.emulated_graph import EmulatedGraphs
from tests.hard.figures import IS_FULL, record
from tests.tiny import images, tiny

pytestmark = pytest.mark.usefixtures("exported_once")
STEPS = 6
HOSTS = {
    "adaround": lambda: clcalib.recipes.adaround(steps=STEPS),
    "brecq": lambda: clcalib.recipes.brecq(steps=STEPS),
    "qdrop": lambda: clcalib.recipes.qdrop(steps=STEPS),
    "fast": lambda: clcalib.recipes.fast(steps=STEPS),
    "straight_through": lambda: clcalib.recipes.straight_through(steps=STEPS),
    "pd_quant": lambda: clcalib.recipes.pd_quant(steps=STEPS, correction_steps=1),
}


@dataclasses.dataclass(frozen=True)
class Breaks:
    """A loss that has a bad value, or a bad gradient, from some point of the phase on."""

    value: float
    at: float  # share of the phase
    is_gradient: bool = False

    needs = frozenset[Need]()

    def __call__(self, batch: UnitBatch) -> torch.Tensor:
        progress = batch.progress
        is_on = float(progress) >= self.at - 1e-9
        zero = batch.output.sum() * 0
        if not is_on:
            return zero
        if self.is_gradient:  # 0 * sqrt(0) has a gradient of 0 * inf
            return (zero.square()).sqrt()
        return zero + self.value


@dataclasses.dataclass(frozen=True)
class BreaksAtSpeed:
    """A loss that is not finite where the rounding has moved fast."""

    limit: float

    needs = frozenset({Need.ROUNDING})

    def __call__(self, batch: UnitBatch) -> torch.Tensor:
        largest = max(float(v.detach().abs().max()) for v in batch.rounding)
        return batch.output.sum() * (0 if largest < self.limit else float("nan"))


def broken(recipe: Recipe, objective: object) -> Recipe:
    phases = [dataclasses.replace(phase, terms=(*phase.terms, Term(objective))) for phase in recipe.phases]
    return dataclasses.replace(recipe, phases=tuple(phases))


def run(recipe: Recipe, **settings) -> tuple[clcalib.QuantizationResult, list[str]]:
    calibration = clcalib.CalibrationSet.from_tensor(images(40))
    bits = clcalib.Bits(2, 2)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = clcalib.quantize(
            tiny(), calibration, recipe=recipe, bits=bits, measured_images=0, precision="float32", **settings
        )
    return result, [str(one.message) for one in caught if issubclass(one.category, NonFiniteLossWarning)]


def check_kept(result: clcalib.QuantizationResult) -> None:
    for unit in result.record.units:
        error = unit.reconstruction_error.calibration
        assert error.after <= error.before, unit.name
    assert all(torch.isfinite(tensor).all() for tensor in result.model.state_dict().values())


CASES = [
    *itertools.product(HOSTS, [float("nan"), float("inf"), -float("inf")], [0.0, 0.5], [False]),
    *itertools.product(HOSTS, [0.0], [0.0, 0.5], [True]),
]
FEW = [
    ("adaround", float("inf"), 0.5, False),
    ("brecq", -float("inf"), 0.0, False),
    ("fast", 0.0, 0.5, True),
    ("qdrop", float("nan"), 0.5, False),
]


@pytest.mark.parametrize(("host", "value", "at", "is_gradient"), CASES if IS_FULL else FEW)
@pytest.mark.parametrize("is_guarded", [True, False] if IS_FULL else [False])
def test_what_breaks_twice_is_named_and_the_unit_keeps_its_best_state(host, value, at, is_gradient, is_guarded) -> None:
    result, told = run(broken(HOSTS[host](), Breaks(value, at, is_gradient)), is_guarded=is_guarded)
    check_kept(result)
    units = [unit.name for unit in result.record.units]
    if host == "brecq":
        units = units[1:]  # it leaves the first one alone
    # The second phase of brecq has one step, which is no later than its beginning.
    phases = 2 if host == "brecq" and at == 0 else 1
    assert len(told) == len(units) * phases
    step = round(at * STEPS)
    for unit, message in zip((unit for unit in units for _ in range(phases)), told, strict=True):
        assert message.startswith(f"unit {unit}: ")
        assert f"step {step} of phase" in message
        assert ("the loss Breaks" in message) is not is_gradient
        assert "nor did it work in float32" in message
        assert message in result.record.warnings
    record("watchdog", host=host, units=len(units), worse_than_nearest=0)


@pytest.mark.parametrize("host", ["adaround", "qdrop", "fast"] if IS_FULL else ["qdrop"])
def test_what_breaks_at_speed_is_done_again_slower(host) -> None:
    recipe = HOSTS[host]()
    recipe = dataclasses.replace(recipe, phases=(dataclasses.replace(recipe.phases[0], rounding_rate=100.0),))
    result, told = run(broken(recipe, BreaksAtSpeed(90.0)))
    check_kept(result)
    assert len(told) == len(result.record.units)
    assert all("the loss BreaksAtSpeed is nan at step " in message for message in told)
    assert all("was done again in float32, at 0.1 of its rates" in message for message in told)


def test_one_step_that_is_not_finite_is_found_where_steps_are_queued(monkeypatch) -> None:
    """On a device only sums are looked at, now and then; the first step is found all the same."""

    @dataclasses.dataclass(frozen=True)
    class Once(Breaks):
        def __call__(self, batch: UnitBatch) -> torch.Tensor:
            factor = (batch.progress - 3 / STEPS).abs() < 1e-9
            return batch.output.detach().sum() * 0 + torch.where(factor, float("inf"), 0.0)

    monkeypatch.setitem(device_step.RECORDERS, "cpu", EmulatedGraphs)
    monkeypatch.setenv("CLCALIB_GRAPHS", "0")
    result, told = run(broken(HOSTS["qdrop"](), Once(0.0, 0.0)))
    check_kept(result)
    assert len(told) == len(result.record.units)
    assert all("the loss Once is inf at step 3 of phase" in message for message in told)


def test_the_last_phase_goes_back_to_what_the_units_found() -> None:
    host = clcalib.recipes.nearest()
    plain, _ = run(host)
    last = clcalib.with_last_phase(host, steps=STEPS)
    phase = last.last_phase
    last = dataclasses.replace(
        last, last_phase=dataclasses.replace(phase, terms=(*phase.terms, Term(Breaks(float("nan"), 0.5))))
    )
    result, told = run(last)
    assert len(told) == 1
    assert told[0].startswith("unit whole network: the loss Breaks is nan at step 3")
    assert torch.equal(result.model(images(5)), plain.model(images(5)))
