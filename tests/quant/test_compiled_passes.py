"""Passes that are compiled and must give what PyTorch's give, bit for bit: results do not depend on a compiler."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from tests.quant.grids import quantizers, tensors
from torch import Tensor

from clcalib.calibrate.codes import CodeGrid
from clcalib.fused import calls
from clcalib.quant.condense import BINS, condense
from clcalib.quant.functional import compiled_passes, fake_quantize
from clcalib.quant.modules import ActivationQuantizer
from clcalib.quant.spec import QParams, QuantSpec

pytestmark = pytest.mark.skipif(not calls.is_available(), reason="the passes need a C++ compiler")
SPECIAL = torch.tensor([0.0, -0.0, 0.5, -0.5, 1.5, 2.5, -0.3, 1e-45, -1e-45, 3e38, -3e38, math.inf, -math.inf])


def bits_of(values: Tensor) -> Tensor:
    return values.contiguous().view(torch.int32)


@pytest.fixture
def plainly(monkeypatch: pytest.MonkeyPatch):
    """What a function gives without the compiled passes."""

    def run(function, *arguments):
        with monkeypatch.context() as patch:
            patch.setattr(calls, "is_available", lambda: False)
            return function(*arguments)

    return run


@given(tensors, quantizers())
def test_fake_quantize_is_the_plain_one(x: Tensor, quantizer: tuple[Tensor, Tensor, int, int]) -> None:
    values = torch.cat((x, SPECIAL))
    expected = fake_quantize(values, *quantizer)
    with compiled_passes():
        found = fake_quantize(values, *quantizer)
    assert torch.equal(bits_of(found), bits_of(expected))


def test_fake_quantize_keeps_nan_and_the_order_in_memory() -> None:
    x = torch.randn(2, 5, 3, 4, generator=torch.Generator().manual_seed(0)).to(memory_format=torch.channels_last)
    x[0, 1, 2, 3] = math.nan
    arguments = torch.tensor(0.1), torch.tensor(3.0), 0, 15
    expected = fake_quantize(x, *arguments)
    with compiled_passes():
        found = fake_quantize(x, *arguments)
    assert found.stride() == expected.stride()
    assert torch.equal(found.isnan(), expected.isnan())
    assert torch.equal(found.nan_to_num(7.0), expected.nan_to_num(7.0))


def test_the_compiled_pass_is_taken_inside_the_context_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = []
    original = calls.fake_quantize
    monkeypatch.setattr(calls, "fake_quantize", lambda *given: taken.append(1) or original(*given))
    x, arguments = torch.ones(3), (torch.tensor(0.5), torch.tensor(0.0), 0, 3)
    fake_quantize(x, *arguments)
    assert not taken
    with compiled_passes(), compiled_passes():
        fake_quantize(x, *arguments)
        assert len(taken) == 1
        fake_quantize(x.double(), arguments[0].double(), arguments[1].double(), 0, 3)  # another type
        fake_quantize(x.expand(2, 3), torch.full((2, 1), 0.5), torch.zeros(2, 1), 0, 3)  # two scales
        fake_quantize(x.requires_grad_(), *arguments)  # a gradient
        assert len(taken) == 1
    fake_quantize(x.detach(), *arguments)
    assert len(taken) == 1


def test_a_graph_that_is_traced_meanwhile_has_pytorchs_operators() -> None:
    quantizer = ActivationQuantizer(QParams(torch.tensor(0.5), torch.tensor(1.0)), QuantSpec(bits=4))
    with compiled_passes():
        program = torch.export.export(quantizer, (torch.randn(2, 3),))
        compiled = torch.compile(quantizer, backend="eager", fullgraph=True)
        x = torch.randn(2, 3, generator=torch.Generator().manual_seed(0))
        assert torch.equal(compiled(x), quantizer(x))
    assert "aten.round" in str(program.graph)
    assert torch.equal(program.module()(x), quantizer(x))


@pytest.mark.parametrize("stored", [4, 8])
@pytest.mark.parametrize(("origin", "elements"), [(0.0, 1), (3.0, 7), (0.0, 4097), (-2.0, 2048)])
def test_codes_are_those_of_the_plain_passes(plainly, stored: int, origin: float, elements: int) -> None:
    grid = CodeGrid(scale=0.037, zero_point=origin, offset=0, bits_stored=stored)
    codes = torch.randint(0, 2**stored, (5, elements), generator=torch.Generator().manual_seed(0))
    values = (codes.float() - origin) * torch.tensor(grid.scale)
    packed = grid.encode(values)
    assert packed is not None
    assert torch.equal(packed, plainly(grid.encode, values))
    assert torch.equal(bits_of(grid.decode(packed, elements)), bits_of(plainly(grid.decode, packed, elements)))
    assert torch.equal(bits_of(grid.decode(packed, elements)), bits_of(values))
    assert torch.equal(grid.decode(packed[1:4], elements), values[1:4])


@pytest.mark.parametrize("bad", [-0.0, 0.03, -1.0, 1e9, math.nan, math.inf])
@pytest.mark.parametrize("stored", [4, 8])
def test_values_off_the_grid_are_found_wherever_they_are(plainly, stored: int, bad: float) -> None:
    grid = CodeGrid(scale=0.25, zero_point=0.0, offset=0, bits_stored=stored)
    for place in (0, 2047, 2048, 4999):
        values = torch.zeros(3, 5000)
        values[1, place] = bad
        assert grid.encode(values) is None
        assert plainly(grid.encode, values) is None


@pytest.mark.parametrize("shift", [0.0, -0.4, 2.0])
def test_histograms_are_those_of_the_plain_passes(plainly, shift: float) -> None:
    values = torch.randn(1, 70_001, generator=torch.Generator().manual_seed(0)).add_(shift).relu_()
    values[0, 5], values[0, 6] = 9.0, -0.5
    (middles, counts), (expected_middles, expected) = condense(values), plainly(condense, values)
    assert counts is not None
    assert counts.shape == (1, BINS + 2)
    assert counts.sum() == values.numel()
    assert torch.equal(counts, expected)
    assert torch.equal(middles, expected_middles)
