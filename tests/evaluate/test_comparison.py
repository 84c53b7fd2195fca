"""Worse than nearest rounding means worse by more than chance; a unit's sensitivity is that of this unit alone."""

from __future__ import annotations

import pytest
import torch
from tests.tiny import images, tiny
from torch.nn import functional as F

import clcalib
from clcalib.evaluate.comparison import compare
from clcalib.evaluate.sensitivity import unit_sensitivities


def outputs(right: list[int]) -> torch.Tensor:
    """Two classes; class 0 is named where ``right`` is 1."""
    return F.one_hot(1 - torch.tensor(right), 2).float()


@pytest.mark.parametrize("labels", [torch.zeros(20, dtype=torch.int64), None])
@pytest.mark.parametrize(("lost", "won", "is_worse"), [(10, 0, True), (10, 4, False), (3, 0, False), (0, 9, False)])
def test_only_images_on_which_both_differ_count(labels, lost, won, is_worse):
    nearest = outputs([1] * lost + [0] * won + [1] * (20 - lost - won))
    own = outputs([0] * lost + [1] * won + [1] * (20 - lost - won))
    found = compare(outputs([1] * 20), nearest, own, labels)
    assert (found.lost, found.won, found.is_worse) == (lost, won, is_worse)
    assert found.agreement == pytest.approx(1 - lost / 20)
    assert found.nearest_agreement == pytest.approx(1 - won / 20)
    assert found.quantized_top1 == (None if labels is None else found.agreement)


def test_a_sensitivity_is_the_divergence_with_one_unit_quantized():
    calibration = clcalib.CalibrationSet.from_tensor(images())
    overrides = {"conv": "W8", "block.*": "W2A2", "fc": "float"}
    nearest = clcalib.recipes.nearest()
    result = clcalib.quantize(tiny(), calibration, recipe=nearest, bits=clcalib.Bits(4, 8), overrides=overrides)
    chain = clcalib.capture(tiny(), images(2))
    found = unit_sensitivities(chain, result.quantized.chain, images())
    assert max(found, key=lambda name: found[name]) == "block"

    state = chain.prefix(1)(images())
    unit = chain.units[1]  # its names in the float graph: what its layers read is quantized, what it makes is not
    body = result.quantized.chain.subgraph(unit.inputs, unit.outputs)
    logits = chain.suffix(1)(*body(*state))[0].detach()
    floats = chain.module(images()).detach()
    p = floats.softmax(1)
    by_hand = (p * (p.log() - logits.softmax(1).log())).sum(1).mean()
    assert found["block"] == pytest.approx(float(by_hand), rel=1e-3)
