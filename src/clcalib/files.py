"""Writing a file so that a reader sees the old content or the new, and never half of it."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

_READABLE = 0o666


def write_atomically(path: str | Path, content: bytes) -> None:
    """Write ``content`` to ``path``: a temporary file in the same folder, flushed to the disk, then renamed.

    The rename is atomic because both names lie in one file system.  The missing parent folders are made.

    Raises:
        OSError: the folder cannot be made or written to; the temporary file is removed.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
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
