from __future__ import annotations

import pytest
import torch
from hypothesis import given
from tests.quant.grids import quantizers, tensors
from torch import Tensor

from clcalib.errors import ArgumentError
from clcalib.fused.draws import Draw, keep_mask
from clcalib.quant import passes
from clcalib.quant.functional import fake_quantize
from clcalib.quant.passes import fake_quantize_blend_fused, fake_quantize_fused, soft_round_fused
from clcalib.quant.ranges import MseGrid
from clcalib.quant.rounding import floor_codes, initial_v, soft_quantize
from clcalib.quant.spec import PerChannel, QuantSpec

Quantizer = tuple[Tensor, Tensor, int, int]
SHAPE = (4, 6, 5, 5)
QUANTIZERS = [(bits, zero) for bits in (2, 4, 8) for zero in (0, 1, 2**bits - 1)]


def make(bits: int, zero: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Quantizer]:
    x = torch.randn(SHAPE, dtype=dtype) * 2
    scale = torch.tensor(3.0 / 2**bits, dtype=dtype)
    return x, (scale, torch.tensor(float(zero), dtype=dtype), 0, 2**bits - 1)


def blend(x: Tensor, scale: Tensor, zero_point: Tensor, q_min: int, q_max: int, keep: Tensor) -> Tensor:
    return torch.where(keep.bool(), fake_quantize(x, scale, zero_point, q_min, q_max), x)


def gradients(function, x: Tensor, scale: Tensor, *rest) -> tuple[Tensor, ...]:
    x, scale = x.clone().requires_grad_(), scale.clone().requires_grad_()
    result = function(x, scale, *rest)
    weights = torch.linspace(-1, 2, x.numel(), dtype=x.dtype).view(x.shape)
    return torch.autograd.grad(result, (x, scale), weights)


@given(tensors, quantizers())
def test_fake_quantize_is_bit_equal(x: Tensor, quantizer: Quantizer) -> None:
    assert torch.equal(fake_quantize_fused(x, *quantizer), fake_quantize(x, *quantizer))
    keep = torch.arange(len(x)) % 2
    expected = blend(x, *quantizer, keep)
    assert torch.equal(fake_quantize_blend_fused(x, *quantizer, keep.float()), expected)


@pytest.mark.parametrize(("bits", "zero"), QUANTIZERS)
def test_fake_quantize_gradients(bits: int, zero: int) -> None:
    x, quantizer = make(bits, zero)
    torch.testing.assert_close(gradients(fake_quantize_fused, x, *quantizer), gradients(fake_quantize, x, *quantizer))
    single, single_quantizer = make(bits, zero, torch.float32)
    fused, plain = (gradients(f, single, *single_quantizer) for f in (fake_quantize_fused, fake_quantize))
    torch.testing.assert_close(fused[0], plain[0], rtol=1e-6, atol=0)
    torch.testing.assert_close(fused[1], plain[1], rtol=2e-5, atol=0)


@pytest.mark.parametrize(("bits", "zero"), QUANTIZERS)
@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.float32])
def test_blend_gradients(bits: int, zero: int, dtype: torch.dtype) -> None:
    x, quantizer = make(bits, zero)
    keep = (torch.rand(SHAPE) < 0.5).to(dtype)
    assert torch.equal(fake_quantize_blend_fused(x, *quantizer, keep), blend(x, *quantizer, keep))
    fused = gradients(fake_quantize_blend_fused, x, *quantizer, keep)
    torch.testing.assert_close(fused, gradients(blend, x, *quantizer, keep), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("probability", [0.0, 1.0])
def test_blend_at_the_ends(probability: float) -> None:
    x, quantizer = make(2, 0, torch.float32)
    keep = torch.full(SHAPE, probability)
    expected = fake_quantize(x, *quantizer) if probability else x
    assert torch.equal(fake_quantize_blend_fused(x, *quantizer, keep), expected)


def test_the_memory_format_is_kept() -> None:
    x, quantizer = make(4, 3, torch.float32)
    last = x.to(memory_format=torch.channels_last)
    keep = keep_mask(SHAPE, Draw(1, 2, 128), memory_format=torch.channels_last)
    for function, rest in ((fake_quantize_fused, ()), (fake_quantize_blend_fused, (keep,))):
        result = function(last, *quantizer, *rest)
        assert result.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(result, function(x, *quantizer, *rest))
        for one, other in zip(
            gradients(function, last, *quantizer, *rest), gradients(function, x, *quantizer, *rest), strict=True
        ):
            torch.testing.assert_close(one, other)


def test_views_and_expanded_gradients() -> None:
    x, quantizer = make(3, 2)
    view = x[:, ::2, 1:]
    scale = quantizer[0].clone().requires_grad_()
    for function in (fake_quantize_fused, fake_quantize):
        assert torch.equal(function(view, *quantizer), fake_quantize(view.contiguous(), *quantizer))
    sums = [f(view, scale, *quantizer[1:]).sum() for f in (fake_quantize_fused, fake_quantize)]
    fused, plain = (torch.autograd.grad(total, scale)[0] for total in sums)
    torch.testing.assert_close(fused, plain)


def test_a_negative_scale_is_followed_like_the_plain_function() -> None:
    x, (_, zero_point, q_min, q_max) = make(2, 1)
    scale = torch.tensor(-0.4, dtype=x.dtype)
    assert torch.equal(
        fake_quantize_fused(x, scale, zero_point, q_min, q_max), fake_quantize(x, scale, zero_point, 0, 3)
    )
    fused, plain = (gradients(f, x, scale, zero_point, q_min, q_max) for f in (fake_quantize_fused, fake_quantize))
    torch.testing.assert_close(fused, plain)


def test_the_scale_keeps_its_shape_and_may_be_a_constant() -> None:
    x, (scale, zero_point, q_min, q_max) = make(4, 0)
    shaped = scale.reshape(1, 1, 1, 1).requires_grad_()
    (gradient,) = torch.autograd.grad(fake_quantize_fused(x, shaped, zero_point, q_min, q_max).sum(), shaped)
    assert gradient.shape == (1, 1, 1, 1)
    values = x.clone().requires_grad_()
    fake_quantize_fused(values, scale, zero_point, q_min, q_max).sum().backward()
    assert scale.grad is None
    assert values.grad is not None
    assert set(values.grad.unique().tolist()) == {0.0, 1.0}


def test_what_the_fused_functions_refuse() -> None:
    x, quantizer = make(4, 0)
    with pytest.raises(ArgumentError, match="scale: expected one value for the whole tensor, got"):
        fake_quantize_fused(x, torch.ones(4, 1, 1, 1), *quantizer[1:])
    with pytest.raises(ArgumentError, match="keep: expected the shape of x"):
        fake_quantize_blend_fused(x, *quantizer, torch.ones(2))


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("is_symmetric", [False, True])
def test_soft_rounding_equals_the_composition(bits: int, is_symmetric: bool) -> None:
    weight = torch.randn(6, 4, 3, 3)
    spec = QuantSpec(bits, is_symmetric, is_signed=is_symmetric, granularity=PerChannel())
    found = MseGrid()(weight, spec)
    floors = floor_codes(weight, found)
    for v in (initial_v(weight, found), torch.randn_like(weight) * 4):
        plain_v, fused_v = v.clone().requires_grad_(), v.clone().requires_grad_()
        plain = soft_quantize(weight, plain_v, found, spec)
        fused = soft_round_fused(floors, fused_v, found.scale, found.zero_point, spec.q_min, spec.q_max)
        assert torch.equal(fused, plain)
        upstream = torch.randn_like(weight)
        (expected,) = torch.autograd.grad(plain, plain_v, upstream)
        (gradient,) = torch.autograd.grad(fused, fused_v, upstream)
        torch.testing.assert_close(gradient, expected, rtol=1e-5, atol=1e-7)


def test_soft_rounding_passes_gradcheck() -> None:
    floors = torch.randint(-3, 6, (3, 2, 4)).double()  # some are clipped on either side
    v = (torch.rand(3, 2, 4, dtype=torch.float64) * 4 - 2).requires_grad_()  # where h is between 0 and 1
    scale = torch.tensor([0.1, 0.5, 2.0], dtype=torch.float64).view(3, 1, 1)
    zero_point = torch.tensor([0.0, 1.0, 3.0], dtype=torch.float64).view(3, 1, 1)
    assert torch.autograd.gradcheck(lambda v: soft_round_fused(floors, v, scale, zero_point, 0, 3), (v,))


def test_a_draw_uses_all_64_bits() -> None:
    words = torch.empty(20000, dtype=torch.int64).random_(-(2**63), None)
    rates = torch.stack([((words >> bit) & 1).double().mean() for bit in range(64)])
    assert ((rates - 0.5).abs() < 5 * 0.5 / 20000**0.5).all()
    assert words.view(torch.uint8).view(-1, 8).amin(0).eq(0).all()
    assert words.view(torch.uint8).view(-1, 8).amax(0).eq(255).all()


@pytest.mark.parametrize("sign", [1, -1])
@given(tensors, quantizers())
def test_bounds_as_tensors_change_nothing(sign: int, x: Tensor, quantizer: Quantizer) -> None:
    """The path of every device but the CPU, run on the CPU."""
    scale, *rest = quantizer
    x = torch.cat([x.flatten(), (torch.arange(-9, 9) / 2 * scale).to(x.dtype)])  # the thresholds themselves
    keep = (torch.arange(len(x)) % 2).to(x.dtype)

    def run() -> list[Tensor]:
        found = []
        for function, more in ((fake_quantize_fused, ()), (fake_quantize_blend_fused, (keep,))):
            inputs = x.clone().requires_grad_(), (sign * scale).requires_grad_()
            result = function(*inputs, *rest, *more)
            found += [result, *torch.autograd.grad(result, inputs, torch.linspace(-1, 2, len(x)).to(x.dtype))]
        return found

    expected = run()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(passes, "_reads_numbers", lambda tensor: False)
        assert all(torch.equal(a, b) for a, b in zip(run(), expected, strict=True))
