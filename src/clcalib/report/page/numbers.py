"""Numbers as a page writes them."""

from __future__ import annotations

import math
from collections.abc import Sequence

from clcalib.report.formats import MISSING, percent, short
from clcalib.report.record import RunRecord

MINUS = "\N{MINUS SIGN}"
NARROW = "\N{NARROW NO-BREAK SPACE}"


def size_text(count: int | None) -> str:
    """Bytes with a prefix, or a dash.

    Example:
        >>> size_text(1_530_000).replace(NARROW, " ")
        '1.53 MB'
    """
    if count is None:
        return MISSING
    text = short(count)
    return f"{text}{NARROW}B" if text[-1].isdigit() else f"{text[:-1]}{NARROW}{text[-1]}B"


def points_text(first: float, second: float) -> str:
    """The difference of two fractions in percentage points, with its sign.

    Example:
        >>> points_text(0.921, 0.902).replace(MINUS, "-")
        '-1.90'
    """
    difference = round(100 * (second - first), 2) + 0.0
    return f"{difference:+.2f}".replace("-", MINUS) if difference else "\N{PLUS-MINUS SIGN}0.00"


def number_text(value: float | None, digits: int = 3) -> str:
    """A number with three significant digits, or a dash."""
    if value is None:
        return MISSING
    if value and not 1e-3 <= abs(value) < 1e5:
        mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
        return f"{mantissa}e{int(exponent)}".replace("-", MINUS)
    decimals = max(0, digits - 1 - (math.floor(math.log10(abs(value))) if value else 0))
    return f"{value:.{decimals}f}".replace("-", MINUS)


def share_text(value: float | None) -> str:
    """A fraction in per cent with two digits or more, or a dash."""
    return MISSING if value is None else f"{100 * value:.1f}"


def top1_text(value: float | None) -> str:
    """A fraction in per cent with two decimals, or a dash."""
    return percent(value)


def widths_of(layers: Sequence[str], record: RunRecord) -> str:
    """The widths of some layers: ``W4A4``, or the first two pairs and how many more there are."""
    rows = {row.name: row for row in record.policy}
    pairs = dict.fromkeys(
        f"W{rows[layer].weight_bits or 32}A{rows[layer].input_bits or 32}" for layer in layers if layer in rows
    )
    shown = ", ".join(list(pairs)[:2])
    return (f"{shown} +{len(pairs) - 2}" if len(pairs) > 2 else shown) or MISSING
