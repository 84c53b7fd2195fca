"""From numbers to places: linear and logarithmic scales, round ticks, and how numbers are written at them."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterable, Sequence

_ROUND = (1.0, 2.0, 2.5, 5.0, 10.0)


@dataclasses.dataclass(frozen=True)
class Scale:
    """Maps numbers from ``low`` to ``high`` to places from ``start`` to ``end``; numbers beyond go to the ends."""

    low: float
    high: float
    start: float
    end: float
    is_log: bool = False

    @classmethod
    def tight(cls, values: Sequence[float], width: float = 0.0) -> Scale:
        """One that ends just beyond the values, and is at least so wide; its places are set later."""
        low, high = min(values), max(values)
        room = max(0.04 * (high - low), (width - (high - low)) / 2, 1e-9)
        return cls(low - room, high + room, 0.0, 1.0)

    @classmethod
    def around(
        cls,
        values: Iterable[float],
        start: float,
        end: float,
        *,
        is_log: bool = False,
        has_zero: bool = False,
        most: float = math.inf,
    ) -> Scale:
        """One that holds all values with some room; round at its ends.

        Args:
            values: finite; those that are not above 0 do not count on a logarithmic scale.
            start: place of the smallest.
            end: place of the largest.
            is_log: whether equal ratios are equal distances.
            has_zero: whether 0 is one of them.
            most: where a linear scale ends at the latest, if no value is beyond.
        """
        known = [value for value in values if math.isfinite(value) and (value > 0 or not is_log)]
        known += [0.0] if has_zero and not is_log else []
        low, high = (min(known), max(known)) if known else (0.0, 1.0)
        if is_log:
            low, high = (low, high) if known else (0.1, 1.0)
            low, high = (low / 1.25, high * 1.25) if low < high else (low / 3, high * 3)
            return cls(low, high, start, end, is_log=True)
        if low == high:
            room = abs(low) * 0.1 or 1.0
            low, high = (low - room if not (has_zero and low == 0) else 0.0), high + room
        step = _step(high - low, 5)
        # A mark should not stand on the very edge, unless that is zero.
        first = 0.0 if has_zero and low >= 0 else math.floor(low / step - 0.3) * step
        last = 0.0 if has_zero and high <= 0 else math.ceil(high / step + 0.1) * step
        return cls(first, max(high, min(last, most)), start, end)

    def __call__(self, value: float) -> float:
        """The place of a number."""
        if self.is_log:
            value = math.log(max(value, self.low) / self.low) / math.log(self.high / self.low)
        else:
            value = (value - self.low) / (self.high - self.low)
        return self.start + min(1.0, max(0.0, value)) * (self.end - self.start)

    def ticks(self, count: int = 5) -> list[float]:
        """Round numbers within the scale, about as many as asked for."""
        if self.is_log:
            return _log_ticks(self.low, self.high, count)
        for more in range(3):  # a round step may have one multiple within, which tells no scale
            step = _step(self.high - self.low, count + more)
            first = math.ceil(self.low / step - 1e-9)
            last = math.floor(self.high / step + 1e-9)
            if last > first:
                break
        return [0.0 if number == 0 else number * step for number in range(first, last + 1)]


def tick_texts(values: Sequence[float]) -> list[str]:
    """How numbers at ticks are written: with three digits, or as many as tell them from what they are.

    Example:
        >>> tick_texts([90.0, 90.25, 90.5]), tick_texts([0, 0.25, 12.5, 1500, 2_000_000, 0.00003])
        (['90', '90.25', '90.5'], ['0', '0.25', '12.5', '1.5k', '2M', '3e-5'])
    """
    gaps = [abs(later - earlier) for earlier, later in itertools.pairwise(values)]
    least = min(gaps, default=0.0)
    digits = next(
        (digits for digits in range(3, 8) if all(abs(float(f"{v:.{digits}g}") - v) <= 0.01 * least for v in values)), 8
    )
    return [_tick_text(value, digits) for value in values]


def _tick_text(value: float, digits: int) -> str:
    size = abs(value)
    if value == 0:
        return "0"
    if size >= 1e15 or size < 1e-3:
        mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
        return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"
    for limit, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if size >= limit:
            return f"{value / limit:.{digits}g}{letter}"
    return f"{value:.{digits}g}"


def is_spread(values: Sequence[float]) -> bool:
    """Whether positive numbers are so far apart that equal ratios are what one wants to see."""
    known = [value for value in values if value > 0]
    return len(known) > 1 and len(known) >= 0.5 * len(values) and max(known) / min(known) > 20


def _step(width: float, count: int) -> float:
    """The round step that divides a width into about ``count``."""
    raw = width / max(1, count)
    if raw <= 0 or not math.isfinite(raw):
        return 1.0
    power: float = 10.0 ** math.floor(math.log10(raw))
    return next(factor * power for factor in _ROUND if factor * power >= raw * (1 - 1e-9))


def _log_ticks(low: float, high: float, count: int) -> list[float]:
    """Powers of ten, thinned where they are many; 1, 2 and 5 of each where they are few."""
    first, last = math.ceil(math.log10(low) - 1e-9), math.floor(math.log10(high) + 1e-9)
    powers = [10.0**power for power in range(first, last + 1)]
    if len(powers) >= 3:
        return powers[:: max(1, math.ceil(len(powers) / count))]
    for mantissas in ((1, 2, 5), (1, 3), (1,)):
        found = [m * 10.0**power for power in range(first - 1, last + 1) for m in mantissas]
        found = [value for value in found if low <= value <= high]
        if len(found) <= count + 1:
            break
    return found or [low, high]
