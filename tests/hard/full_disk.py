"""A small file system of its own, where the machine lets us mount one; and a disk that refuses, anywhere."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path


def can_mount() -> bool:
    """Whether a file system in memory can be mounted here: on Linux, as root, outside most containers."""
    if not hasattr(os, "geteuid") or os.geteuid() != 0 or shutil.which("mount") is None:
        return False
    with (
        contextlib.suppress(OSError, subprocess.CalledProcessError),
        mounted(Path("/tmp") / f"probe-{os.getpid()}", 1 << 16),
    ):
        return True
    return False


@contextlib.contextmanager
def mounted(folder: Path, size: int) -> Iterator[Path]:
    """A file system of so many bytes at a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], check=True, capture_output=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True, capture_output=True)
        folder.rmdir()


def leave_free(folder: Path, count: int) -> Path:
    """Fill the file system with one file, but for so many bytes; return the file."""
    ballast = folder / "ballast"
    size = max(0, shutil.disk_usage(folder).free - count)
    with ballast.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, max(1, size))
    return ballast


@contextlib.contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """The folder behind a mount that cannot be written to, also while files in it are open for writing."""
    subprocess.run(["mount", "--bind", folder, folder], check=True, capture_output=True)
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", folder], check=True, capture_output=True)
        yield
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True, capture_output=True)
