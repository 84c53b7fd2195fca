"""Whether what a unit has learned is better than nearest rounding, where possible on images it was not fitted to."""

from __future__ import annotations

from torch import fx

from clcalib.calibrate.layout import Layout
from clcalib.calibrate.probes import unit_error
from clcalib.calibrate.recipe import Recipe
from clcalib.calibrate.store import RowState
from clcalib.capture.units import Unit
from clcalib.errors import WorseThanNearestWarning
from clcalib.objectives.batch import Need
from clcalib.quant.biases import bias_readers
from clcalib.quant.insert import tensor_at
from clcalib.quant.modules import ActivationQuantizer, Bias, IntegerWeight

GUARD_IMAGES = 16  # held-out images below which the calibration images decide
LOOSE = 0.05  # relative, where the error of the unit is not all that counts, or the images are those it was fitted to
_BEHIND = frozenset({Need.FEATURES, Need.LOGITS, Need.FLOAT_GRADIENT})  # what a loss needs that looks behind the unit


def tolerance_of(recipe: Recipe, held_out: int, asked: float | None = None) -> float:
    """By what share of the error with nearest rounding a unit's error may be larger.

    Args:
        recipe: its loss is local if no term looks behind the unit; others may trade error inside for less there.
        held_out: the number of held-out images.
        asked: what the caller wants; None leaves it to the other two: 0 for a local loss on enough held-out images,
            else ``LOOSE``.
    """
    if asked is not None:
        return asked
    needs = frozenset[Need]().union(*(phase.needs for phase in recipe.phases))
    return LOOSE if needs & _BEHIND or held_out < GUARD_IMAGES else 0.0


def quantizers_of(body: fx.GraphModule) -> dict[str, IntegerWeight | ActivationQuantizer | Bias]:
    """What training may change in a unit: its quantizers by name, and by path copies of their layers' biases."""
    modules = dict(body.named_modules())
    quantizers = {n: module for n, module in modules.items() if isinstance(module, IntegerWeight | ActivationQuantizer)}
    biases = {target: tensor_at(body, target) for target in bias_readers(body)}
    # One that is not here has no value: it is with another worker.
    return {**quantizers, **{name: Bias(bias) for name, bias in biases.items() if not bias.is_meta}}


def worse_than_nearest(
    unit: Unit,
    body: fx.GraphModule,
    state: RowState,
    targets: RowState,
    nearest: float,
    *,
    images: str,
    tolerance: float,
    layout: Layout | None = None,
) -> WorseThanNearestWarning | None:
    """The warning for a unit whose error is larger than with nearest rounding; None where it is not.

    Args:
        unit: the float unit.
        body: the quantized one, when it is optimised.
        state: its input from the quantized prefix; the first images are looked at.
        targets: its float outputs.
        nearest: its error with nearest rounding, on the same images.
        images: what to call them.
        tolerance: as a share of ``nearest``, how much larger is no harm.
        layout: how the images are dealt; the error is that of all workers' images, so that all come to one decision.
    """
    error = unit_error(unit, body, state, targets, layout)
    if error <= nearest * (1 + tolerance):
        return None
    return WorseThanNearestWarning(
        f"unit {unit.name}: its error on {images} images is {error:.3g} after the optimisation and {nearest:.3g} with "
        "nearest rounding, which is kept; a smaller rounding_rate or more calibration images may help"
    )
