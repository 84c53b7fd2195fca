"""The output folder of a run: checked, held for one process, and at any moment something to go on with."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from clcalib.config_sections import RunConfig
from clcalib.config_sources import CONFIG_FILE
from clcalib.durable.lock import LOCK_FILE, folder_lock
from clcalib.durable.manifest import generation_of
from clcalib.durable.state import discard, has_state, newest_manifest
from clcalib.errors import ArgumentError, Interrupted, OutputExistsError, ResumeError
from clcalib.files import write_atomically
from clcalib.pipeline import RECORD_FILE

STATE_FOLDER = "state"
_UNSEEN = (LOCK_FILE,)


def check_output_folder(folder: Path, *, is_emptied: bool) -> None:
    """Check that results can be written to ``folder`` without destroying anything unasked.

    Args:
        folder: which may exist or not.
        is_emptied: whether what is in it may be replaced.

    Raises:
        OutputExistsError: it exists and is not empty.
        ArgumentError: it is a file, or it cannot be made or written to.
    """
    if folder.exists() and not folder.is_dir():
        raise ArgumentError("run.out", "a folder", f"the file {folder}", "name a folder")
    if not is_emptied and has_unfinished(folder):
        raise OutputExistsError(
            f"{folder} holds a run that is not finished; go on with it (--resume {folder}), name another folder, or "
            "say --overwrite to begin anew"
        )
    if folder.is_dir() and not is_emptied and any(path.name not in _UNSEEN for path in folder.iterdir()):
        raise OutputExistsError(f"{folder} exists and is not empty; name another folder, or say --overwrite")
    parent = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise ArgumentError("run.out", "a folder that can be written to", str(folder), f"{parent} is not writable")


def has_unfinished(folder: Path) -> bool:
    """Whether a run stopped in the folder before its result was written."""
    state = folder / STATE_FOLDER
    return state.is_dir() and (has_state(state) or any(has_state(path) for path in state.iterdir() if path.is_dir()))


def is_finished(folder: Path) -> bool:
    """Whether the folder holds the result of a run, and nothing is left to do."""
    return (folder / RECORD_FILE).is_file() and not has_unfinished(folder)


def saves(folder: Path) -> tuple[int, ...]:
    """Of each state in the folder a number that grows with every save."""
    state = folder / STATE_FOLDER
    with contextlib.suppress(OSError):  # it is taken away by the run's end
        places = [state, *sorted(path for path in state.iterdir() if path.is_dir())]
        numbers = ([generation_of(path) for path in place.iterdir()] for place in places)
        return tuple(max((number for number in found if number is not None), default=-1) for found in numbers)
    return ()


@contextlib.contextmanager
def occupied(folder: Path) -> Iterator[None]:
    """Hold the folder; one that was made for this and is empty at the end is removed again.

    Raises:
        FolderInUseError: another process has it.
    """
    is_new = not folder.exists()
    try:
        with folder_lock(folder):
            yield
    finally:
        if is_new:
            with contextlib.suppress(OSError):  # it is not empty
                folder.rmdir()


def start_anew(folder: Path) -> None:
    """Take away what an earlier run saved in the folder, which is held."""
    if has_unfinished(folder):
        discard(folder / STATE_FOLDER)


@contextlib.contextmanager
def kept(folder: Path, config: RunConfig, *, is_resumed: bool) -> Iterator[None]:
    """Around the work of a run: the configuration is there before the state is, and the state goes with the end.

    Raises:
        Interrupted: as KeyboardInterrupt came; says how to go on.
        StorageError: the configuration cannot be written.
    """
    state, path = folder / STATE_FOLDER, folder / CONFIG_FILE
    is_going_on = is_resumed and has_unfinished(folder)
    if not is_going_on:
        start_anew(folder)
        before = path.read_bytes() if path.is_file() else None
        write_atomically(path, (config.model_dump_json(indent=2) + "\n").encode())
    try:
        yield
    except BaseException as error:
        if not is_going_on and not has_unfinished(folder):
            # Nothing has begun: the folder is left as it was found.
            path.unlink() if before is None else write_atomically(path, before)
        if isinstance(error, KeyboardInterrupt):
            raise Interrupted(how_to_go_on(folder)) from None
        raise
    discard(state)


def how_to_go_on(folder: Path) -> str:
    """What to tell of a run that was stopped: what of it is saved, and how to go on."""
    if not has_unfinished(folder):
        return "interrupted; no result was written"
    try:
        names = newest_manifest(folder / STATE_FOLDER).entries
    except ResumeError:  # of several runs, each in a folder of its own
        return f"interrupted; what is finished is saved; go on with: clcalib quantize --resume {folder}"
    units = sum(name.startswith("unit-") and not name.endswith("-part") for name in names)
    steps = ", and the steps of the next one" if any(name.endswith("-part") for name in names) else ""
    counted = f"{units} finished unit{'s' if units != 1 else ''}{steps}"
    return f"interrupted; {counted} saved; go on with: clcalib quantize --resume {folder}"
