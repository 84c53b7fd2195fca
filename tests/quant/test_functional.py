from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from tests.quant.grids import quantizers, tensors
from tests.reference import quantize as reference
from torch import Tensor

from clcalib.quant.functional import dequantize, fake_quantize, quantize, round_ste, scale_gradient

Quantizer = tuple[Tensor, Tensor, int, int]


@given(tensors, quantizers())
def test_codes_are_whole_and_in_range(x: Tensor, quantizer: Quantizer) -> None:
    codes = quantize(x, *quantizer)
    assert torch.equal(codes, codes.round())
    assert quantizer[2] <= codes.min() <= codes.max() <= quantizer[3]


@given(tensors, quantizers())
def test_the_error_within_the_range_is_at_most_half_a_step(x: Tensor, quantizer: Quantizer) -> None:
    scale, zero_point, q_min, q_max = quantizer
    inside = x.clamp((q_min - zero_point) * scale, (q_max - zero_point) * scale)
    error = (inside - fake_quantize(inside, *quantizer)).abs()
    assert (error <= scale * 0.5001).all()


@given(tensors, quantizers())
def test_fake_quantize_is_idempotent_and_comes_from_its_codes(x: Tensor, quantizer: Quantizer) -> None:
    once = fake_quantize(x, *quantizer)
    assert torch.equal(fake_quantize(once, *quantizer), once)
    assert torch.equal(dequantize(quantize(x, *quantizer), quantizer[0], quantizer[1]), once)


@given(tensors, quantizers())
def test_fake_quantize_is_monotone(x: Tensor, quantizer: Quantizer) -> None:
    assert (fake_quantize(x.sort().values, *quantizer).diff() >= 0).all()


@given(quantizers())
def test_zero_is_exact(quantizer: Quantizer) -> None:
    assert fake_quantize(torch.zeros(1), *quantizer).item() == 0


@given(tensors, quantizers())
def test_equals_the_reference(x: Tensor, quantizer: Quantizer) -> None:
    scale, zero_point, q_min, q_max = quantizer
    gradient = torch.linspace(-1, 2, len(x), dtype=torch.float64)
    values, step = x.double().requires_grad_(), scale.double().requires_grad_()
    result = fake_quantize(values, step, zero_point.double(), q_min, q_max)
    arguments = x.double().numpy(), float(scale), int(zero_point), q_min, q_max
    np.testing.assert_allclose(result.detach().numpy(), reference.fake_quantize(*arguments), rtol=1e-12, atol=1e-12)
    gradient_x, gradient_scale = torch.autograd.grad(result, (values, step), gradient)
    expected_x, expected_scale = reference.fake_quantize_gradients(*arguments, gradient.numpy())
    np.testing.assert_allclose(gradient_x.numpy(), expected_x, rtol=1e-12)
    # The composition adds and subtracts x / s; what is left over of that is of the order of x / s times 1e-16.
    slack = 1e-12 * (1 + float((gradient * x.double() / scale).abs().sum()))
    assert float(gradient_scale) == pytest.approx(expected_scale, rel=1e-9, abs=slack)


def test_codes_on_the_bounds_are_not_clipped() -> None:
    x = torch.tensor([-1.6, -1.4, -1.0, 0.0, 2.0, 2.4, 2.6]).requires_grad_()
    (gradient,) = torch.autograd.grad(fake_quantize(x, torch.tensor(1.0), torch.tensor(1.0), 0, 3).sum(), x)
    assert gradient.tolist() == [0, 1, 1, 1, 1, 1, 0]


def test_per_channel_parameters_broadcast() -> None:
    weight = torch.randn(3, 2, 2, 2)
    scale = torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1, 1)
    zero_point = torch.tensor([0.0, 1.0, 3.0]).view(3, 1, 1, 1)
    result = fake_quantize(weight, scale, zero_point, 0, 3)
    for channel in range(3):
        alone = fake_quantize(weight[channel], scale[channel, 0, 0, 0], zero_point[channel, 0, 0, 0], 0, 3)
        assert torch.equal(result[channel], alone)


def test_round_ste_rounds_halves_to_even_and_passes_the_gradient() -> None:
    x = torch.tensor([-1.5, -0.5, 0.5, 1.5, 2.5, 3.0e38]).requires_grad_()
    result = round_ste(x)
    assert torch.equal(result, torch.tensor([-2.0, 0.0, 0.0, 2.0, 2.0, 3.0e38]))
    gradient = torch.arange(6.0)
    (passed,) = torch.autograd.grad(result, x, gradient)
    assert torch.equal(passed, gradient)


def test_scale_gradient_is_the_identity_with_a_scaled_gradient() -> None:
    x = torch.randn(5).requires_grad_()
    result = scale_gradient(x, 0.25)
    assert torch.equal(result, x)
    (gradient,) = torch.autograd.grad(result.sum(), x)
    assert torch.equal(gradient, torch.full((5,), 0.25))


def test_quantize_cuts_the_graph() -> None:
    x = torch.randn(3).requires_grad_()
    assert not quantize(x, torch.tensor(0.1), torch.tensor(0.0), -4, 3).requires_grad


def test_values_beyond_all_measure_are_clipped_not_nan() -> None:
    x = torch.tensor([3.0e38, -3.0e38, torch.inf])
    result = fake_quantize(x, torch.tensor(1.0e-30), torch.tensor(1.0), 0, 3)
    assert torch.equal(result, torch.tensor([2.0e-30, -1.0e-30, 2.0e-30]))


@given(tensors, quantizers())
def test_without_gradients_the_values_are_the_same_bits(x: Tensor, quantizer: Quantizer) -> None:
    scale, *rest = quantizer
    before = x.clone()
    with_gradient = fake_quantize(x, scale.clone().requires_grad_(), *rest)
    assert torch.equal(fake_quantize(x, *quantizer), with_gradient)
    assert torch.equal(x, before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(), (1, 4, 1, 1)])
def test_without_gradients_the_type_is_the_same(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    x = torch.linspace(-2, 2, 48).reshape(3, 4, 2, 2).to(dtype)
    scale, zero_point = torch.full(shape, 0.3), torch.full(shape, 2.0)
    one = fake_quantize(x, scale, zero_point, 0, 7)
    other = fake_quantize(x, scale.clone().requires_grad_(), zero_point, 0, 7)
    assert one.dtype == other.dtype
    assert torch.equal(one, other)
