from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.quant.grids import ALL_KINDS, represent, specs, tensors, total_error
from tests.reference import ranges as reference
from torch import Tensor

from clcalib.errors import ArgumentError, NumericalError
from clcalib.quant.condense import BINS, EXACT_VALUES, condense
from clcalib.quant.ranges import (
    RANGE_RULES,
    SMALLEST_SCALE,
    MinMax,
    MseGrid,
    Percentile,
    RangeRule,
    is_constant,
)
from clcalib.quant.spec import PerChannel, QParams, QuantSpec

RULES = sorted(RANGE_RULES)
rules = st.sampled_from(RULES).map(RANGE_RULES.__getitem__)


def test_the_table_is_complete() -> None:
    assert dict(RANGE_RULES) == {"minmax": MinMax(), "percentile": Percentile(99.9), "mse_grid": MseGrid(2.4, 100)}


@given(tensors, specs, rules)
def test_parameters_are_valid_for_any_tensor(tensor: Tensor, spec: QuantSpec, rule: RangeRule) -> None:
    found = rule(tensor, spec)
    assert found.scale.dtype == found.zero_point.dtype == torch.float32
    assert found.scale.shape == found.zero_point.shape == ()
    assert SMALLEST_SCALE <= found.scale.item() < torch.inf
    assert found.zero_point.item() in range(spec.q_min, spec.q_max + 1)
    assert not spec.is_symmetric or found.zero_point.item() == spec.middle
    assert torch.isfinite(represent(tensor, found, spec)).all()


@given(tensors, specs)
def test_minmax_clips_nothing(tensor: Tensor, spec: QuantSpec) -> None:
    found = MinMax()(tensor, spec)
    assert ((tensor - represent(tensor, found, spec)).abs() <= found.scale * 0.5001).all()


@given(tensors, st.integers(2, 8), st.booleans(), rules)
def test_values_of_one_sign_waste_no_code(tensor: Tensor, bits: int, is_signed: bool, rule: RangeRule) -> None:
    spec = QuantSpec(bits, is_signed=is_signed)
    assert rule(tensor.abs(), spec).zero_point.item() == spec.q_min
    negative = -tensor.abs() - 0.001
    assert rule(negative, spec).zero_point.item() == spec.q_max


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize(("is_symmetric", "is_signed"), ALL_KINDS)
@pytest.mark.parametrize("bits", [2, 8])
def test_a_constant_is_exact(name: str, is_symmetric: bool, is_signed: bool, bits: int) -> None:
    spec = QuantSpec(bits, is_symmetric, is_signed, PerChannel())
    constants = torch.tensor([0.0, 0.3, -0.3, 7e8, -1e-20, 1.2e-38])
    tensor = torch.cat([constants[:, None].expand(6, 5), torch.randn(1, 5)])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = RANGE_RULES[name](tensor, spec)
    assert torch.equal(represent(tensor, found, spec)[:6], tensor[:6])
    assert found.scale[0].item() == 1
    assert is_constant(tensor, spec).tolist() == [True] * 6 + [False]
    assert is_constant(tensor, QuantSpec(bits)).tolist() == [False]


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("size", [1e-37, 1e-20, 1e20, 1e37])
def test_extreme_magnitudes(name: str, size: float) -> None:
    tensor = torch.linspace(-1, 1, 101) * size
    for is_symmetric, is_signed in ALL_KINDS:
        spec = QuantSpec(4, is_symmetric, is_signed)
        found = RANGE_RULES[name](tensor, spec)
        relative = ((tensor - represent(tensor, found, spec)) / size).abs()
        assert relative.max() < 0.15


@pytest.mark.parametrize("name", RULES)
def test_smaller_than_any_scale_is_zero(name: str) -> None:
    tensor = torch.tensor([1e-45, -1e-45, 3e-45])
    found = RANGE_RULES[name](tensor, QuantSpec(4))
    assert found.scale.item() >= SMALLEST_SCALE
    assert torch.isfinite(represent(tensor, found, QuantSpec(4))).all()


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("axis", [0, 1, 3])
def test_channels_are_independent(name: str, axis: int) -> None:
    tensor = torch.randn(4, 3, 5, 6) * torch.arange(1.0, 4.0).view(3, 1, 1)
    spec = QuantSpec(4, granularity=PerChannel(axis))
    found = RANGE_RULES[name](tensor, spec)
    assert found.scale.shape == tuple(size if index == axis else 1 for index, size in enumerate(tensor.shape))
    for channel in range(tensor.shape[axis]):
        alone = RANGE_RULES[name](tensor.select(axis, channel), QuantSpec(4))
        torch.testing.assert_close(found.scale.flatten()[channel], alone.scale)
        assert found.zero_point.flatten()[channel] == alone.zero_point


@pytest.mark.parametrize("name", RULES)
def test_the_order_in_memory_and_the_type_do_not_matter(name: str) -> None:
    tensor = torch.randn(2, 4, 5, 5)
    spec = QuantSpec(3, granularity=PerChannel())
    found = RANGE_RULES[name](tensor, spec)
    for other in (tensor.to(memory_format=torch.channels_last), tensor.double(), tensor.clone().requires_grad_()):
        again = RANGE_RULES[name](other, spec)
        assert torch.equal(again.scale, found.scale)
        assert torch.equal(again.zero_point, found.zero_point)
        assert not again.scale.requires_grad


@pytest.mark.parametrize("name", RULES)
def test_what_is_refused(name: str) -> None:
    rule = RANGE_RULES[name]
    for bad in (float("nan"), float("inf"), -float("inf")):
        with pytest.raises(NumericalError, match="tensor: expected finite values"):
            rule(torch.tensor([0.0, bad, 1.0]), QuantSpec(4))
    with pytest.raises(ArgumentError, match="tensor: expected a float tensor with at least one value"):
        rule(torch.zeros(0, 3), QuantSpec(4))
    with pytest.raises(ArgumentError, match="torch.int64"):
        rule(torch.zeros(3, dtype=torch.int64), QuantSpec(4))
    with pytest.raises(ArgumentError, match="granularity: expected an axis below 2, got 2"):
        rule(torch.ones(2, 3), QuantSpec(4, granularity=PerChannel(2)))


def test_settings_that_are_refused() -> None:
    for percent in (50.0, 100.1, float("nan")):
        with pytest.raises(ArgumentError, match="percent"):
            Percentile(percent)
    for exponent in (0.0, -1.0, float("inf"), float("nan")):
        with pytest.raises(ArgumentError, match="exponent"):
            MseGrid(exponent)
    for steps in (0, 2.0, True):
        with pytest.raises(ArgumentError, match="steps"):
            MseGrid(steps=steps)  # type: ignore[arg-type]


@given(tensors, specs)
def test_minmax_equals_the_reference(tensor: Tensor, spec: QuantSpec) -> None:
    if bool(is_constant(tensor, spec)):
        return
    scale, zero = reference.minmax(tensor.double().numpy(), spec.bits, spec.is_symmetric)
    found = MinMax()(tensor, spec)
    assert found.scale.item() == pytest.approx(scale, rel=1e-6)
    assert abs(found.zero_point.item() - spec.q_min - zero) <= 1  # a tie in float64 need not be one in float32


@pytest.mark.parametrize("percent", [90.0, 99.0, 100.0])
def test_percentile_equals_numpy(percent: float) -> None:
    tensor = torch.randn(3, 500) + torch.tensor([[0.0], [0.5], [9.0]])
    spec = QuantSpec(8, granularity=PerChannel())
    found = Percentile(percent)(tensor, spec)
    lower, upper = np.percentile(tensor.double().numpy(), [100 - percent, percent], axis=1)
    expected = (np.maximum(upper, 0) - np.minimum(lower, 0)) / 255
    np.testing.assert_allclose(found.scale.flatten().numpy(), expected, rtol=1e-5)
    symmetric = Percentile(percent)(tensor, QuantSpec(8, True, True, PerChannel()))
    expected = np.percentile(tensor.abs().double().numpy(), percent, axis=1) / 127.5
    np.testing.assert_allclose(symmetric.scale.flatten().numpy(), expected, rtol=1e-5)


@pytest.mark.parametrize("is_symmetric", [False, True])
def test_percentiles_of_zero_give_the_whole_range(is_symmetric: bool) -> None:
    tensor = torch.zeros(10_000)
    tensor[0] = 5.0
    spec = QuantSpec(4, is_symmetric)
    assert Percentile(90)(tensor, spec).scale == MinMax()(tensor, spec).scale


def test_the_grid_has_the_least_error() -> None:
    tensor = torch.distributions.Laplace(0.0, 1.0).sample((4, 400))
    for bits in (2, 3, 4, 8):
        spec = QuantSpec(bits, granularity=PerChannel())
        least, *others = (total_error(tensor, rule(tensor, spec), spec) for rule in (MseGrid(), Percentile(), MinMax()))
        assert least < min(others)


@pytest.mark.parametrize("kind", ["relu", "two-sided", "outlier"])
@pytest.mark.parametrize(("is_symmetric", "bits"), [(False, 3), (True, 3), (False, 8)])
def test_large_tensors_are_searched_as_histograms(kind: str, is_symmetric: bool, bits: int) -> None:
    tensor = torch.randn(8, 32, 20, 20)
    tensor[:, ::2] *= 3
    if kind == "relu":
        tensor = tensor.relu()
    if kind == "outlier":
        tensor[0, 0, 0, 0] = 60.0
    assert tensor.numel() > EXACT_VALUES
    spec = QuantSpec(bits, is_symmetric)
    found = MseGrid()(tensor, spec)
    assert kind != "relu" or is_symmetric or found.zero_point.item() == 0
    errors = [
        total_error(tensor, QParams(found.scale * percent / 100, found.zero_point), spec)
        for percent in range(60, 141, 4)
    ]
    assert total_error(tensor, found, spec) <= 1.001 * min(errors)
    percentile, whole = Percentile(99.0)(tensor, spec), MinMax()(tensor, spec)
    assert percentile.scale < whole.scale
    if is_symmetric:
        expected = np.percentile(tensor.abs().numpy(), 99.0)
        assert percentile.scale.item() * (spec.levels - 1) / 2 == pytest.approx(expected, rel=5e-3)


def test_a_histogram_keeps_every_value_and_zero() -> None:
    values = torch.randn(2, EXACT_VALUES + 1).relu()
    values[1] -= 0.5
    middles, counts = condense(values)
    assert counts is not None
    assert (counts.sum(1) == EXACT_VALUES + 1).all()
    for row, middle, count in zip(values, middles, counts, strict=True):
        assert (middle.diff() >= 0).all()
        assert count[middle == 0].sum() == (row.abs() <= (row.max() - row.min()) / BINS / 2).sum()
        assert float((middle * count).sum() / count.sum()) == pytest.approx(float(row.mean()), abs=2e-4)
        torch.testing.assert_close(middle[count > 0][[0, -1]], torch.stack([row.min(), row.max()]), rtol=0, atol=3e-4)
    few, none = condense(values[:, :EXACT_VALUES])
    assert none is None
    assert torch.equal(few, values[:, :EXACT_VALUES])
    middles, counts = condense(torch.zeros(1, EXACT_VALUES + 1))
    assert counts is not None
    assert counts[middles == 0].sum() == EXACT_VALUES + 1
