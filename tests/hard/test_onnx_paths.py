"""Where an ONNX file says that its tensors lie: only plain files in its own folder are opened."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from clcalib.errors import CheckpointError
from clcalib.export.runtimes import read_model
from clcalib.export.runtimes.runtime import RUNTIMES
from tests.hard.figures import record
from tests.qdq_models import QdqBuilder


def model() -> Any:
    make = QdqBuilder((3, 8, 8))
    return onnx.load_model_from_string(make.bytes(make.conv(make.image(), channels=3)))


def external(content: Any, **keys: str) -> Any:
    """Move the first large tensor out; returns it."""
    tensor = max(content.graph.initializer, key=lambda each: len(each.raw_data))
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    del tensor.external_data[:]
    for key, value in keys.items():
        tensor.external_data.add(key=key, value=value)
    return tensor


def write(folder: Path, **keys: str) -> tuple[Path, bytes]:
    """A model in ``folder/model`` whose weights lie where the keys say; returns it and the bytes of the weights."""
    content = model()
    values = max((each.raw_data for each in content.graph.initializer), key=len)
    external(content, **keys)
    place = folder / "model"
    place.mkdir(exist_ok=True)
    (place / "model.onnx").write_bytes(content.SerializeToString())
    (folder / "secret").write_bytes(values)
    return place / "model.onnx", values


def link_to_file(folder: Path) -> None:
    (folder / "model" / "weights").symlink_to(folder / "secret")


def link_to_folder(folder: Path) -> None:
    (folder / "model" / "below").symlink_to(folder)


def link_to_link(folder: Path) -> None:
    (folder / "model" / "one").symlink_to(folder / "secret")
    (folder / "model" / "weights").symlink_to("one")


def link_within(folder: Path) -> None:
    (folder / "model" / "real").write_bytes((folder / "secret").read_bytes())
    (folder / "model" / "weights").symlink_to("real")


def sound(folder: Path) -> None:
    (folder / "model" / "weights").write_bytes((folder / "secret").read_bytes())


def short(folder: Path) -> None:
    (folder / "model" / "weights").write_bytes(b"1234")


def pipe(folder: Path) -> None:
    os.mkfifo(folder / "model" / "weights")


def below(folder: Path) -> None:
    (folder / "model" / "below").mkdir()


def nothing(folder: Path) -> None:
    pass


TRICKS: dict[str, tuple[dict[str, str], Callable[[Path], None]]] = {
    "the folder above": ({"location": "../secret"}, nothing),
    "down and up": ({"location": "below/../../secret"}, below),
    "an absolute path": ({"location": "{folder}/secret"}, nothing),
    "a device": ({"location": "/dev/zero"}, nothing),
    "backslashes": ({"location": "..\\secret"}, nothing),
    "a drive": ({"location": "C:secret"}, nothing),
    "a home": ({"location": "~/secret"}, nothing),
    "a dot": ({"location": "./../secret"}, nothing),
    "an empty name": ({"location": ""}, nothing),
    "two slashes": ({"location": "//secret"}, nothing),
    "a zero byte": ({"location": "weights\0.bin"}, nothing),
    "a link to a file": ({"location": "weights"}, link_to_file),
    "a link to a folder": ({"location": "below/secret"}, link_to_folder),
    "a link to a link": ({"location": "weights"}, link_to_link),
    "a link within the folder": ({"location": "weights"}, link_within),
    "a pipe": ({"location": "weights"}, pipe),
    "a folder": ({"location": "below"}, below),
    "a missing file": ({"location": "weights"}, nothing),
    "a short file": ({"location": "weights"}, short),
    "an offset beyond the end": ({"location": "weights", "offset": "1000000"}, sound),
    "a negative offset": ({"location": "weights", "offset": "-8"}, sound),
    "a long length": ({"location": "weights", "length": "99999999999"}, sound),
    "a number that is none": ({"location": "weights", "length": "1e3"}, sound),
    "an unknown key": ({"location": "weights", "url": "http://example.invalid/secret"}, sound),
}


@pytest.mark.parametrize("trick", TRICKS)
def test_a_trick_with_a_path_is_refused(trick: str, tmp_path: Path) -> None:
    keys, prepare = TRICKS[trick]
    path, _ = write(tmp_path, **{key: value.format(folder=tmp_path) for key, value in keys.items()})
    prepare(tmp_path)
    with pytest.raises(CheckpointError, match=r"model.onnx: tensor "):
        read_model(path)
    record("onnx_paths", trick=trick, refused=True)


def test_two_places_for_one_tensor_are_refused(tmp_path: Path) -> None:
    path, values = write(tmp_path, location="weights")
    (path.parent / "weights").write_bytes(values)
    content = onnx.load_model_from_string(path.read_bytes())
    tensor = next(each for each in content.graph.initializer if each.external_data)
    tensor.external_data.add(key="location", value="../secret")
    path.write_bytes(content.SerializeToString())
    with pytest.raises(CheckpointError, match="says twice"):
        read_model(path)


def test_a_model_behind_a_link_may_have_no_external_tensors(tmp_path: Path) -> None:
    path, values = write(tmp_path, location="weights")
    (path.parent / "weights").write_bytes(values)
    (tmp_path / "link.onnx").symlink_to(path)
    with pytest.raises(CheckpointError, match=r"link.onnx: is a symbolic link and has external tensors"):
        read_model(tmp_path / "link.onnx")


@pytest.mark.parametrize("location", ["weights", "below/weights", "./weights"])
@pytest.mark.parametrize("runtime", RUNTIMES)
def test_external_tensors_in_the_folder_are_read(location: str, runtime: str, tmp_path: Path) -> None:
    pytest.importorskip(runtime)
    path, values = write(tmp_path, location=location, offset="0", length="216")
    (path.parent / location).parent.mkdir(exist_ok=True)
    (path.parent / location).write_bytes(values)
    read = read_model(path)
    assert read.size == len(path.read_bytes()) + len(values)
    images = np.random.default_rng(0).standard_normal((2, 3, 8, 8), np.float32)
    inside = read_model(model().SerializeToString())
    one, two = (next(iter(RUNTIMES[runtime].session(each, 1)(images).values())) for each in (read, inside))
    np.testing.assert_array_equal(one, two)
    assert RUNTIMES[runtime].layers(read)
