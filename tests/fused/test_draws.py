from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.reference import draws as reference

from clcalib.calibrate.streams import StepStream
from clcalib.errors import ArgumentError
from clcalib.fused import calls
from clcalib.fused.draws import ALL, Draw, keep_mask, threshold_of

WORDS = st.integers(0, 2**32 - 1)


def native_mask(shape: tuple[int, ...], draw: Draw) -> torch.Tensor:
    """The mask that the compiled kernels use: what a mix of ones and zeros keeps."""
    rows = torch.ones(shape).flatten(1), torch.zeros(shape).flatten(1)
    return calls.gather_mix(*rows, torch.arange(shape[0]), rows[0].shape[1], draw, torch.float32).view(shape)


@given(WORDS, WORDS, st.integers(1, 255), st.integers(1, 70))
def test_masks_are_the_reference(key: int, tweak: int, threshold: int, count: int) -> None:
    draw = Draw(key, tweak, threshold)
    expected = torch.from_numpy(reference.keep_mask(count, *draw))
    assert torch.equal(keep_mask((count,), draw), expected)


@pytest.mark.skipif(not calls.is_available(), reason="the compiled kernels cannot be built here")
@pytest.mark.parametrize("shape", [(1, 1), (3, 5, 7), (2, 2047), (3, 4099), (32, 16, 9, 9)])
@pytest.mark.parametrize("threshold", [1, 77, 128, 255])
def test_compiled_masks_are_the_same(shape: tuple[int, ...], threshold: int) -> None:
    draw = Draw(0xDEADBEEF, 0x80000001, threshold)
    assert torch.equal(native_mask(shape, draw), keep_mask(shape, draw))


@pytest.mark.parametrize("probability", [0.1, 0.25, 0.5, 0.9])
def test_masks_have_the_rate_and_are_independent(probability: float) -> None:
    count, random = 400_000, StepStream(0, 1, 2)
    first, second = (keep_mask((count,), random.draw(probability)) for _ in range(2))
    random.advance(1)
    third = keep_mask((count,), random.draw(probability))
    assert set(first.unique().tolist()) == {0.0, 1.0}
    rounded = round(256 * probability) / 256
    deviation = (rounded * (1 - rounded) / count) ** 0.5
    assert float(first.mean()) == pytest.approx(rounded, abs=5 * deviation)
    assert abs(rounded - probability) <= 1 / 512
    a, b, c = ((mask - rounded) / (rounded * (1 - rounded)) ** 0.5 for mask in (first, second, third))
    for lag in range(1, 20):  # within one random word and between words
        assert abs(float((a[lag:] * a[:-lag]).mean())) < 5 / count**0.5
    for other in (b, c):  # the next mask of the step, and the first one of the next step
        assert abs(float((a * other).mean())) < 5 / count**0.5
    lanes = first.view(-1, 8).mean(0)
    assert ((lanes - rounded).abs() < 5 * deviation * 8**0.5).all()


@pytest.mark.parametrize("shape", [(), (7,), (3, 5, 2, 2), (0, 4)])
@pytest.mark.parametrize("probability", [0.0, 1.0, 0.5])
def test_masks_of_any_shape(shape: tuple[int, ...], probability: float) -> None:
    mask = keep_mask(shape, Draw(5, 6, threshold_of(probability)))
    assert mask.shape == shape
    assert mask.dtype == torch.float32
    if probability != 0.5:
        assert (mask == probability).all()


def test_draws_are_fixed_by_seed_unit_phase_and_step() -> None:
    before = torch.get_rng_state()

    def masks(*counters: int, step: int = 3) -> torch.Tensor:
        random = StepStream(*counters)
        random.advance(step)
        return torch.stack([keep_mask((100,), random.draw(0.5)) for _ in range(2)])

    assert torch.equal(masks(0, 1, 2), masks(0, 1, 2))
    for other in (masks(1, 1, 2), masks(0, 2, 2), masks(0, 1, 3), masks(0, 1, 2, step=4)):
        assert not torch.equal(masks(0, 1, 2), other)
    assert not torch.equal(*masks(0, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert StepStream(0, 0, 0).draw(1.0) == ALL
    for probability in (-0.1, 1.1, float("nan")):
        with pytest.raises(ArgumentError, match="probability: expected a number from 0 to 1"):
            threshold_of(probability)
