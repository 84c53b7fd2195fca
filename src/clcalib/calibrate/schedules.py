"""Learning rates over the steps of a phase."""

from __future__ import annotations

import math


def constant(step: int, steps: int) -> float:
    """1 at every step."""
    return 1.0


def cosine(step: int, steps: int) -> float:
    """(1 + cos(pi step / steps)) / 2: from 1 at the first step to almost 0 at the last."""
    return 0.5 * (1.0 + math.cos(math.pi * step / steps))


def short_run_rate(rate: float, steps: int, paper_steps: int, ceiling: float) -> float:
    """rate * sqrt(paper_steps / steps) for runs shorter than the paper's, at most ``ceiling``.

    Adam moves a parameter by at most about rate * steps, so the papers' rates leave the rounding nearly untouched in
    short runs.  At ``steps >= paper_steps`` this is the paper's rate.

    *Deviation*: the papers only ever use ``paper_steps``.
    """
    return max(rate, min(ceiling, rate * math.sqrt(paper_steps / max(steps, 1))))
