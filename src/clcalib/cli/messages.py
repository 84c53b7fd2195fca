"""Where everything is printed; errors and warnings on stderr, short lines with a coloured first word."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from contextvars import ContextVar
from typing import TextIO

from rich.console import Console
from rich.text import Text

from clcalib.errors import ClcalibWarning

# The console of warnings, which is to be that of a live display too: two would write into each other's lines.
_ERRORS: ContextVar[Console | None] = ContextVar("errors", default=None)


def new_console(*, is_stderr: bool = False) -> Console:
    """A console that takes text as it is: names of layers and files may look like markup.

    On stderr, inside of ``shown_warnings``, it is the console of the warnings.
    """
    errors = _ERRORS.get() if is_stderr else None
    return errors or Console(stderr=is_stderr, highlight=False, markup=False)


def show_error(console: Console, message: str) -> None:
    """Print ``error: message``."""
    _show(console, "error", "bold red", message)


def show_warning(console: Console, message: str) -> None:
    """Print ``warning: message``."""
    _show(console, "warning", "yellow", message)


@contextlib.contextmanager
def shown_warnings(console: Console, *, is_debug: bool = False) -> Iterator[None]:
    """Show each different clcalib warning once inside the block; those of other packages only when debugging."""
    seen: set[str] = set()

    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        text = str(message)
        if text not in seen:
            seen.add(text)
            show_warning(console, text if issubclass(category, ClcalibWarning) else f"{filename}:{lineno}: {text}")

    with warnings.catch_warnings():
        warnings.simplefilter("always" if is_debug else "ignore")
        warnings.simplefilter("always", ClcalibWarning)
        warnings.showwarning = show
        before = _ERRORS.set(console)
        try:
            yield
        finally:
            _ERRORS.reset(before)


def _show(console: Console, label: str, style: str, message: str) -> None:
    # Text, because paths and names may look like markup; soft_wrap, so that a path stays in one piece.
    console.print(Text.assemble((f"{label}: ", style), message), soft_wrap=True)
