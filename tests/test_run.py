"""The parts of a run that need no network: the output folder, the held-out images, the threads."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from clcalib.data.calibration import CalibrationSet, EvaluationSet
from clcalib.errors import ArgumentError, OutputExistsError
from clcalib.run import check_output_folder, held_out_images, limited_threads


def test_held_out_images_are_never_calibration_images() -> None:
    images = torch.arange(6, dtype=torch.float32)[:, None, None, None].expand(6, 1, 2, 2)
    evaluation = EvaluationSet.from_tensor(images, source="all", indices=range(10, 16))
    calibration = CalibrationSet.from_tensor(images[[0, 3]])
    held_out = held_out_images(evaluation, calibration, 3)
    assert held_out is not None
    assert held_out.images[:, 0, 0, 0].tolist() == [1, 2, 4]
    assert held_out.provenance.indices == (11, 12, 14)
    assert held_out.provenance.source == "all"


def test_there_may_be_no_held_out_images() -> None:
    calibration = CalibrationSet.from_tensor(torch.zeros(2, 1, 2, 2))
    assert held_out_images(None, calibration, 3) is None
    assert held_out_images(EvaluationSet.from_tensor(torch.zeros(4, 1, 2, 2)), calibration, 3) is None
    assert held_out_images(EvaluationSet.from_tensor(torch.ones(4, 1, 2, 2)), calibration, 0) is None


def test_a_folder_with_content_is_refused_and_an_empty_or_new_one_is_not(tmp_path: Path) -> None:
    check_output_folder(tmp_path, is_emptied=False)
    check_output_folder(tmp_path / "new" / "deep", is_emptied=False)
    assert not (tmp_path / "new").exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputExistsError, match="--overwrite"):
        check_output_folder(tmp_path, is_emptied=False)
    check_output_folder(tmp_path, is_emptied=True)
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(ArgumentError, match=r"run\.out"):
            check_output_folder(path, is_emptied=True)


def test_the_number_of_threads_is_put_back_after_a_failure() -> None:
    before = torch.get_num_threads()

    def fail() -> None:
        with limited_threads(before + 1):
            assert torch.get_num_threads() == before + 1
            raise RuntimeError("defect")

    with pytest.raises(RuntimeError, match="defect"):
        fail()
    assert torch.get_num_threads() == before
