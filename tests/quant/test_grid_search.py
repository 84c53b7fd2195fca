from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.quant.grids import ALL_KINDS, tensors, total_error
from tests.reference import ranges as reference
from torch import Tensor

from clcalib.quant.grid_search import _Search, best_on_grid
from clcalib.quant.ranges import MseGrid
from clcalib.quant.spec import PerChannel, QuantSpec


def laplace(*shape: int) -> Tensor:
    return torch.distributions.Laplace(0.0, 1.0).sample(shape)


def skewed(*shape: int) -> Tensor:
    return torch.randn(shape).exp() - 0.5


def outlier(*shape: int) -> Tensor:
    values = torch.randn(shape) * 0.1
    values.view(shape[0], -1)[:, 0] = 4.0
    return values


def one_sided(*shape: int) -> Tensor:
    values = torch.randn(shape).abs()
    values[1::2] *= -1
    return values


DISTRIBUTIONS = [torch.randn, laplace, skewed, outlier, one_sided]
SHAPES = {2: (6, 16, 3, 3), 3: (5, 8, 3, 3), 4: (4, 3, 3, 3), 5: (3, 4, 5, 5), 6: (2, 64), 8: (2, 3, 3, 3)}


def grid_error(tensor: Tensor, spec: QuantSpec) -> float:
    rows = tensor.double().numpy().reshape(len(tensor), -1)
    return sum(reference.best_on_grid(row, spec.bits, is_symmetric=spec.is_symmetric)[0] for row in rows)


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@pytest.mark.parametrize("bits", SHAPES)
def test_the_error_is_at_most_that_of_the_full_grid(distribution, bits: int) -> None:
    tensor = distribution(*SHAPES[bits])
    spec = QuantSpec(bits, granularity=PerChannel())
    error, full = total_error(tensor, MseGrid()(tensor, spec), spec), grid_error(tensor, spec)
    assert error <= full * (1 + 1e-6)


@pytest.mark.parametrize("distribution", [torch.randn, skewed])
def test_a_whole_layer_at_8_bits(distribution) -> None:
    tensor = distribution(1, 64, 3, 3)
    spec = QuantSpec(8)
    assert total_error(tensor, MseGrid()(tensor, spec), spec) <= grid_error(tensor, spec) * (1 + 1e-6)


@pytest.mark.parametrize(("is_symmetric", "is_signed"), ALL_KINDS)
@pytest.mark.parametrize("bits", [2, 4])
def test_every_kind_of_spec(is_symmetric: bool, is_signed: bool, bits: int) -> None:
    tensor = skewed(3, 60)
    spec = QuantSpec(bits, is_symmetric, is_signed, PerChannel())
    assert total_error(tensor, MseGrid()(tensor, spec), spec) <= grid_error(tensor, spec) * (1 + 1e-6)


@given(tensors, st.integers(2, 4))
@settings(max_examples=15)
def test_any_tensor(tensor: Tensor, bits: int) -> None:
    spec = QuantSpec(bits)
    error = total_error(tensor, MseGrid()(tensor, spec), spec)
    full = 0.0 if (tensor == tensor[0]).all() else grid_error(tensor[None], spec)
    # With so few values, what float32 rounds off of a scale shows: the derivative of the error, times 1e-6 of a value.
    slack = len(tensor) * (full ** (1 / 2.4) + 1e-6) ** 1.4 * float(tensor.abs().max()) * 1e-6
    assert error <= full * (1 + 1e-6) + slack


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@pytest.mark.parametrize("bits", [4, 8])
def test_the_clipping_bound_is_a_lower_bound(distribution, bits: int) -> None:
    rows = distribution(3, 50)
    rows = rows / rows.abs().amax(1, keepdim=True)
    search = _Search(rows, None, QuantSpec(bits), 2.4)
    scale = torch.rand(3, 500) * 2 / (2**bits - 1)
    zero = torch.randint(0, 2**bits, (500,)).float()
    bound = search._clipping_bound(scale, zero)
    flat_rows = torch.arange(3).repeat_interleave(500)
    errors = search._errors(flat_rows, scale.flatten(), zero.repeat(3)).view(3, 500)
    assert (bound <= errors * (1 + 1e-4)).all()
    assert (bound > 0.3 * errors).float().mean() > 0.2  # and not a useless one


def test_exponent_and_steps_are_used() -> None:
    tensor = laplace(1, 300)
    spec = QuantSpec(3)
    for exponent in (1.0, 2.0, 4.0):
        own = total_error(tensor, MseGrid(exponent)(tensor, spec), spec, exponent)
        others = [total_error(tensor, MseGrid(other)(tensor, spec), spec, exponent) for other in (1.0, 2.0, 4.0)]
        assert own == min(others)
    assert MseGrid(steps=3)(tensor, spec).scale != MseGrid(steps=100)(tensor, spec).scale


def test_counts_stand_for_repeated_values() -> None:
    values, counts = laplace(2, 40), torch.randint(1, 4, (2, 40))
    repeated = torch.stack(
        [row.repeat_interleave(count).sort().values[:40] for row, count in zip(values, counts, strict=True)]
    )
    distinct = [row.unique(return_counts=True) for row in repeated]
    for row, (middle, count) in zip(repeated, distinct, strict=True):
        spec = QuantSpec(3)
        whole = best_on_grid(row[None], None, spec, 2.4, 100)
        condensed = best_on_grid(middle[None], count[None].float(), spec, 2.4, 100)
        torch.testing.assert_close(condensed, whole)
