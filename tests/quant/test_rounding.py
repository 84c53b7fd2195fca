from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from tests.quant.grids import represent, specs, tensors
from tests.reference import rounding as reference
from torch import Tensor

from clcalib.quant.ranges import MinMax, MseGrid
from clcalib.quant.rounding import floor_codes, harden, initial_v, nearest, rectified_sigmoid, soft_quantize
from clcalib.quant.spec import PerChannel, QParams, QuantSpec

SPECS = [
    QuantSpec(bits, is_symmetric, is_signed, PerChannel())
    for bits, is_symmetric, is_signed in [(2, False, False), (3, True, True), (4, False, True), (8, True, False)]
]


def make(spec: QuantSpec) -> tuple[Tensor, QParams]:
    weight = torch.randn(4, 3, 2, 2)
    return weight, MseGrid()(weight, spec)  # clips at 2 and 3 bits


def arrays(weight: Tensor, found: QParams) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return weight.double().numpy(), found.scale.flatten().double().numpy(), found.zero_point.flatten().double().numpy()


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_equals_the_reference(spec: QuantSpec) -> None:
    weight, found = make(spec)
    double = QParams(found.scale.double(), found.zero_point.double())
    weight, v = weight.double(), torch.randn_like(weight).double() * 3
    plain, scale, zero_point = arrays(weight, found)
    limits = spec.q_min, spec.q_max
    expected = reference.soft_quantize(plain, v.numpy(), scale, zero_point, *limits)
    np.testing.assert_allclose(soft_quantize(weight, v, double, spec).numpy(), expected, rtol=1e-9, atol=1e-12)
    start = initial_v(weight, double)
    np.testing.assert_allclose(start.numpy(), reference.initial_v(plain, scale, zero_point), rtol=1e-7, atol=1e-9)
    hard = reference.harden(plain, v.numpy(), scale, zero_point, *limits)
    np.testing.assert_array_equal(harden(weight, v, double, spec).numpy(), hard)
    np.testing.assert_array_equal(
        nearest(weight, double, spec).numpy(), reference.nearest(plain, scale, zero_point, *limits)
    )


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_the_initial_v_gives_the_weight_back(spec: QuantSpec) -> None:
    weight, found = make(spec)
    v = initial_v(weight, found)
    assert torch.isfinite(v).all()
    lower, upper = ((limit - found.zero_point) * found.scale for limit in (spec.q_min, spec.q_max))
    clipped = torch.minimum(torch.maximum(weight, lower), upper)
    error = (soft_quantize(weight, v, found, spec) - clipped).abs()
    assert (error <= 3e-5 * found.scale).all()


@given(tensors, specs)
def test_hardening_the_initial_v_is_rounding_to_the_nearest(weight: Tensor, spec: QuantSpec) -> None:
    found = MinMax()(weight, spec)
    codes = harden(weight, initial_v(weight, found), found, spec)
    is_tie = weight / found.scale - floor_codes(weight, found) == 0.5
    assert codes.dtype == torch.int16
    assert torch.equal(codes[~is_tie], nearest(weight, found, spec)[~is_tie])


def test_a_tie_hardens_upwards() -> None:
    spec, found = QuantSpec(4, True, True), QParams(torch.tensor(1.0), torch.tensor(0.0))
    weight = torch.tensor([0.5, 1.5, -0.5, -1.5])
    assert harden(weight, initial_v(weight, found), found, spec).tolist() == [1, 2, 0, -1]
    assert nearest(weight, found, spec).tolist() == [0, 2, 0, -2]
    assert soft_quantize(weight, initial_v(weight, found), found, spec).tolist() == pytest.approx(weight.tolist())


@given(tensors, specs)
def test_nearest_is_fake_quantize(weight: Tensor, spec: QuantSpec) -> None:
    found = MinMax()(weight, spec)
    codes = nearest(weight, found, spec)
    assert spec.q_min <= codes.min() <= codes.max() <= spec.q_max
    assert torch.equal((codes - found.zero_point) * found.scale, represent(weight, found, spec))


def test_rectified_sigmoid_reaches_both_ends() -> None:
    v = torch.tensor([-50.0, -2.5, 0.0, 2.5, 50.0])
    torch.testing.assert_close(rectified_sigmoid(v), torch.tensor([0.0, 0.0, 0.5, 1.0, 1.0]))


def test_hardened_is_soft_with_v_at_the_ends() -> None:
    spec = SPECS[0]
    weight, found = make(spec)
    v = torch.randn_like(weight)
    soft = soft_quantize(weight, torch.where(v >= 0, 50.0, -50.0), found, spec)
    assert torch.equal((harden(weight, v, found, spec) - found.zero_point) * found.scale, soft)


def test_soft_quantize_passes_gradcheck_in_v_and_scale() -> None:
    spec = QuantSpec(3, granularity=PerChannel())
    weight = torch.randn(2, 6, dtype=torch.float64)
    v = torch.randn(2, 6, dtype=torch.float64).clamp(-1.5, 1.5).requires_grad_()
    floors = torch.randint(-2, 6, (2, 6)).double()
    scale = torch.tensor([[0.3], [0.7]], dtype=torch.float64, requires_grad=True)
    zero_point = torch.tensor([[1.0], [2.0]], dtype=torch.float64)

    def function(v: Tensor, scale: Tensor) -> Tensor:
        return soft_quantize(weight, v, QParams(scale, zero_point), spec, floors)

    assert torch.autograd.gradcheck(function, (v, scale))
