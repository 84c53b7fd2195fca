"""One process in a folder at a time.  The lock is the kernel's: it goes with the process, however that ends."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

from clcalib.errors import FolderInUseError
from clcalib.files import storage_error

LOCK_FILE = ".lock"
_LOOKS, _PAUSE = 10, 0.05  # for the name of the holder


@contextlib.contextmanager
def folder_lock(folder: Path) -> Iterator[None]:
    """Hold a folder, which is made where it is missing, for this process.

    The file ``.lock`` says who holds it, and is removed at the end; one that a killed process left holds nothing.  On
    a network file system the lock is as good as that system's ``flock``.

    Raises:
        FolderInUseError: another process holds it, or this one already does; told at once, with its number and since
            when.
        StorageError: the folder cannot be made or written to.
    """
    path = folder / LOCK_FILE
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = _open_current(path)
    except OSError as error:
        raise storage_error(path, error) from error
    try:
        if handle is None:
            raise FolderInUseError(f"{folder} is in use by {_holder(path)}; wait for it, or name another folder")
        _write_holder(handle)
        yield
    finally:
        if handle is not None:
            # Before it is given back: who opens the file from now on makes a new one.  Windows removes no open file.
            with contextlib.suppress(OSError):
                path.unlink()
            os.close(handle)


def _open_current(path: Path) -> int | None:
    """The locked file that has the name now, or None where another process has it.

    Between opening and locking, the holder may end and remove the file: then the lock is on a file without a name, and
    is worth nothing.
    """
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            if not _lock(handle):
                os.close(handle)
                return None
            if os.path.samestat(os.fstat(handle), os.stat(path)):
                return handle
        except FileNotFoundError:
            pass
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)


def _lock(handle: int) -> bool:
    """Whether it could be had, without waiting."""
    try:
        import fcntl
    except ImportError:
        return _lock_on_windows(handle)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _lock_on_windows(handle: int) -> bool:
    import msvcrt

    try:
        # A byte far behind the content, which others may then read.
        os.lseek(handle, 1 << 20, os.SEEK_SET)
        msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
    except OSError:
        return False
    return True


def _write_holder(handle: int) -> None:
    holder = {"process": os.getpid(), "host": socket.gethostname(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
    os.ftruncate(handle, 0)
    os.write(handle, json.dumps(holder).encode())


def _holder(path: Path) -> str:
    """Who holds the lock, as far as the file says; who has it since this moment may not have written it yet."""
    for _ in range(_LOOKS):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError, RecursionError):
            found = json.loads(path.read_bytes()[:4096])
            return f"process {found['process']} on {found['host']} since {found['since']}"
        time.sleep(_PAUSE)
    return "another process"
