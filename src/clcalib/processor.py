"""What this processor's integer instructions can do, as far as the system tells."""

from __future__ import annotations

import functools
import platform
from pathlib import Path

_X86 = ("x86_64", "amd64", "i386", "i686")
# Each multiplies unsigned by signed bytes and adds the products in 32 bits.
_WIDE_SUMS = {"avx512_vnni", "avx_vnni", "amx_int8"}


@functools.cache
def description() -> tuple[str, ...]:
    """The lines in which Linux tells of the processors; none where the system does not."""
    try:
        return tuple(Path("/proc/cpuinfo").read_text().splitlines())
    except OSError:
        return ()


def features() -> frozenset[str]:
    """The names of the processor's features; empty where they are not known."""
    lines = description()
    return frozenset(
        next((line.partition(":")[2] for line in lines if line.startswith(("flags", "Features"))), "").split()
    )


def adds_in_16_bits() -> bool:
    """Whether integer kernels here add two products in 16 bits, which may overflow with weights of 8 bits.

    So do x86 processors without VNNI: 2 x 255 x 127 is more than 2^15.  False also where it is not known.
    """
    found = features()
    return platform.machine().lower() in _X86 and bool(found) and not found & _WIDE_SUMS
