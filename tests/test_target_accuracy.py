"""Widths rise until an accuracy is kept, worst units first; what cannot be kept is told."""

from __future__ import annotations

import pytest
import torch

import clcalib
from clcalib.errors import ArgumentError, TargetNotMetWarning
from clcalib.report.record import read_record
from tests.tiny import images, tiny

NEAREST = clcalib.recipes.nearest()


def network():
    """Tiny, with answers that differ from image to image, so that quantization costs something."""
    model = tiny()
    with torch.no_grad():
        outputs = model(images(400, seed=2))
        model.fc.bias -= outputs.mean(0)
    return model


def run(max_drop, *, labels=True, **options):
    model = network()
    shown = images(400, seed=3)
    named = model(shown).argmax(1) if labels else None
    deciding, reporting = clcalib.halves(clcalib.EvaluationSet.from_tensor(shown, named))
    calibration = clcalib.CalibrationSet.from_tensor(images(64))
    settings = {"recipe": NEAREST, "bits": clcalib.Bits(2, 2), "measured_images": 0, **options}
    return clcalib.quantize_to_target(
        model, calibration, max_drop=max_drop, deciding=deciding, evaluation=reporting, **settings
    )


def test_widths_rise_until_the_accuracy_is_kept(tmp_path):
    result = run(8.0, rounds=9, overrides={"fc": "float"})
    target = result.record.target
    assert target.is_met
    assert (target.measure, target.images, result.record.evaluation_images) == ("top1", 200, 200)
    assert target.rounds[-1].drop <= 8.0 < target.rounds[0].drop
    assert len(target.rounds) > 1
    bits = [row.mean_weight_bits for row in target.rounds]
    assert bits == sorted(bits)
    first = target.rounds[0]
    assert first.widths == {"conv": "W8A32", "block.conv1": "W2A2", "block.conv2": "W2A2", "fc": "W32A32"}
    assert first.raised == ("block",)  # the stem's weights have 8 bits and the image none, so no other unit can rise
    assert target.rounds[1].widths["block.conv1"] == "W3A3"
    assert {row.reason for row in result.policy if row.layer.startswith("block")} == {"raised for accuracy"}
    assert result.policy[-1].weight is None
    result.save(tmp_path)
    assert read_record(tmp_path / "run.json").target == target


def test_the_best_run_is_given_back_with_a_warning_when_there_are_too_few():
    with pytest.warns(TargetNotMetWarning, match="the best of 1 runs loses"):
        result = run(8.0, labels=False, rounds=1)
    assert not result.record.target.is_met
    assert result.record.target.measure == "agreement"


def test_what_8_bits_everywhere_lose_is_told():
    with pytest.raises(ArgumentError, match=r"max_drop: expected at least .*, which is what 8 bits everywhere lose"):
        run(0.001, overrides={"@linear": "W2A2"}, bits=clcalib.Bits(2, 2), first_last_bits=2, labels=False)


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"max_drop": 0}, "max_drop"),
        ({"max_drop": 1, "rounds": 0}, "rounds"),
        ({"max_drop": 1, "submodule": "block"}, "submodule"),
    ],
)
def test_nonsense_is_told_before_any_work(options, name, monkeypatch):
    monkeypatch.setattr("clcalib.target_accuracy.capture", None)
    with pytest.raises(ArgumentError, match=name):
        run(**options)
