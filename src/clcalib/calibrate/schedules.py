"""Learning rates over the steps of a phase."""

from __future__ import annotations

import math
from collections.abc import Callable

WARM_UP = 0.05  # share of the steps in which ``warm_up_cosine`` rises


def constant(step: int, steps: int) -> float:
    """1 at every step."""
    return 1.0


def cosine(step: int, steps: int) -> float:
    """(1 + cos(pi step / steps)) / 2: from 1 at the first step to almost 0 at the last."""
    return 0.5 * (1.0 + math.cos(math.pi * step / steps))


def warm_up_cosine(step: int, steps: int) -> float:
    """Linear from near 0 to 1 over the first ``WARM_UP`` of the steps, then as ``cosine`` over the others.

    Source: Loshchilov and Hutter 2017, "SGDR", eq. 5 without restarts; warm-up after Goyal et al. 2017, section 2.2.
    """
    rising = max(1, round(WARM_UP * steps))
    if step < rising:
        return (step + 1) / (rising + 1)
    return cosine(step - rising, steps - rising)


SCHEDULES: dict[str, Callable[[int, int], float]] = {
    "constant": constant,
    "cosine": cosine,
    "warm_up_cosine": warm_up_cosine,
}


def short_run_rate(rate: float, steps: int, paper_steps: int, ceiling: float) -> float:
    """rate * sqrt(paper_steps / steps) for runs shorter than the paper's, at most ``ceiling``.

    Adam moves a parameter by at most about rate * steps, so the papers' rates leave the rounding nearly untouched in
    short runs.  At ``steps >= paper_steps`` this is the paper's rate.

    *Deviation*: the papers only ever use ``paper_steps``.
    """
    return max(rate, min(ceiling, rate * math.sqrt(paper_steps / max(steps, 1))))
