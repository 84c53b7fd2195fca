"""Hearing clcalib's warnings: they are collected, and go where they would have gone."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from clcalib.errors import ClcalibWarning


@contextmanager
def listening() -> Iterator[list[warnings.WarningMessage]]:
    """Collect the warnings of clcalib that are shown inside, and pass all on as they are."""
    found: list[warnings.WarningMessage] = []
    show = warnings.showwarning

    def collect(message: Warning | str, category: type[Warning], *rest: Any, **named: Any) -> None:
        if issubclass(category, ClcalibWarning):
            found.append(warnings.WarningMessage(message, category, *rest, **named))
        show(message, category, *rest, **named)

    warnings.showwarning = collect
    try:
        yield found
    finally:
        warnings.showwarning = show
