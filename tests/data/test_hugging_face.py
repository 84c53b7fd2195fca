"""Data sets of the package ``datasets``; only those on this machine."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from clcalib.data import Transform, load_calibration, load_evaluation
from clcalib.data.hugging_face import is_saved_dataset
from clcalib.errors import DataError, MissingPackageError

TRANSFORM = Transform(crop=4, mean=(0.0, 0.0, 0.0), standard_deviation=(1.0, 1.0, 1.0))


def test_without_the_package_the_command_that_brings_it_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    for name in ("state.json", "dataset_info.json"):
        (tmp_path / name).write_text("{}")
    assert is_saved_dataset(tmp_path)
    for source in (tmp_path, "hf:cifar10"):
        with pytest.raises(MissingPackageError, match=r"pip install 'clcalib\[datasets\]'"):
            load_calibration(source, transform=TRANSFORM)


@pytest.fixture
def datasets(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    return pytest.importorskip("datasets", reason="the package datasets is not installed")


@pytest.fixture
def make(datasets: Any) -> Callable[[int], Any]:
    def make(count: int) -> Any:
        images = [Image.fromarray(np.full((6, 5, 3), number, np.uint8)) for number in range(count)]
        kinds = datasets.Features({"img": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b", "c"])})
        return datasets.Dataset.from_dict({"img": images, "label": [n % 3 for n in range(count)]}, features=kinds)

    return make


def test_a_saved_data_set_is_read_and_its_parts_are_chosen(datasets: Any, make: Any, tmp_path: Path) -> None:
    make(6).save_to_disk(tmp_path / "one")
    found = load_evaluation(tmp_path / "one", transform=TRANSFORM)
    assert (found.images[:, 0, 0, 0] * 255).round().tolist() == [0, 1, 2, 3, 4, 5]
    assert found.labels is not None
    assert found.labels.tolist() == [0, 1, 2, 0, 1, 2]
    assert found.class_names == ("a", "b", "c")
    datasets.DatasetDict({"train": make(6), "validation": make(3)}).save_to_disk(tmp_path / "two")
    assert len(load_calibration(tmp_path / "two", transform=TRANSFORM)) == 6
    assert len(load_evaluation(tmp_path / "two", transform=TRANSFORM)) == 3
    assert load_calibration(tmp_path / "two", transform=TRANSFORM).provenance.source == "two@train"


def test_what_the_loader_of_a_hub_opens_is_read(make: Any, tmp_path: Path) -> None:
    """``hf:`` with the files of a data set on this machine goes the way of one that was downloaded."""
    (tmp_path / "files").mkdir()
    make(6).to_parquet(tmp_path / "files" / "train-00000-of-00001.parquet")
    source = f"hf:{tmp_path / 'files'}"
    found = load_calibration(source, transform=TRANSFORM)
    assert (len(found), found.provenance.source) == (6, "files@train")
    labelled = load_evaluation(f"{source}@train[:50%]", transform=TRANSFORM)
    assert labelled.labels is not None
    assert (labelled.labels.tolist(), labelled.class_names) == ([0, 1, 2], ("a", "b", "c"))
    with pytest.raises(DataError, match="a part called test or validation or valid or val, got train"):
        load_evaluation(source, transform=TRANSFORM)


def test_what_cannot_be_read_is_one_error(datasets: Any, make: Any, tmp_path: Path) -> None:
    make(6).save_to_disk(tmp_path / "one")
    (arrow,) = (tmp_path / "one").glob("*.arrow")
    arrow.write_bytes(arrow.read_bytes()[:200])
    with pytest.raises(DataError, match="a data set that can be opened") as caught:
        load_evaluation(tmp_path / "one", transform=TRANSFORM)
    assert str(tmp_path / "one") in str(caught.value)
    datasets.Dataset.from_dict({"text": ["a", "b"]}).save_to_disk(tmp_path / "text")
    with pytest.raises(DataError, match="a column of images, got columns text"):
        load_evaluation(tmp_path / "text", transform=TRANSFORM)


def test_a_hub_that_cannot_be_reached_is_one_error(datasets: Any) -> None:
    with pytest.raises(DataError, match=r"got hf:nobody/nothing \(.*save_to_disk from another machine"):
        load_evaluation("hf:nobody/nothing", transform=TRANSFORM)


def test_secret_labels_are_none(datasets: Any, tmp_path: Path) -> None:
    images = [Image.fromarray(np.zeros((6, 5, 3), np.uint8))] * 2
    kinds = datasets.Features({"img": datasets.Image(), "label": datasets.Value("int64")})
    table = datasets.Dataset.from_dict({"img": images, "label": [-1, -1]}, features=kinds)
    table.save_to_disk(tmp_path / "secret")
    found = load_evaluation(tmp_path / "secret", transform=TRANSFORM)
    assert found.labels is None
    assert torch.equal(found.images, torch.zeros(2, 3, 4, 4))
