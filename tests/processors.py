"""Which codes are exact on the processor that the tests run on."""

from __future__ import annotations

from clcalib.processor import adds_in_16_bits
from clcalib.quant.targets import TARGETS


def here(target: str) -> str:
    """The target, or, where its sums may overflow on this processor, the one of the same runtime whose cannot."""
    if not adds_in_16_bits():
        return target
    return TARGETS[target].exact_without_vnni or target


def largest_width() -> int:
    """Of signed weights, so that no kernel's sum overflows on this processor."""
    return 7 if adds_in_16_bits() else 8
