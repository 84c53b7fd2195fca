"""Batches that wait for one another: the same values as in one pass, in bounded memory."""

from __future__ import annotations

import pytest
import torch
from tests.tiny import images, tiny
from torch import nn

import clcalib
from clcalib.calibrate import lockstep as module
from clcalib.calibrate.caches import find_ranges, round_to_nearest
from clcalib.calibrate.lockstep import Lockstep
from clcalib.calibrate.space import StoreSpace
from clcalib.calibrate.store import as_rows
from clcalib.capture.chain import capture
from clcalib.capture.running import BATCH, BATCH_BYTES, images_at_once
from clcalib.quant.insert import insert_quantizers
from clcalib.quant.modules import ActivationQuantizer
from clcalib.quant.policy import Bits, build_policy
from clcalib.quant.ranges import RANGE_RULES


class Attending(nn.Module):
    """Windows, a class token, products of activations: values whose first axis is not the batch, and views."""

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.randn(1, 1, 12))
        self.embed, self.qkv, self.out = nn.Conv2d(3, 12, 4, stride=4), nn.Linear(12, 36), nn.Linear(12, 5)

    def forward(self, x):
        x = self.embed(x).flatten(2).transpose(1, 2)
        x = torch.cat((self.token.expand(x.shape[0], -1, -1), x), 1)
        q, k, v = self.qkv(x).reshape(x.shape[0], -1, 3, 3, 4).permute(2, 0, 3, 1, 4).unbind(0)
        mixed = (q @ k.transpose(-2, -1)).softmax(-1) @ v
        windows = mixed.reshape(-1, 5, 4) * 2  # (N * heads, tokens, 4)
        return self.out(windows.reshape(-1, 3, 5, 4).transpose(1, 2).flatten(2).mean(1) + x[:, 0])


def quantized(model, count=2):
    torch.manual_seed(0)
    chain = capture(model.eval(), images(count))
    return chain, insert_quantizers(chain, build_policy(chain.layers, Bits(4, 4)), RANGE_RULES["minmax"])


@pytest.mark.parametrize("budget", [None, 1])
@pytest.mark.parametrize("size", [3, 8, 64])
@pytest.mark.parametrize("model", [tiny, Attending])
def test_the_values_are_those_of_one_pass(model, size, budget, monkeypatch):
    monkeypatch.setattr(module, "images_at_once", lambda body: size)
    chain, _ = quantized(model())
    many = images(20)
    body = chain.subgraph((chain.input_name,), (chain.output_name,))
    with StoreSpace(budget) as space:
        lockstep = Lockstep(body, (as_rows(many),), 17, space)
        expected = body(many[:17])[0]
        for node in lockstep.nodes[1:-1]:
            if node.users and node.op == "call_function":
                lockstep.advance(node)
        seen = []
        lockstep.run_through(lambda start, outputs: seen.append((start, outputs[0])))
    assert [start for start, _ in seen] == list(range(0, 17, size))
    torch.testing.assert_close(torch.cat([part for _, part in seen]), expected)


@pytest.mark.parametrize("rule", RANGE_RULES.values(), ids=RANGE_RULES)
@pytest.mark.parametrize("size", [5, 64])
def test_ranges_are_those_of_the_whole_tensors(rule, size, monkeypatch):
    """Also where a tensor has so many values that it is seen as a histogram."""
    monkeypatch.setattr(module, "images_at_once", lambda body: size)
    _, chained = quantized(tiny())
    many = images(150)
    body = chained.chain.body(0)
    ranges = find_ranges(body, (as_rows(many),), rule, StoreSpace())
    arrived = []
    for name, quantizer in ranges.quantizers.items():
        body.set_submodule(name, quantizer)
        body.get_submodule(name).register_forward_pre_hook(lambda _, inputs: arrived.append(inputs[0]))
    with torch.no_grad():
        body(many)
    assert len(arrived) == len(ranges.quantizers) > 0
    for tensor, quantizer in zip(arrived, ranges.quantizers.values(), strict=True):
        expected = rule(tensor, quantizer.spec)
        torch.testing.assert_close(quantizer.scale, expected.scale, rtol=1e-6, atol=0)
        torch.testing.assert_close(quantizer.zero_point, expected.zero_point)


def test_the_budget_holds_what_is_put_aside(monkeypatch):
    most = []
    allocate = StoreSpace.allocate

    def watched(self, *arguments, **options):
        block = allocate(self, *arguments, **options)
        most.append((self.used, options.get("is_passing", False)))
        return block

    monkeypatch.setattr(StoreSpace, "allocate", watched)
    chain, chained = quantized(tiny())
    with StoreSpace(100_000) as space:
        round_to_nearest(chain, chained, images(60), RANGE_RULES["minmax"], space)
        assert (space.used <= 100_000, space.most_used <= 100_000) == (True, True)
    assert any(is_passing for _, is_passing in most)
    assert max(used for used, _ in most) <= 100_000
    modules = [chained.chain.module.get_submodule(name) for name in chained.activations.values()]
    assert all(isinstance(each, ActivationQuantizer) for each in modules)


def test_large_images_go_through_in_smaller_batches():
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.LazyLinear(2))
    model(torch.zeros(1, 3, 96, 96))
    body = capture(model.eval(), torch.randn(2, 3, 96, 96)).body(0)
    assert images_at_once(body) == min(BATCH, BATCH_BYTES // (8 * 96 * 96 * 4))
    assert images_at_once(nn.ReLU()) == BATCH


def test_error_feedback_in_batches_is_that_of_one_pass(monkeypatch):
    calibration = clcalib.CalibrationSet.from_tensor(images(40))
    codes = []
    for size in (64, 32):
        monkeypatch.setattr(module, "images_at_once", lambda body, size=size: size)
        recipe, bits = clcalib.recipes.gptq(), Bits(2, 4)
        result = clcalib.quantize(tiny(), calibration, recipe=recipe, bits=bits, measured_images=0)
        codes.append([value for name, value in result.model.state_dict().items() if name.endswith("codes")])
    differing = sum(int((a != b).sum()) for a, b in zip(*codes, strict=True))
    assert differing <= 0.01 * sum(value.numel() for value in codes[0])
