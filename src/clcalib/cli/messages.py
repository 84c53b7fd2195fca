"""Where everything is printed; errors and warnings on stderr, short lines with a coloured first word."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from typing import TextIO

from rich.console import Console
from rich.text import Text

from clcalib.errors import ClcalibWarning


def new_console(*, is_stderr: bool = False) -> Console:
    """A console that takes text as it is: names of layers and files may look like markup."""
    return Console(stderr=is_stderr, highlight=False, markup=False)


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
        yield


def _show(console: Console, label: str, style: str, message: str) -> None:
    # Text, because paths and names may look like markup; soft_wrap, so that a path stays in one piece.
    console.print(Text.assemble((f"{label}: ", style), message), soft_wrap=True)
