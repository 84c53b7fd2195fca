"""Whether what a unit has learned is better than nearest rounding, where possible on images it was not fitted to."""

from __future__ import annotations

from torch import fx

from clcalib.calibrate.probes import unit_error
from clcalib.calibrate.store import RowState
from clcalib.capture.units import Unit
from clcalib.errors import WorseThanNearestWarning
from clcalib.quant.modules import ActivationQuantizer, IntegerWeight

GUARD_IMAGES = 16  # held-out images below which the calibration images decide
TOLERANCE = (
    0.05  # relative; so much more error is no harm, as terms that look behind the unit may trade it for more there
)


def quantizers_of(body: fx.GraphModule) -> dict[str, IntegerWeight | ActivationQuantizer]:
    """The quantizers of a unit, by name."""
    modules = dict(body.named_modules())
    return {name: module for name, module in modules.items() if isinstance(module, IntegerWeight | ActivationQuantizer)}


def worse_than_nearest(
    unit: Unit, body: fx.GraphModule, state: RowState, targets: RowState, nearest: float, images: str
) -> WorseThanNearestWarning | None:
    """The warning for a unit whose error is larger than with nearest rounding; None where it is not.

    Args:
        unit: the float unit.
        body: the quantized one, when it is optimised.
        state: its input from the quantized prefix; the first images are looked at.
        targets: its float outputs.
        nearest: its error with nearest rounding, on the same images.
        images: what to call them.
    """
    error = unit_error(unit, body, state, targets)
    if error <= nearest * (1 + TOLERANCE):
        return None
    return WorseThanNearestWarning(
        f"unit {unit.name}: its error on {images} images is {error:.3g} after the optimisation and {nearest:.3g} with "
        "nearest rounding, which is kept; a smaller rounding_rate or more calibration images may help"
    )
