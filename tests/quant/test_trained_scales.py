"""Gradients of weight scales: soft rounding has those of the composition, straight-through rounding its reference's."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.reference import rounding as reference
from torch import Tensor

from clcalib.fused import calls
from clcalib.quant.functional import clamp_inclusive
from clcalib.quant.kernels import soft_round
from clcalib.quant.passes import soft_round_fused
from clcalib.quant.ranges import MseGrid
from clcalib.quant.rounding import floor_codes, initial_v, nearest, offset_codes, offset_quantize, soft_quantize
from clcalib.quant.spec import PerChannel, QParams, QuantSpec

SPECS = [QuantSpec(2, granularity=PerChannel()), QuantSpec(3, True, True, PerChannel()), QuantSpec(4)]


def make(spec: QuantSpec, shape: tuple[int, ...] = (4, 3, 2, 2)) -> tuple[Tensor, QParams]:
    weight = torch.randn(shape)
    return weight, MseGrid()(weight, spec)  # clips at 2 and 3 bits


@pytest.mark.parametrize("spec", SPECS[:2], ids=str)
def test_straight_through_rounding_equals_the_reference(spec: QuantSpec) -> None:
    weight, found = make(spec)
    weight, offset = weight.double(), (torch.randn_like(weight) * 0.7).double().requires_grad_()
    scale = found.scale.double().requires_grad_()
    double = QParams(scale, found.zero_point.double())
    upstream = torch.randn_like(weight)
    arrays = weight.numpy(), offset.detach().numpy(), found.scale.flatten().double().numpy()
    rest = found.zero_point.flatten().double().numpy(), spec.q_min, spec.q_max
    value = offset_quantize(weight, offset, double, spec)
    np.testing.assert_allclose(value.detach().numpy(), reference.offset_quantize(*arrays, *rest), rtol=1e-9)
    of_offset, of_scale = torch.autograd.grad(value, (offset, scale), upstream)
    expected = reference.offset_gradients(*arrays, *rest, upstream.numpy())
    np.testing.assert_allclose(of_offset.numpy(), expected[0], rtol=1e-9)
    np.testing.assert_allclose(of_scale.flatten().numpy(), expected[1], rtol=1e-9)
    assert 0 < int((of_offset == 0).sum()) < of_offset.numel()  # some codes are clipped


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_an_offset_of_zero_is_nearest_rounding_and_codes_are_those_of_the_value(spec: QuantSpec) -> None:
    weight, found = make(spec)
    assert torch.equal(offset_codes(weight, torch.zeros_like(weight), found, spec), nearest(weight, found, spec))
    offset = torch.randn_like(weight)
    codes = offset_codes(weight, offset, found, spec)
    assert codes.dtype == torch.int16
    assert not torch.equal(codes, nearest(weight, found, spec))
    assert torch.equal((codes - found.zero_point) * found.scale, offset_quantize(weight, offset, found, spec))


def test_clamping_passes_the_gradient_on_its_bounds() -> None:
    x = torch.tensor([-1.0, 0.0, 1.5, 3.0, 4.0], requires_grad=True)
    (gradient,) = torch.autograd.grad(clamp_inclusive(x, 0.0, 3.0).sum(), x)
    assert gradient.tolist() == [0.0, 1.0, 1.0, 1.0, 0.0]


@pytest.mark.parametrize("channels", [(3, 1, 1), (1, 2, 1), (1,)])
def test_soft_rounding_passes_gradcheck_in_v_and_scale(channels: tuple[int, ...]) -> None:
    floors = torch.randint(-3, 6, (3, 2, 4)).double()  # some are clipped on either side
    v = (torch.rand(3, 2, 4, dtype=torch.float64) * 4 - 2).requires_grad_()  # where h is between 0 and 1
    scale = (torch.rand(channels, dtype=torch.float64) + 0.1).requires_grad_()
    zero_point = torch.randint(0, 3, channels).double()
    for function in (soft_round_fused, lambda *a: soft_round(*a, dtype=torch.float64)):
        assert torch.autograd.gradcheck(lambda v, s: function(floors, v, s, zero_point, 0, 3), (v, scale))  # noqa: B023


@pytest.mark.parametrize("shape", [(6, 5), (6, 5, 3, 3), (64, 80, 3, 3)])
@pytest.mark.parametrize("spec", SPECS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("is_compiled", [True, False])
def test_the_scales_gradient_is_that_of_the_composition(monkeypatch, shape, spec, dtype, is_compiled) -> None:
    if is_compiled and not calls.is_available():
        pytest.skip("the compiled kernels cannot be built here")
    monkeypatch.setattr(calls, "is_available", lambda: is_compiled)
    weight, found = make(spec, shape)
    v = initial_v(weight, found) + torch.randn_like(weight)
    if v.ndim == 4:
        v, weight = (tensor.contiguous(memory_format=torch.channels_last) for tensor in (v, weight))
    upstream = torch.randn_like(weight).to(dtype)
    inputs = [tensor.clone().requires_grad_() for tensor in (v, found.scale)]
    floors = floor_codes(weight, found)
    value = soft_round(floors, *inputs, found.zero_point, spec.q_min, spec.q_max, dtype=dtype)
    assert value.dtype == dtype
    gradients = torch.autograd.grad(value, inputs, upstream)
    doubles = [tensor.detach().double().requires_grad_() for tensor in inputs]
    parameters = QParams(doubles[1], found.zero_point.double())
    exact = soft_quantize(weight.double(), doubles[0], parameters, spec, floors.double())
    expected = torch.autograd.grad(exact, doubles, upstream.double())
    for one, other in zip(gradients, expected, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=1e-5, atol=1e-5 * (1 + float(other.abs().max())))
