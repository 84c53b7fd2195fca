"""What is wrong with a search for widths, told before anything is measured; and what it cannot bring."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, get_args

from clcalib.checks import check_arguments, checked_device
from clcalib.errors import ArgumentError, EqualCostWarning
from clcalib.quant.allocation import check_solver
from clcalib.quant.policy import Bits
from clcalib.quant.targets import TARGETS, Side, Target
from clcalib.width_search import Budget


def check_search(budget: object, settings: Mapping[str, Any]) -> None:
    """Raise for what no search can begin with."""
    if not isinstance(budget, Budget):
        raise ArgumentError("budget", "a Budget", type(budget).__name__, 'e.g. clcalib.Budget(size="200KB")')
    others = [(name, settings[name]) for name in ("evaluation", "held_out")]
    check_arguments(settings["calibration"], settings["recipe"], settings["bits"], others)
    check_is_one_network(settings["submodule"])
    checked_device(settings["device"])
    check_solver()


def check_is_one_network(submodule: str | None) -> None:
    """Raise where widths are to be chosen in a part of a model: sensitivities are those of the model's output."""
    if submodule is not None:
        remedy = "leave out the submodule, or the budget"
        raise ArgumentError("submodule", "the whole model where widths are chosen", repr(submodule), remedy)


def check_candidates(target: Target, budget: Budget, pairs: Sequence[Bits]) -> None:
    """Raise where a target lacks a candidate, or one of the widths that are not chosen."""
    for side in get_args(Side):
        candidates, allowed = getattr(budget, side), target.widths(side)
        if missing := [bits for bits in candidates if bits not in allowed]:
            others = [other.name for other in TARGETS.values() if set(candidates) <= set(other.widths(side))]
            raise ArgumentError(
                f"budget.{side}",
                f"widths that target {target.name} has, {_listed(allowed)} bits",
                _listed(candidates),
                f"leave {_listed(missing)} out, or take another target: {', '.join(others)}",
            )
    for pair in pairs:
        target.bits(pair)


def warn_of_equal_cost(target: Target, budget: Budget) -> None:
    """Tell that fewer bit operations save no time on the target's kernels, where these are what is bounded."""
    if budget.cost is not None and target.placement is not None:
        message = (
            f"cost budget: target {target.name} computes codes of all widths in 8 bits, so fewer bit operations make "
            "its file no faster; the widths of activations make it no smaller either, those of weights are what a size "
            "budget counts"
        )
        warnings.warn(message, EqualCostWarning, stacklevel=4)


def _listed(widths: Iterable[int]) -> str:
    return ", ".join(map(str, widths))
