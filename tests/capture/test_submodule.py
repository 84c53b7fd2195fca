"""Parts of a model: what they get while the whole model runs, and how a network is put in their place."""

from __future__ import annotations

import copy

import pytest
import torch
from tests.capture.detector import Detector, detector
from torch import Tensor, nn

from clcalib.capture.chain import capture
from clcalib.capture.outputs import whole
from clcalib.capture.submodule import InputForm, Part, Unpacked
from clcalib.errors import ArgumentError

IMAGES = torch.randn(11, 3, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("path", ["backbone", "head", "backbone.lateral.1"])
def test_the_captured_part_in_its_place_is_the_model(path: str) -> None:
    model = detector()
    part, rows = Part.of(model, path, IMAGES)
    assert len(rows) == len(IMAGES)
    result = part.put_back(whole(capture(part.module, rows[:2]).module))
    with torch.no_grad():
        for own, expected in zip(result(list(IMAGES)), model(list(IMAGES)), strict=True):
            assert all(torch.equal(own[name], expected[name]) for name in expected)
    assert type(result) is Detector
    assert not any(parameter is other for parameter in result.parameters() for other in model.parameters())


def test_what_a_part_gets_is_what_the_model_gives_it() -> None:
    model = detector()
    part, rows = Part.of(model, "backbone", IMAGES)
    assert torch.equal(rows, IMAGES)
    assert part.module is part.model.backbone
    head, packed = Part.of(model, "head", IMAGES)
    maps = model.backbone(IMAGES)
    assert packed.shape == (11, 4 * 4 * 4 + 4 * 2 * 2)
    ((unpacked,), options) = head.form.unpack(packed)
    assert options == {}
    assert all(torch.equal(own, given) for own, given in zip(unpacked, maps.values(), strict=True))
    assert isinstance(head.module, Unpacked)
    assert capture(head.module, packed[:2]).layers == ("head.classes", "head.boxes"), "the part keeps its name"


def test_the_model_is_left_alone() -> None:
    model = detector().train()
    before = copy.deepcopy(model.state_dict())
    Part.of(model, "backbone", IMAGES)
    assert model.training
    assert not model.backbone._forward_pre_hooks
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_part_that_gets_many_rows_gives_as_many_as_there_are_images() -> None:
    """The refining layer sees four places of every image."""
    part, rows = Part.of(detector(), "refine", IMAGES)
    assert rows.shape == (len(IMAGES), 6)
    assert part.rows(IMAGES[:3]).shape == (3, 6)


class Keywords(nn.Module):
    """Its part takes a tensor by position, one by name, and no mask."""

    def __init__(self) -> None:
        super().__init__()
        self.part = Weighted()

    def forward(self, x: Tensor) -> Tensor:
        return self.part(x, scale=x.mean((2, 3)), mask=None)


class Weighted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)

    def forward(self, x: Tensor, scale: Tensor, mask: Tensor | None) -> Tensor:
        y = self.conv(x) * scale[:, :, None, None]
        return y if mask is None else y * mask


def test_inputs_by_name_and_absent_ones() -> None:
    model = Keywords().eval()
    part, rows = Part.of(model, "part", IMAGES)
    assert part.form.shapes == ((3, 8, 8), (3,), None)
    result = part.put_back(whole(capture(part.module, rows[:2]).module))
    with torch.no_grad():
        assert torch.equal(result(IMAGES), model(IMAGES))


def test_other_shapes_than_those_of_the_capture_are_refused() -> None:
    part, rows = Part.of(detector(), "backbone", IMAGES)
    result = part.put_back(whole(capture(part.module, rows[:2]).module))
    with pytest.raises(
        ArgumentError, match=r"backbone: expected inputs of shape \(3, 8, 8\), got \(3, 12, 8\); let the"
    ):
        result([torch.randn(3, 12, 8)])


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("bakbone", r"submodule: expected the path of a module in Detector, got 'bakbone'; nearest: backbone"),
        ("", "submodule: expected the path of a module"),
        ("unused", "unused, which gets no input"),
        ("head.classes", r"one that always gets the same shapes, \(4, 4, 4\) at first, got \(4, 2, 2\)"),
    ],
)
def test_parts_that_cannot_be_taken_out(path: str, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        Part.of(detector(), path, IMAGES)


def test_images_that_the_model_refuses() -> None:
    with pytest.raises(ArgumentError, match="calibration: expected images that Detector takes, as a tensor or a list"):
        Part.of(detector(), "backbone", torch.randn(2, 5, 8, 8))


def test_inputs_that_are_no_tensors() -> None:
    with pytest.raises(ArgumentError, match="inputs are tensors with the batch first, got x: str"):
        InputForm.of("x", (torch.ones(2, 3), "mode"), {})
    with pytest.raises(ArgumentError, match=r"tensors with the first dimensions \[2, 3\]"):
        InputForm.of("x", (torch.ones(2, 3), torch.ones(3)), {})
    with pytest.raises(ArgumentError, match="no tensor"):
        InputForm.of("x", (), {})


def test_a_mask_beside_the_images_is_refused_since_both_would_become_one_tensor() -> None:
    inputs = (torch.ones(2, 3), torch.ones(2, 3, dtype=torch.bool))
    with pytest.raises(ArgumentError, match="several in float32, got x: tensors of bool, float32; name a module"):
        InputForm.of("x", inputs, {})
    assert InputForm.of("x", (inputs[1],), {}).is_one_tensor
