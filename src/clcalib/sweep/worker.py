"""One task in a worker: claim the run, say now and then that it lives, do the job, and put the result down."""

from __future__ import annotations

import os
import socket
import threading
import traceback
from types import TracebackType
from typing import TYPE_CHECKING

from clcalib.durable.stop import stopping_politely
from clcalib.errors import ClcalibError, FolderInUseError, StorageError
from clcalib.sweep.jobs import Task
from clcalib.sweep.opening import open_database

if TYPE_CHECKING:
    from clcalib.sweep.database import Database

_BEATS = 4  # of a heart during a lease
_PAUSE = 2.0  # seconds until a run is tried again whose folder another process still has


def work(task: Task) -> None:
    """Carry out a task; whatever comes of it stands in the database when this returns.

    What a user's input causes is told and not tried again; anything else may have been an accident, and is.
    """
    database = open_database(task.database, is_checked=False)
    if not database.claim(task.key, task.token, _name(), task.lease):
        return  # another has it, or has done it
    with Heart(database, task):
        try:
            with stopping_politely():
                outcome = task.job(task.payload)
        except KeyboardInterrupt:
            database.release(task.key, task.token, is_counted=False)
            return
        except FolderInUseError as error:
            database.release(task.key, task.token, is_counted=False, message=str(error), pause=_PAUSE)
            return
        except StorageError as error:
            database.release(task.key, task.token, is_counted=True, message=str(error))
            return
        except ClcalibError as error:
            database.fail(task.key, task.token, str(error))
            return
        except Exception as error:
            place = traceback.extract_tb(error.__traceback__)[-1]
            told = f"{type(error).__name__}: {error} ({os.path.basename(place.filename)}:{place.lineno})"
            database.release(task.key, task.token, is_counted=True, message=told)
            return
        database.finish(task.key, task.token, _name(), outcome)


class Heart:
    """Renews the lease of a task's run from a thread, as long as the block lasts."""

    def __init__(self, database: Database, task: Task) -> None:
        self._database, self._task = database, task
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)

    def _beat(self) -> None:
        while not self._is_over.wait(self._task.lease / _BEATS):
            try:
                self._database.renew(self._task.key, self._task.token, self._task.lease)
            except ClcalibError:
                continue  # the database is away: the work goes on, and its result is kept when it is back

    def __enter__(self) -> Heart:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._is_over.set()
        self._thread.join()


def _name() -> str:
    return f"{socket.gethostname()}, process {os.getpid()}"
