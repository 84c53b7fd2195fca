"""Mixed precision: a run whose widths are chosen unit by unit within a budget of bytes or of bit operations.

Widths that are settled stay: those of the first and the last layer, and those that an override names.  Units that share
a weight are one choice; units whose layers read the same tensor get the same width of activations.
"""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import itertools
import time
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

from clcalib.calibrate.caches import RANGE_IMAGES
from clcalib.calibrate.observer import Observer, SilentObserver
from clcalib.calibrate.recipe import Recipe
from clcalib.capture.chain import Chain, capture
from clcalib.capture.graph import value_of
from clcalib.capture.outputs import output_nodes
from clcalib.capture.placing import move
from clcalib.checks import checked_device, checked_grids, range_rule
from clcalib.data.calibration import CalibrationSet
from clcalib.errors import ArgumentError, ClcalibWarning
from clcalib.export.rehearsal import Widths, rehearse
from clcalib.modes import usual_modes
from clcalib.pipeline import QuantizationResult, quantize
from clcalib.quant.kernels import kernels_on
from clcalib.quant.policy import Bits, Overrides
from clcalib.quant.reparameterize import reparameterize_layer_norm
from clcalib.quant.targets import target_of
from clcalib.report.environment import collected_warnings
from clcalib.report.record import BudgetRecord
from clcalib.width_checks import check_candidates, check_search, warn_of_equal_cost
from clcalib.width_plan import laid_under, plan_widths
from clcalib.width_search import Budget, search_widths


@dataclasses.dataclass(frozen=True)
class WidthChoice:
    """Widths within a budget.

    Attributes:
        bits, overrides: what ``quantize`` is to be called with.
        record: what was measured and chosen.
        seconds: that it took.
    """

    bits: Bits
    overrides: Overrides
    record: BudgetRecord
    seconds: float


def quantize_to_budget(
    model: nn.Module,
    calibration: CalibrationSet,
    *,
    budget: Budget,
    recipe: Recipe,
    bits: Bits,
    overrides: Overrides | None = None,
    observer: Observer | None = None,
    **options: Any,
) -> QuantizationResult:
    """Choose each unit's widths within a budget, and quantize with them.

    Args:
        model: as for ``quantize``, with one output (N, classes).
        calibration: as for ``quantize``.
        budget: what the widths may cost, and how they are chosen.
        recipe: as for ``quantize``.
        bits: the width of what is not chosen, by default the activations, and whether ranges are symmetric.
        overrides: as for ``quantize``; a width that a pattern names is not chosen.
        observer: as for ``quantize``.
        options: everything else that ``quantize`` takes, but ``submodule``.

    Returns:
        The result; ``record.budget`` says what was measured and chosen.

    Raises:
        ArgumentError: an argument is out of its range, or not even the smallest widths keep the budget.
        MissingPackageError: SciPy is missing.

    Example:
        >>> import clcalib
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(128, 5)).eval()
        >>> calibration = clcalib.CalibrationSet.from_tensor(torch.randn(64, 3, 8, 8))
        >>> result = quantize_to_budget(
        ...     model, calibration, budget=Budget(size=1500), recipe=clcalib.recipes.nearest(), bits=Bits(8, 8)
        ... )
        >>> result.record.budget.size <= 1500
        True
    """
    with collected_warnings() as messages:
        choice = choose_widths(
            model,
            calibration,
            budget=budget,
            recipe=recipe,
            bits=bits,
            overrides=overrides,
            observer=observer,
            **options,
        )
    settings: dict[str, Any] = {"recipe": recipe, "observer": observer, **options}
    result = quantize(model, calibration, bits=choice.bits, overrides=choice.overrides, **settings)
    stages = {"widths": choice.seconds, **result.record.seconds_per_stage}
    seconds = choice.seconds + result.record.seconds
    told = tuple(dict.fromkeys([*messages, *result.record.warnings]))
    changes = {"budget": choice.record, "seconds": seconds, "seconds_per_stage": stages, "warnings": told}
    return dataclasses.replace(result, record=result.record.model_copy(update=changes))


@usual_modes()
def choose_widths(
    model: nn.Module,
    calibration: CalibrationSet,
    *,
    budget: Budget,
    recipe: Recipe,
    bits: Bits,
    overrides: Overrides | None = None,
    observer: Observer | None = None,
    **options: Any,
) -> WidthChoice:
    """The widths of ``quantize_to_budget``, without the run; it takes the same arguments.

    Raises:
        ArgumentError: as ``quantize_to_budget`` raises it.
        MissingPackageError: SciPy is missing.
    """
    start, observer = time.perf_counter(), observer or SilentObserver()
    given = inspect.signature(quantize).bind(model, calibration, recipe=recipe, bits=bits, **options)
    given.apply_defaults()
    settings = given.arguments
    edges = settings["setting"], overrides, settings["first_last_bits"]
    grids = checked_grids(settings["softmax_grid"], settings["gelu_grid"])
    kernels_on(checked_device(settings["device"]))  # builds them, and says where it cannot, while that is heard
    with _silent():
        check_search(budget, settings)
        first, second = (range_rule(name, settings[name]) for name in ("weight_range", "activation_range"))
        target = target_of(settings["target"])
        observer.stage("widths")
        chain, pairs = _chain(model, calibration, recipe, budget, settings), _pairs(bits, budget)
        if target is not None:
            check_candidates(target, budget, pairs)
        plan = plan_widths(chain, pairs, *edges, grids=grids, target=target)
    images = calibration.images[: max(budget.images, RANGE_IMAGES)].to(settings["device"])
    if target is not None:
        warn_of_equal_cost(target, budget)
    if target is not None and settings["is_rehearsed"]:
        observer.stage("rehearsal")
        rehearse(Widths(chain, _widest(bits, pairs[-1]), *edges, grids), target, images)
    with _silent():
        found = search_widths(chain, plan, budget, images, (first, second), observer)
    own = plan.overrides(found.chosen, with_inputs=bool(budget.activations), with_weights=bool(budget.weights))
    # What a pattern names comes behind and wins; what it leaves open stays as chosen.
    return WidthChoice(_widest(bits, pairs[-1]), laid_under(own, overrides), found.record, time.perf_counter() - start)


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Without warnings that the run tells."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ClcalibWarning)
        yield


def _pairs(bits: Bits, budget: Budget) -> list[Bits]:
    """The candidates, in rising order."""
    both = itertools.product(budget.activations or (bits.activations,), budget.weights or (bits.weights,))
    return [dataclasses.replace(bits, weights=weights, activations=activations) for activations, weights in both]


def _widest(bits: Bits, last: Bits) -> Bits:
    """The widths of a run where some are chosen: float for all is none of them, and would spread to the edge layers."""
    weights, activations = (own or chosen for own, chosen in
                            ((bits.weights, last.weights), (bits.activations, last.activations)))  # fmt: skip
    return dataclasses.replace(bits, weights=weights, activations=activations)


def _chain(
    model: nn.Module,
    calibration: CalibrationSet,
    recipe: Recipe,
    budget: Budget,
    settings: Mapping[str, Any],
) -> Chain:
    """The float chain in the units that have widths of their own."""
    is_per_unit = budget.per == "unit"
    chain = capture(
        model,
        calibration.images[:2],
        unit=recipe.unit if is_per_unit else "layer",
        patterns=settings["unit_patterns"] if is_per_unit else (),
    )
    outputs = output_nodes(chain.module.graph)
    if len(outputs) > 1 or value_of(outputs[0]).ndim != 2:
        got = f"an output of {value_of(outputs[0]).ndim} dimensions" if len(outputs) == 1 else f"{len(outputs)} outputs"
        remedy = 'choose widths by hand: overrides={"pattern": "W4A8"}, --bits PATTERN=WIDTHS'
        raise ArgumentError("model", "an output (N, classes), whose divergence is measured", got, remedy)
    move(chain.module, torch.device(settings["device"]))
    if settings["is_layer_norm_reparameterized"]:
        chain = reparameterize_layer_norm(chain, calibration.images[:RANGE_IMAGES].to(settings["device"]))
    return chain
