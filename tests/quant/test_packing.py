from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.reference import quantize as reference

from clcalib.errors import ArgumentError
from clcalib.quant.packing import pack, unpack
from clcalib.quant.spec import QuantSpec


@st.composite
def codes(draw: st.DrawFn) -> tuple[list[int], QuantSpec]:
    spec = draw(st.builds(QuantSpec, st.integers(2, 8), is_signed=st.booleans()))
    return draw(st.lists(st.integers(spec.q_min, spec.q_max), max_size=50)), spec


@given(codes())
def test_round_trip_and_the_reference_stream(drawn: tuple[list[int], QuantSpec]) -> None:
    values, spec = drawn
    packed = pack(torch.tensor(values, dtype=torch.int16), spec.bits, spec.is_signed)
    assert packed.dtype == torch.uint8
    assert packed.tolist() == reference.pack(values, spec.bits)
    back = unpack(packed, spec.bits, len(values), spec.is_signed)
    assert back.dtype == torch.int16
    assert back.tolist() == values


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("is_signed", [False, True])
def test_every_code_survives(bits: int, is_signed: bool) -> None:
    spec = QuantSpec(bits, is_signed=is_signed)
    values = torch.arange(spec.q_min, spec.q_max + 1, dtype=torch.int32).repeat(7).view(7, -1)
    packed = pack(values, bits, is_signed)
    assert len(packed) == -(-values.numel() * bits // 8)
    assert torch.equal(unpack(packed, bits, values.numel(), is_signed), values.flatten().to(torch.int16))


def test_layout_is_tight_and_in_row_major_order() -> None:
    rows = torch.tensor([[1, 2], [3, 0]], dtype=torch.uint8)
    assert pack(rows, 2, is_signed=False).tolist() == [0b00_11_10_01]
    assert pack(rows.T, 2, is_signed=False).tolist() == [0b00_10_11_01]
    assert len(pack(torch.zeros(8, dtype=torch.int8), 3, is_signed=True)) == 3


@pytest.mark.parametrize(("value", "is_signed"), [(4, False), (-1, False), (2, True), (-3, True), (300, False)])
def test_codes_out_of_range_are_refused(value: int, is_signed: bool) -> None:
    with pytest.raises(ArgumentError, match="codes: expected values from"):
        pack(torch.tensor([0, value]), 2, is_signed)


def test_other_arguments_that_are_refused() -> None:
    with pytest.raises(ArgumentError, match="codes: expected an integer tensor, got torch.float32"):
        pack(torch.zeros(3), 2, is_signed=False)
    with pytest.raises(ArgumentError, match="bits"):
        pack(torch.zeros(3, dtype=torch.int16), 9, is_signed=False)
    packed = pack(torch.zeros(9, dtype=torch.int16), 3, is_signed=False)
    for wrong in (packed[:-1], packed.to(torch.int16), packed.view(2, 2)):
        with pytest.raises(ArgumentError, match="packed: expected a uint8 tensor of shape"):
            unpack(wrong, 3, 9, is_signed=False)
    with pytest.raises(ArgumentError, match="count: expected a whole number from 0"):
        unpack(packed, 3, -1, is_signed=False)
