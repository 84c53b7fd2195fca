"""Widths rise until an accuracy is kept, worst units first; what cannot be kept is told."""

from __future__ import annotations

import pytest
import torch

import clcalib
from clcalib.errors import ArgumentError, TargetNotMetWarning
from clcalib.report.record import read_record
from tests.capture.networks import Transformer
from tests.quant.test_reparameterize import with_uneven_channels
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


def test_a_part_is_refused():
    with pytest.raises(ArgumentError, match="submodule: expected the whole model where .*, got 'block'"):
        run(8.0, submodule="block")


def transformer():
    torch.manual_seed(0)
    return with_uneven_channels(Transformer())


@pytest.mark.filterwarnings("ignore::clcalib.errors.TargetNotMetWarning")
def test_products_of_activations_rise_with_their_units():
    shown = torch.randn(40, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    calibration, deciding = clcalib.CalibrationSet.from_tensor(shown[:16]), clcalib.EvaluationSet.from_tensor(shown)
    result = clcalib.quantize_to_target(
        transformer(),
        calibration,
        max_drop=30.0,
        deciding=deciding,
        recipe=NEAREST,
        bits=clcalib.Bits(8, 2),
        overrides={"*": "A8", "@product": "A2"},
        rounds=2,
        measured_images=0,
    )
    first, second = result.record.target.rounds
    assert first.widths["blocks.0.matmul1"] == "W32A2"
    raised = [name for name in first.widths if second.widths[name] != first.widths[name]]
    assert raised
    assert all("matmul" in name and second.widths[name] == "W32A3" for name in raised)


def test_units_are_exchanged_within_one_network_where_layer_norms_change():
    """Without quantization no unit changes anything, whatever the layer norms were brought to."""
    images_of = torch.randn(24, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    result = clcalib.quantize_to_target(
        transformer(),
        clcalib.CalibrationSet.from_tensor(images_of),
        max_drop=1.0,
        deciding=clcalib.EvaluationSet.from_tensor(images_of),
        recipe=NEAREST,
        bits=clcalib.Bits(None, None),
        is_layer_norm_reparameterized=True,
        rounds=1,
        measured_images=0,
    )
    assert max(result.record.target.rounds[0].sensitivities.values()) < 1e-9
