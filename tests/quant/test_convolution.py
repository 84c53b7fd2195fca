"""The weight's gradient of a bfloat16 convolution from its compiled kernel, and the convolution around it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.reference import convolution as reference
from torch import Tensor
from torch.nn import functional as F

from clcalib.fused import calls
from clcalib.quant.convolution import Rounding, has_kernel, soft_convolution, weight_gradient
from clcalib.quant.kernels import soft_round

needs_kernel = pytest.mark.skipif(
    not calls.has_weight_gradient(), reason="the kernel needs a compiler and a processor with AVX-512 in bfloat16"
)
# images, inputs, outputs, height, width; an uneven height, a single pair, more images than a tile has, one image
SHAPES = [(2, 16, 8, 5, 2), (3, 16, 16, 6, 8), (1, 32, 24, 3, 4), (5, 48, 40, 4, 6), (70, 16, 16, 12, 12)]


def low(*shape: int, seed: int) -> Tensor:
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return values.to(torch.bfloat16).contiguous(memory_format=torch.channels_last)


@needs_kernel
@pytest.mark.parametrize(("images", "inputs", "outputs", "height", "width"), SHAPES)
def test_gradient_is_the_sum_over_pixels(images, inputs, outputs, height, width):
    x, gradient = low(images, inputs, height, width, seed=0), low(images, outputs, height, width, seed=1)
    found = calls.weight_gradient(x, gradient)
    expected = reference.weight_gradient(x.double().numpy(), gradient.double().numpy())
    assert found.dtype == torch.float32
    assert found.is_contiguous(memory_format=torch.channels_last)
    # Products of bfloat16 are exact in float32; only the sums round.
    np.testing.assert_allclose(found.numpy(), expected, rtol=0, atol=1e-5 * np.abs(expected).max())


@needs_kernel
def test_channels_do_not_mix():
    """One pixel of one channel, seen by one output: a single weight position has all of the gradient."""
    x, gradient = torch.zeros(1, 16, 4, 4), torch.zeros(1, 8, 4, 4)
    x[0, 11, 2, 3], gradient[0, 5, 1, 2] = 3.0, 2.0  # the pixel below and to the right of the output's
    lowered = (t.to(torch.bfloat16).contiguous(memory_format=torch.channels_last) for t in (x, gradient))
    found = calls.weight_gradient(*lowered)
    assert found.nonzero().tolist() == [[5, 11, 2, 2]]
    assert float(found.sum()) == 6.0


@needs_kernel
def test_number_of_threads_changes_no_bit():
    x, gradient = low(37, 16, 16, 16, seed=0), low(37, 16, 16, 16, seed=1)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(calls.weight_gradient(x, gradient))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


@needs_kernel
@pytest.mark.parametrize("width", [7, 8])
def test_other_widths_and_orders_come_from_pytorch(width):
    x, gradient, weight = low(2, 16, 4, width, seed=0), low(2, 16, 4, width, seed=1), low(16, 16, 3, 3, seed=2)
    expected = reference.weight_gradient(x.double().numpy(), gradient.double().numpy())
    for given in (x, x.contiguous()):
        found = weight_gradient(given, weight, gradient)
        assert found.is_contiguous(memory_format=torch.channels_last)
        np.testing.assert_allclose(found.double().numpy(), expected, rtol=0, atol=1e-2 * np.abs(expected).max())


@needs_kernel
def test_convolution_is_the_plain_one_to_rounding_errors():
    generator = torch.Generator().manual_seed(3)
    x, bias = low(4, 16, 6, 6, seed=0).requires_grad_(), low(16, 1, 1, 1, seed=1).flatten().requires_grad_()
    weight = torch.randn(16, 16, 3, 3, generator=generator).contiguous(memory_format=torch.channels_last)
    scale, zero = torch.rand(16, 1, 1, 1, generator=generator) + 0.2, torch.zeros(16, 1, 1, 1)
    v = torch.randn(weight.shape, generator=generator).contiguous(memory_format=torch.channels_last).requires_grad_()
    floors = (weight / scale).floor()
    upstream = low(4, 16, 6, 6, seed=4)

    joined = soft_convolution(x, Rounding(floors, v, scale, zero, (-2.0, 1.0)), bias)
    of_joined = torch.autograd.grad(joined, (x, v, bias), upstream)
    plain = F.conv2d(x, soft_round(floors, v, scale, zero, -2, 1, dtype=torch.bfloat16), bias, padding=1)
    of_plain = torch.autograd.grad(plain, (x, v, bias), upstream)

    assert torch.equal(joined, plain)
    assert torch.equal(of_joined[0], of_plain[0])
    torch.testing.assert_close(of_joined[1], of_plain[1], rtol=0, atol=5e-3 * float(of_plain[1].abs().max()))
    assert float(of_plain[1].abs().max()) > 0
    torch.testing.assert_close(of_joined[2], of_plain[2], rtol=2**-6, atol=2**-6)


@needs_kernel
@pytest.mark.parametrize(
    ("shape", "is_taken"),
    [
        ((16, 16, 3, 3), True),
        ((8, 16, 3, 3), True),
        ((16, 8, 3, 3), False),
        ((12, 16, 3, 3), False),
        ((16, 16, 1, 1), False),
        ((128, 128, 3, 3), True),
        ((256, 128, 3, 3), False),
    ],
)
def test_which_weights_the_kernel_takes(shape, is_taken, monkeypatch):
    monkeypatch.setattr(calls, "has_tiles", lambda: False)
    assert has_kernel(torch.zeros(shape)) is is_taken
    assert not has_kernel(torch.zeros(shape, dtype=torch.float64))


@needs_kernel
def test_pytorchs_kernel_is_taken_where_it_multiplies_tiles(monkeypatch):
    monkeypatch.setattr(calls, "has_tiles", lambda: True)
    assert not has_kernel(torch.zeros(16, 16, 3, 3))


def test_the_bias_has_the_sum_over_pixels_as_its_gradient():
    """Of an uneven width, so that it is there without the kernel for the weight's gradient too."""
    x, bias, upstream = low(3, 16, 4, 7, seed=0), low(16, 1, 1, 1, seed=1).flatten(), low(3, 16, 4, 7, seed=2)
    weight = torch.randn(16, 16, 3, 3, generator=torch.Generator().manual_seed(3))
    floors, v = (each.contiguous(memory_format=torch.channels_last) for each in (weight.floor(), weight))
    rounding = Rounding(floors, v, torch.tensor(1.0), torch.tensor(0.0), (-2.0, 1.0))
    (found,) = torch.autograd.grad(soft_convolution(x, rounding, bias.requires_grad_()), bias, upstream)
    assert found.dtype == torch.bfloat16
    exact = upstream.double().sum((0, 2, 3))
    torch.testing.assert_close(found.double(), exact, rtol=2**-8, atol=0)  # rounded once
