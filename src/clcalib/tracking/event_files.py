"""TensorBoard: event files in a folder, written as the run goes on, by the package ``tensorboard`` alone."""

from __future__ import annotations

import importlib.util
import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

from clcalib.errors import ArgumentError, MissingPackageError
from clcalib.files import storage_error, write_atomically
from clcalib.tracking.measures import Setting
from clcalib.tracking.tracker import Status, Tracker, silenced

_FILES, _NOTE = "events.out.tfevents.*", "clcalib-run.txt"
_SECONDS = 5.0  # how long numbers may wait before they can be seen


def tensorboard(
    folder: str | Path, *, settings: Mapping[str, Setting] | None = None, is_resumed: bool = False
) -> Tracker:
    """A tracker that writes event files for ``tensorboard --logdir``.

    Args:
        folder: of this run alone; its name is what TensorBoard calls the run.
        settings: of the run, by name; by default those that its record has.
        is_resumed: whether to go on with the events that are there, of an interrupted run.

    Returns:
        The tracker, to be used in a ``with`` block as the ``observer`` of a run.

    Raises:
        MissingPackageError: TensorBoard is not installed.
        ArgumentError: the folder holds the events of another run, and ``is_resumed`` is false.
        StorageError: the folder cannot be written to.
    """
    require_tensorboard()
    folder = Path(folder)
    if not is_resumed and has_events(folder):
        remedy = "name another folder, or say is_resumed=True to go on with it"
        raise ArgumentError("tensorboard", "a folder without events", str(folder), remedy)
    try:
        return Tracker(f"TensorBoard in {folder}", EventFiles(folder), settings)
    except OSError as error:
        raise storage_error(folder, error) from error


def require_tensorboard() -> None:
    """Raise where it is not installed.

    Raises:
        MissingPackageError: it is not.
    """
    if importlib.util.find_spec("tensorboard") is None:
        raise MissingPackageError('TensorBoard is not installed; pip install "clcalib[tensorboard]"')


def has_events(folder: Path) -> bool:
    """Whether a run has left events in the folder."""
    return any(folder.glob(_FILES))


def own_folder(root: Path, name: str, key: str, *, is_resumed: bool) -> Path:
    """The folder of a run below that of all runs, with a note in it of whose it is.

    Args:
        root: of all.
        name: that is wanted; a number is added where another run has it.
        key: tells the run from others of its name.
        is_resumed: whether it goes on in the newest folder that it has, if there is one.

    Raises:
        StorageError: the folder cannot be written to.
    """
    folder, own, number = root / name, root / name, 1
    is_found = False
    while has_events(folder):
        if _owner(folder) == key:
            own, is_found = folder, True
        number += 1
        folder = root / f"{name}-{number}"
    if is_resumed and is_found:
        return own
    write_atomically(folder / _NOTE, key.encode())
    return folder


def _owner(folder: Path) -> str | None:
    note = folder / _NOTE
    return note.read_text(encoding="utf-8") if note.is_file() else None


class EventFiles:
    """A sink that appends to an event file; each process has one of its own in the folder.

    The file is written in the caller's thread: what a full disk raises is then raised where it can be heard.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._start = time.time()
        self._file: BinaryIO | None = None
        self._flushed = time.monotonic()

    def begin(self, settings: Mapping[str, Setting]) -> Mapping[str, int]:
        """Read what is there, and open a file."""
        from tensorboard.summary.writer.record_writer import RecordWriter

        earlier = last_steps(self._folder)
        self._folder.mkdir(parents=True, exist_ok=True)
        name = f"{_FILES[:-1]}{time.time_ns() // 1000}.{socket.gethostname()}.{os.getpid()}"
        self._file = (self._folder / name).open("ab")
        self._records = RecordWriter(self._file)
        self._write(file_version="brain.Event:2")
        self.flush()
        return earlier

    def number(self, name: str, value: float, step: int) -> None:
        """Append it."""
        self._write(step=step, summary={"value": [{"tag": name, "simple_value": value}]})
        if time.monotonic() - self._flushed > _SECONDS:
            self.flush()

    def flush(self) -> None:
        """Bring what was appended into the file."""
        if self._file is not None:
            self._file.flush()
        self._flushed = time.monotonic()

    def finish(self, settings: Mapping[str, Setting], results: Mapping[str, float], texts: Mapping[str, str]) -> None:
        """The settings and results for the page of hyperparameters, the texts for that of texts."""
        from tensorboard.plugins.hparams import summary_v2 as hyperparameters
        from tensorboard.plugins.text import metadata

        names = [hyperparameters.HParam(name) for name in settings]
        metrics = [hyperparameters.Metric(name) for name in results]
        self._write(summary=hyperparameters.hparams_config_pb(hparams=names, metrics=metrics))
        trial = self._folder.name or "run"
        self._write(summary=hyperparameters.hparams_pb(dict(settings), trial_id=trial, start_time_secs=self._start))
        for name, text in texts.items():
            shown = f"```json\n{text}\n```"
            tensor = {"dtype": "DT_STRING", "string_val": [shown.encode()], "tensor_shape": {"dim": [{"size": 1}]}}
            about = metadata.create_summary_metadata(display_name=name, description="")
            self._write(summary={"value": [{"tag": f"{name}/text_summary", "tensor": tensor, "metadata": about}]})
        self.flush()

    def close(self, status: Status) -> None:
        """Close the file; an event file has no place for how a run ended."""
        if self._file is not None:
            file, self._file = self._file, None
            file.close()

    def _write(self, **values: Any) -> None:
        from tensorboard.compat.proto.event_pb2 import Event

        self._records.write(Event(wall_time=time.time(), **values).SerializeToString())


def last_steps(folder: Path) -> dict[str, int]:
    """The last step of each name in the event files of a folder; none where it has no events."""
    if not has_events(folder):
        return {}
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with silenced():
        events = EventAccumulator(str(folder), size_guidance={"scalars": 0}, purge_orphaned_data=False)
        events.Reload()
        names: list[str] = events.Tags()["scalars"]
        return {name: max(each.step for each in events.Scalars(name)) for name in names}
