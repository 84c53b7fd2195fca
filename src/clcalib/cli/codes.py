"""What an error is to whoever called the command: an exit code and a message."""

from __future__ import annotations

import typer

from clcalib.errors import (
    ClcalibError,
    FolderInUseError,
    OutputExistsError,
    StoppedError,
    StorageError,
    SweepFailedError,
    WorkerLostError,
)

WORKER_LOST = WorkerLostError.code
OK, INTERNAL, BAD_INPUT, OUTPUT_EXISTS, NOT_WRITTEN, IN_USE, RUNS_FAILED, INTERRUPTED = 0, 1, 2, 3, 4, 5, 6, 130
DEBUG_FLAG, DEBUG_VARIABLE = "--debug", "CLCALIB_DEBUG"
NOTHING_WRITTEN = "interrupted; no result was written"

# What a wrong path or missing rights raise; other OSErrors are not the user's input.
_PATH_ERRORS = (FileNotFoundError, PermissionError, NotADirectoryError, IsADirectoryError)

_CODES = {
    OutputExistsError: OUTPUT_EXISTS,
    StorageError: NOT_WRITTEN,
    FolderInUseError: IN_USE,
    SweepFailedError: RUNS_FAILED,
    WorkerLostError: WORKER_LOST,
}


def outcome(error: Exception) -> tuple[int, str]:
    """The exit code, and what to tell."""
    if isinstance(error, StoppedError):
        return error.code, str(error)
    for kind, code in _CODES.items():
        if isinstance(error, kind):
            return code, str(error)
    if isinstance(error, ClcalibError):
        return BAD_INPUT, str(error)
    if isinstance(error, typer.Abort):  # what other versions of typer turn it into
        return INTERRUPTED, NOTHING_WRITTEN
    # The base class of usage errors has no public name in typer; all of its children have this method.
    format_message = getattr(error, "format_message", None)
    if callable(format_message):
        return BAD_INPUT, f"{format_message()}; see --help"
    if isinstance(error, _PATH_ERRORS):
        return BAD_INPUT, f"{error.strerror}: {error.filename}" if error.strerror else str(error)
    return INTERNAL, f"internal failure: {type(error).__name__}: {error}; {DEBUG_FLAG} shows where it happened"
