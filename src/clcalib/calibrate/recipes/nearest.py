"""Nearest rounding: ranges from the data, nothing optimised.  The base line of every comparison.

When to use: as the base line of a comparison, and where a result is wanted in seconds.
"""

from __future__ import annotations

from clcalib.calibrate.recipe import Recipe


def nearest() -> Recipe:
    """Return the recipe that optimises nothing."""
    return Recipe("nearest")
