"""Turns what torch says about a module that cannot be captured into one short error that names the line."""

from __future__ import annotations

import os
import re
import sysconfig
import traceback
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch

from clcalib.errors import CaptureError

_TORCH = str(Path(torch.__file__).parent) + os.sep
_PACKAGE = str(Path(__file__).parent.parent) + os.sep
_STANDARD_LIBRARY = sysconfig.get_paths()["stdlib"] + os.sep
_LONGEST = 200
_REMEDY = "rewrite it with tensor operations only, or name the part of the model that does without it as submodule"


def capture_error(error: BaseException) -> CaptureError:
    """One ``CaptureError``: the line of the model's code, that code, torch's first sentence, and what to do."""
    line = user_line(_frames(error))
    place = f" at {line}" if line else ""
    return CaptureError(f"the model cannot be captured{place}: {first_sentence(error)}; {_REMEDY}")


def capture_errors(errors: Sequence[tuple[str, BaseException]]) -> CaptureError:
    """One ``CaptureError`` for several modules, by name: a line for each, and what to do."""
    lines = []
    for name, error in errors:
        if isinstance(error, CaptureError):  # it says where
            lines.append(f"\n  - {name}: {error}")
            continue
        line = user_line(_frames(error))
        lines.append(f"\n  - {name}" + (f" at {line}" if line else "") + f": {first_sentence(error)}")
    return CaptureError(f"{len(errors)} modules of the model cannot be captured:{''.join(lines)}\n{_REMEDY}")


def user_line(frames: Iterable[traceback.FrameSummary]) -> str:
    """``file:line (code)`` of the innermost frame that is the model's own code; "" if there is none."""
    frames = [frame for frame in frames if not frame.filename.startswith("<")]
    own = [frame for frame in frames if not _is_machinery(frame.filename)]
    layers = [frame for frame in frames if frame.filename.startswith(str(Path(_TORCH, "nn", "modules")))]
    layers = [frame for frame in layers if Path(frame.filename).name != "module.py"]
    if not (own or layers):
        return ""
    frame = (own or layers)[-1]
    return f"{frame.filename}:{frame.lineno}" + (f" ({frame.line})" if frame.line else "")


def first_sentence(error: BaseException) -> str:
    """The first line of an error's message, shortened, without torch's own debugging hints."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[0] if lines else type(error).__name__
    text = re.sub(r"\s*(\(unhinted:.*|For more information, run with .*)$", "", text)
    if text.startswith("Could not guard on data-dependent expression"):
        text = "what this code does depends on the values of the images (data-dependent control flow)"
    return text if len(text) <= _LONGEST else text[: _LONGEST - 3] + "..."


def frames_of(error: BaseException) -> list[traceback.FrameSummary]:
    """The frames of an error's own traceback, outermost first."""
    return list(traceback.extract_tb(error.__traceback__))


def frames_in(text: str) -> list[traceback.FrameSummary]:
    """The frames of a traceback that is given as text."""
    found = re.findall(r'File "([^"]+)", line (\d+), in (.+)\n\s*(.*)', text)
    return [traceback.FrameSummary(name, int(line), function, line=code) for name, line, function, code in found]


def _frames(error: BaseException) -> list[traceback.FrameSummary]:
    """The frames of the first error in the chain of causes that passes through the model's code."""
    current: BaseException | None = error
    while current is not None:
        frames = frames_of(current)
        if any(not _is_machinery(frame.filename) and not frame.filename.startswith("<") for frame in frames):
            # the caller of this package is in the traceback of no error: it starts where the error is caught
            return frames
        current = current.__cause__ or current.__context__
    return frames_of(error)


def _is_machinery(filename: str) -> bool:
    in_library = filename.startswith(_STANDARD_LIBRARY) and "site-packages" not in filename
    return filename.startswith((_TORCH, _PACKAGE)) or in_library
