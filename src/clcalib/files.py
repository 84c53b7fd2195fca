"""Publishing files: a reader sees the old content or the new, never half of it, and no power cut takes it back.

Every file that the package leaves behind is written here; a test of the architecture allows no other way.
"""

from __future__ import annotations

import errno
import os
import tempfile
from pathlib import Path

from clcalib.errors import StorageError

_READABLE = 0o666
_REMEDIES = {
    errno.ENOSPC: "make room, or name another folder",
    errno.EDQUOT: "make room within the quota, or name another folder",
    errno.EACCES: "name a folder that you may write to",
    errno.EPERM: "name a folder that you may write to",
    errno.EROFS: "the file system is read-only: name a folder on another one",
    errno.EIO: "the disk reports a fault: look after it, and name a folder on another one",
}


def write_atomically(path: str | Path, content: bytes) -> None:
    """Write ``content`` to ``path``: a temporary file in the same folder, flushed to the disk, then renamed.

    The rename is atomic because both names lie in one file system; the folder is flushed too, so that the new name
    survives a power cut.  The missing parent folders are made.

    Raises:
        StorageError: the folder cannot be made or written to, or the disk is full.  The temporary file is removed, and
            what was at ``path`` is still there.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _write(path, content)
        flush_folder(path.parent)
    except OSError as error:
        raise storage_error(path, error) from error


def flush_folder(folder: Path) -> None:
    """Bring the names in a folder to the disk, where the platform lets a folder be opened (Windows does not)."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except PermissionError:
        if os.name == "nt":
            return
        raise
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def storage_error(path: Path, error: OSError) -> StorageError:
    """What to tell where a file could not be written, and what to do."""
    reason = error.strerror or str(error)
    remedy = _REMEDIES.get(error.errno or 0, "see that the folder can be written to")
    return StorageError(error.errno, f"{path} could not be written: {reason}; {remedy}")


def _write(path: Path, content: bytes) -> None:
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        # mkstemp makes the file private; the result has the rights that any newly made file would have.
        os.chmod(temporary, _READABLE & ~_umask())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _umask() -> int:
    # The system tells the mask only in exchange for a new one, so it is put back at once.
    mask = os.umask(0)
    os.umask(mask)
    return mask
