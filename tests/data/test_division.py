"""A set divided in two keeps every image once, with its label and its place."""

from __future__ import annotations

import pytest
import torch

from clcalib.data.calibration import CalibrationSet, EvaluationSet
from clcalib.data.division import halves, kept_aside
from clcalib.errors import DataError


def numbered(count: int) -> torch.Tensor:
    return torch.arange(count, dtype=torch.float32)[:, None, None, None].expand(count, 1, 2, 2)


def test_the_last_images_are_kept_aside() -> None:
    rest, aside = kept_aside(CalibrationSet.from_tensor(numbered(7), indices=range(10, 17)), 3)
    assert rest.images[:, 0, 0, 0].tolist() == [0, 1, 2, 3]
    assert aside.images[:, 0, 0, 0].tolist() == [4, 5, 6]
    assert aside.provenance.indices == (14, 15, 16)


@pytest.mark.parametrize("count", [0, 7, 8])
def test_something_is_left_on_both_sides(count: int) -> None:
    with pytest.raises(DataError, match="from 1 to 6 of the 7 calibration images"):
        kept_aside(CalibrationSet.from_tensor(numbered(7)), count)


def test_halves_take_turns() -> None:
    deciding, reporting = halves(EvaluationSet.from_tensor(numbered(5), torch.arange(5), indices=range(5)))
    assert deciding.labels is not None
    assert reporting.labels is not None
    assert (deciding.labels.tolist(), reporting.labels.tolist()) == ([0, 2, 4], [1, 3])
    assert deciding.images[:, 0, 0, 0].tolist() == [0, 2, 4]
    assert reporting.provenance.indices == (1, 3)
    assert halves(EvaluationSet.from_tensor(numbered(4)))[1].labels is None


def test_one_image_has_no_halves() -> None:
    with pytest.raises(DataError, match="at least 2 images"):
        halves(EvaluationSet.from_tensor(numbered(1)))
