from __future__ import annotations

import dataclasses

import pytest
import torch

from clcalib.errors import ArgumentError
from clcalib.quant.spec import PerChannel, PerTensor, QParams, QuantSpec


@pytest.mark.parametrize("bits", range(2, 9))
def test_codes_of_every_kind(bits: int) -> None:
    half = 2 ** (bits - 1)
    for is_symmetric in (True, False):
        signed = QuantSpec(bits, is_symmetric, is_signed=True)
        assert (signed.q_min, signed.q_max, signed.levels, signed.middle) == (-half, half - 1, 2 * half, 0)
        unsigned = QuantSpec(bits, is_symmetric)
        assert (unsigned.q_min, unsigned.q_max, unsigned.levels, unsigned.middle) == (0, 2 * half - 1, 2 * half, half)


@pytest.mark.parametrize("bits", [1, 9, 0, -4, True, 4.0, "4", None])
def test_bits_that_are_refused(bits: object) -> None:
    with pytest.raises(ArgumentError, match="bits: expected a whole number from 2 to 8, got"):
        QuantSpec(bits)  # type: ignore[arg-type]


def test_other_arguments_that_are_refused() -> None:
    with pytest.raises(ArgumentError, match="is_symmetric: expected True or False, got 1"):
        QuantSpec(4, 1)  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="is_signed"):
        QuantSpec(4, is_signed="no")  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="granularity: expected PerTensor"):
        QuantSpec(4, granularity=0)  # type: ignore[arg-type]
    for axis in (-1, True, 0.0):
        with pytest.raises(ArgumentError, match="axis"):
            PerChannel(axis)  # type: ignore[arg-type]


def test_a_spec_is_a_value() -> None:
    assert QuantSpec(4, granularity=PerChannel(0)) == QuantSpec(4, granularity=PerChannel())
    assert QuantSpec(4) != QuantSpec(4, granularity=PerChannel())
    assert hash(QuantSpec(4)) == hash(QuantSpec(4, granularity=PerTensor()))
    with pytest.raises(dataclasses.FrozenInstanceError):
        QuantSpec(4).bits = 5  # type: ignore[misc]


def test_parameters_must_match() -> None:
    with pytest.raises(ArgumentError, match="zero_point: expected the shape of scale"):
        QParams(torch.ones(2, 1), torch.zeros(2))
    with pytest.raises(ArgumentError, match="zero_point: expected a float tensor, got torch.int64"):
        QParams(torch.ones(()), torch.zeros((), dtype=torch.int64))
    with pytest.raises(ArgumentError, match="scale: expected a float tensor, got float"):
        QParams(1.0, torch.zeros(()))  # type: ignore[arg-type]
