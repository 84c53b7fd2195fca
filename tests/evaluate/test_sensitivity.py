"""One unit at a time in a chain is the same as a network in which nothing else is quantized."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from tests.capture.networks import Transformer
from tests.tiny import images, tiny
from torch.nn import functional as F

import clcalib
from clcalib.calibrate.caches import round_alone, round_to_nearest
from clcalib.capture.chain import capture
from clcalib.capture.describe import describe
from clcalib.evaluate.sensitivity import sensitivities, unit_sensitivities
from clcalib.quant.insert import chain_policy, insert_quantizers
from clcalib.quant.ranges import RANGE_RULES

RULE = RANGE_RULES["mse_grid"]


def transformer():
    torch.manual_seed(0)
    return Transformer().eval()


def quantized(chain, policy, shown, ranges):
    found = insert_quantizers(chain, policy, RULE)
    ranges(chain, found, shown, RULE)
    return found.chain


@pytest.mark.parametrize(("build", "size"), [(tiny, 8), (transformer, 16)])
def test_it_is_a_network_with_that_unit_quantized_and_no_other(build, size):
    shown = torch.randn(24, 3, size, size, generator=torch.Generator().manual_seed(1))
    chain = capture(build(), shown[:2])
    policy = chain_policy(chain, clcalib.Bits(2, 3))
    found = sensitivities(chain, quantized(chain, policy, shown, round_alone), shown)
    truth = chain.module(shown).log_softmax(1)
    for row in describe(chain):
        own = {*row.layers, *row.products}
        alone = [
            entry if entry.layer in own else dataclasses.replace(entry, weight=None, input=None, right=None)
            for entry in policy
        ]
        outputs = quantized(chain, alone, shown, round_to_nearest).module(shown).log_softmax(1)
        divergence = F.kl_div(outputs, truth, reduction="batchmean", log_target=True)
        assert found[row.name].divergence == pytest.approx(max(0.0, float(divergence)), rel=1e-3, abs=1e-7)
        assert found[row.name].changed == float((outputs.argmax(1) != truth.argmax(1)).double().mean())
    assert max(each.divergence for each in found.values()) > 1e-4


def test_some_units_only_and_who_is_told():
    chain, shown, told = capture(tiny(), images(2)), images(8), []
    own = quantized(chain, chain_policy(chain, clcalib.Bits(4, 4)), shown, round_alone)
    found = sensitivities(chain, own, shown, units={1}, told=lambda index, name: told.append((index, name)))
    assert told == [(1, "block")]
    assert found == {"block": sensitivities(chain, own, shown)["block"]}
    assert unit_sensitivities(chain, own, shown)["block"] == found["block"].divergence


def test_a_float_chain_changes_nothing():
    chain, shown = capture(tiny(), images(2)), images(8)
    assert all(each.changed == 0 and each.divergence < 1e-9 for each in sensitivities(chain, chain, shown).values())
