from __future__ import annotations

import pytest
import torch
from tests.tiny import images, tiny

import clcalib
from clcalib.calibrate import precision
from clcalib.calibrate.precision import cache_dtype, convolution_dtype, gain_of_bfloat16
from clcalib.errors import ArgumentError
from clcalib.fused import calls

CPU = torch.device("cpu")


def test_auto_takes_the_faster_type(monkeypatch):
    for gain, dtype in ((1.0, torch.float32), (1.19, torch.float32), (1.2, torch.bfloat16), (2.5, torch.bfloat16)):
        monkeypatch.setattr(precision, "gain_of_bfloat16", lambda device, gain=gain: gain)
        assert convolution_dtype("auto", CPU) == dtype
        assert convolution_dtype("float32", CPU) == torch.float32
        assert convolution_dtype("bfloat16", CPU) == torch.bfloat16


def test_the_gain_is_measured_once_and_touches_nothing():
    state = torch.get_rng_state()
    with torch.no_grad():
        gain = gain_of_bfloat16(CPU)
    assert gain > 0
    assert gain_of_bfloat16(CPU) == gain
    assert torch.equal(torch.get_rng_state(), state)


def test_unknown_names_are_told():
    with pytest.raises(ArgumentError, match="precision: expected one of auto, float32, bfloat16, got 'half'"):
        convolution_dtype("half", CPU)


@pytest.mark.parametrize("name", ["float32", "bfloat16"])
def test_it_is_part_of_the_record(name):
    calibration = clcalib.CalibrationSet.from_tensor(images())
    recipe = clcalib.with_contrastive(clcalib.recipes.qdrop(steps=4), images=4)
    result = clcalib.quantize(tiny(), calibration, recipe=recipe, bits=clcalib.Bits(2, 4), precision=name)
    assert result.record.precision == name
    assert result.record.contrastive["images"] == 4
    assert all(p.dtype == torch.float32 for p in result.model.state_dict().values() if p.is_floating_point())


def test_the_plain_path_gives_the_same_network(monkeypatch):
    calibration = clcalib.CalibrationSet.from_tensor(images())
    recipe = clcalib.with_contrastive(clcalib.recipes.qdrop(steps=30))

    def outputs():
        options = {"recipe": recipe, "bits": clcalib.Bits(3, 4), "precision": "float32"}
        return clcalib.quantize(tiny(), calibration, **options).model(images())

    fast = outputs()
    monkeypatch.setattr(calls, "is_available", lambda: False)
    assert float((fast - outputs()).norm()) <= 0.05 * float(fast.norm())


def test_unknown_cache_types_are_told():
    with pytest.raises(ArgumentError, match="cache_precision: expected one of float32, bfloat16, got 'float16'"):
        cache_dtype("float16")
