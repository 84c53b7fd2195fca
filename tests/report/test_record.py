"""The run record survives the disk, refuses what is not finite, and never leaves half a file."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from clcalib.errors import CheckpointError, NumericalError
from clcalib.files import write_atomically
from clcalib.report.record import (
    BeforeAfter,
    OnImages,
    RunRecord,
    SignalToNoise,
    UnitRecord,
    read_record,
    write_record,
)


def unit_record(name: str = "layer1.0") -> UnitRecord:
    return UnitRecord(
        name=name,
        kind="block",
        reconstruction_error=OnImages(
            calibration=BeforeAfter(before=0.5, after=0.25), held_out=BeforeAfter(before=0.5, after=0.375)
        ),
        mutual_information_bound=OnImages(calibration=BeforeAfter(before=2.0, after=3.5)),
        sqnr_db=SignalToNoise(calibration=12.5),
        layers=("layer1.0.conv1", "layer1.0.conv2"),
    )


def run_record(**changes: Any) -> RunRecord:
    values: dict[str, Any] = {
        "float_top1": 0.925,
        "nearest_top1": 0.1,
        "quantized_top1": 0.75,
        "agreement": 0.8,
        "weight_bits": 2,
        "activation_bits": 4,
        "setting": "qdrop",
        "recipe": "qdrop+contrastive",
        "contrastive": {"weight": 1.0, "loss": "info_nce"},
        "seed": 3,
        "steps_per_unit": 500,
        "seconds": 12.25,
        "seconds_per_stage": {"capture": 1.5, "reconstruction": 10.75},
        "peak_memory_bytes": 123_456_789,
        "units": (unit_record(),),
        "calibration_images": 1024,
        "evaluation_images": 2000,
        "device": "cpu",
        "threads": 2,
        "versions": {"torch": "2.11"},
        "model_digest": "ab",
        "calibration_digest": "cd",
        "warnings": ("few images",),
    }
    return RunRecord(**{**values, **changes})


def test_a_record_survives_the_disk(tmp_path: Path) -> None:
    record = run_record()
    write_record(record, tmp_path / "deep" / "run.json")
    assert read_record(tmp_path / "deep" / "run.json") == record


def test_the_file_says_its_version_and_holds_nulls(tmp_path: Path) -> None:
    write_record(run_record(contrastive=None, evaluation_digest=None), tmp_path / "run.json")
    values = json.loads((tmp_path / "run.json").read_text())
    assert values["schema_version"] == 1
    assert values["contrastive"] is None
    assert values["units"][0]["reconstruction_error"]["held_out"] == {"before": 0.5, "after": 0.375}


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_a_non_finite_number_is_refused_by_name(number: float) -> None:
    with pytest.raises(NumericalError, match=r"float_top1"):
        run_record(float_top1=number)
    with pytest.raises(NumericalError, match=r"seconds_per_stage\.capture"):
        run_record(seconds_per_stage={"capture": number})
    with pytest.raises(NumericalError, match=r"contrastive\.weight"):
        run_record(contrastive={"weight": number})
    with pytest.raises(NumericalError, match=r"BeforeAfter\.after"):
        BeforeAfter(before=1.0, after=number)


def test_writing_refuses_what_slipped_past_validation_and_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    write_record(run_record(), path)
    before = path.read_bytes()
    broken = run_record().model_copy(update={"seconds": math.nan})
    with pytest.raises(NumericalError, match=r"RunRecord\.seconds"):
        write_record(broken, path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["run.json"]


def test_reading_refuses_nan(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    write_record(run_record(), path)
    path.write_text(path.read_text().replace("12.25", "NaN"))
    with pytest.raises(NumericalError, match="seconds"):
        read_record(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not a JSON file"),
        ("[]", "the record"),
        ('{"schema_version": 2}', "schema_version"),
        ('{"colour": 1}', "weight_bits"),
    ],
)
def test_a_file_that_is_no_record_is_one_error(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "run.json"
    path.write_text(content)
    with pytest.raises(CheckpointError, match=message):
        read_record(path)


def test_a_record_is_frozen_and_knows_its_fields() -> None:
    record = run_record()
    with pytest.raises(ValidationError, match="frozen"):
        record.seed = 1  # type: ignore[misc]
    with pytest.raises(ValidationError, match="colour"):
        run_record(colour=1)
    with pytest.raises(ValidationError, match="quantized_top1"):
        run_record(quantized_top1=75.0)


def test_writing_replaces_the_file_and_leaves_no_other(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    write_atomically(path, b"old")
    write_atomically(path, b"new")
    assert path.read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["a.bin"]
    mask = os.umask(0)
    os.umask(mask)
    assert path.stat().st_mode & 0o777 == 0o666 & ~mask


def test_a_failed_write_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.bin"
    write_atomically(path, b"old")

    def fail(source: object, target: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("clcalib.files.os.replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a.bin"]
