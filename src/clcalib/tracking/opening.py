"""The trackers of a run of the command line: checked before it begins, named after its output folder, found again."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from clcalib.errors import ClcalibError, TrackingWarning
from clcalib.tracking.event_files import own_folder, require_tensorboard, tensorboard
from clcalib.tracking.measures import Setting
from clcalib.tracking.mlflow_runs import mlflow, require_mlflow
from clcalib.tracking.tracker import Tracker


def require_trackers(tensorboard: Path | None, mlflow: str | None) -> None:
    """Raise where what a tracker needs is not installed.

    Raises:
        MissingPackageError: it is not; the message has the command.
    """
    if tensorboard is not None:
        require_tensorboard()
    if mlflow is not None:
        require_mlflow()


@contextlib.contextmanager
def trackers(
    out: Path, *, tensorboard: Path | None, mlflow: str | None, settings: Mapping[str, Setting], is_resumed: bool
) -> Iterator[tuple[Tracker, ...]]:
    """The trackers of the run in ``out``, open inside the block.

    Args:
        out: its output folder, whose name the run gets.
        tensorboard: the folder of all runs' events, or None.
        mlflow: a folder or an address, or None.
        settings: of the run, by name.
        is_resumed: whether it goes on after an interruption.  A tracker that cannot be opened is then a warning, as it
            must not keep what is finished from being used.

    Raises:
        ClcalibError: a tracker cannot be opened.
    """
    key = str(out.absolute())
    makers: list[Callable[[], Tracker]] = []
    if tensorboard is not None:
        makers.append(lambda: _events(tensorboard, out.name, key, settings, is_resumed))
    if mlflow is not None:
        makers.append(lambda: _run(mlflow, out.name, key, settings, is_resumed))
    with contextlib.ExitStack() as stack:
        found = []
        for make in makers:
            try:
                found.append(stack.enter_context(make()))
            except ClcalibError as error:
                if not is_resumed:
                    raise
                warnings.warn(f"{error}; the run goes on without the tracker", TrackingWarning, stacklevel=3)
        yield tuple(found)


def _events(root: Path, name: str, key: str, settings: Mapping[str, Setting], is_resumed: bool) -> Tracker:
    folder = own_folder(root, name, key, is_resumed=is_resumed)
    return tensorboard(folder, settings=settings, is_resumed=True)


def _run(place: str, name: str, key: str, settings: Mapping[str, Setting], is_resumed: bool) -> Tracker:
    return mlflow(place, name=name, key=key, settings=settings, is_resumed=is_resumed)
