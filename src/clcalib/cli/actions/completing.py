"""Names for shells that only the modules know that make them, which takes a second or two."""

from __future__ import annotations

from clcalib.errors import MissingPackageError
from clcalib.named_models import LIBRARIES
from clcalib.quant.targets import TARGETS


def target_names() -> list[str]:
    """Those of ``--target``."""
    return list(TARGETS)


def network_names(library: str) -> list[str]:
    """The networks of a library; none where it is not installed."""
    try:
        return list(LIBRARIES[library].names())
    except MissingPackageError:
        return []
