"""Compiled kernels against the plain path: values to 1e-6, gradients to 1e-5, the same masks."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from clcalib.errors import ArgumentError
from clcalib.fused import calls
from clcalib.fused.draws import ALL, Draw
from clcalib.fused.soft import rounding_penalty
from clcalib.fused.squared import mean_squared_error
from clcalib.quant.grid_search import _Search
from clcalib.quant.kernels import activation, add_and_clamp, soft_round
from clcalib.quant.ranges import MseGrid
from clcalib.quant.rounding import floor_codes, initial_v
from clcalib.quant.spec import PerChannel, QuantSpec

pytestmark = pytest.mark.skipif(not calls.is_available(), reason="the compiled kernels cannot be built here")
HALF = Draw(123456789, 987654321, 128)
SHAPES = [(7,), (3, 5), (2, 3, 33, 31), (4, 16, 16, 16), (5000,)]


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch):
    """Calls a function on the plain path."""

    def run(function, *arguments, **keywords):
        with monkeypatch.context() as patch:
            patch.setattr(calls, "is_available", lambda: False)
            return function(*arguments, **keywords)

    return run


def gradients(function, inputs: list[Tensor], *rest, **keywords) -> tuple[Tensor, list[Tensor]]:
    inputs = [tensor.clone().requires_grad_() for tensor in inputs]
    result = function(*inputs, *rest, **keywords)
    weights = torch.randn(result.shape, generator=torch.Generator().manual_seed(1)).to(result.dtype)
    weights = torch.empty_like(result).copy_(weights)
    return result.detach(), list(torch.autograd.grad(result, inputs, weights))


def assert_same(fast: tuple[Tensor, list[Tensor]], slow: tuple[Tensor, list[Tensor]]) -> None:
    torch.testing.assert_close(fast[0], slow[0], rtol=1e-6, atol=1e-6)
    for one, other in zip(fast[1], slow[1], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5 * (1 + float(other.abs().max())))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("draw", [ALL, HALF])
@pytest.mark.parametrize("limits", [(-math.inf, math.inf), (0.0, math.inf), (0.0, 6.0), (-1.0, 1.0)])
@pytest.mark.parametrize("has_residual", [False, True])
def test_activation(plain, shape, draw, limits, has_residual) -> None:
    generator = torch.Generator().manual_seed(0)
    x, residual = (2 * torch.randn(shape, generator=generator) for _ in range(2))
    if len(shape) == 4:
        x, residual = (tensor.to(memory_format=torch.channels_last) for tensor in (x, residual))
    zero_point = torch.tensor(1.0)

    def run(*inputs: Tensor) -> Tensor:
        x, scale, *rest = inputs
        added = rest[0] if rest else None
        return activation(x, scale, zero_point, 0, 3, residual=added, limits=limits, draw=draw, gradient_factor=0.25)

    inputs = [x, torch.tensor(0.7), *([residual] if has_residual else [])]
    assert_same(gradients(run, inputs), plain(gradients, run, inputs))


@given(st.integers(2, 8), st.integers(0, 2**32 - 1), st.floats(1e-3, 10), st.integers(1, 256))
def test_activation_is_bit_equal_on_every_grid(bits: int, key: int, scale: float, threshold: int) -> None:
    x = torch.randn(3, 50, generator=torch.Generator().manual_seed(key)) * 4
    x[0, :9] = scale * (torch.arange(9) - 4.5)  # ties
    x[1, 0], x[1, 1], x[1, 2] = 1e30, -1e30, 0.0
    arguments = x, torch.tensor(scale), torch.tensor(1.0), 0, 2**bits - 1
    draw = Draw(key, 77, threshold)
    fast = activation(*arguments, draw=draw)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(calls, "is_available", lambda: False)
        slow = activation(*arguments, draw=draw)
    assert torch.equal(fast, slow)


def test_nan_is_passed_on() -> None:
    x = torch.tensor([math.nan, 1.0])
    for draw in (ALL, HALF):
        result = activation(x, torch.tensor(0.5), torch.tensor(0.0), 0, 3, limits=(0.0, math.inf), draw=draw)
        assert result.isnan().tolist() == [True, False]
    assert activation(x.bfloat16(), torch.tensor(0.5), torch.tensor(0.0), 0, 3)[0].isnan()
    assert mean_squared_error(x, torch.zeros(2)).isnan()


@pytest.mark.parametrize("inputs", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("output", [torch.float32, torch.bfloat16])
def test_activation_in_bfloat16_is_the_rounded_float32(inputs: torch.dtype, output: torch.dtype) -> None:
    x, residual = (torch.randn(4, 8, 5, 5).to(inputs).to(memory_format=torch.channels_last) for _ in range(2))
    scale, zero_point = torch.tensor(0.3), torch.tensor(0.0)
    settings = {"limits": (0.0, math.inf), "draw": HALF}

    def run(x: Tensor, scale: Tensor, residual: Tensor, dtype: torch.dtype) -> Tensor:
        return activation(x, scale, zero_point, 0, 3, residual=residual, dtype=dtype, **settings)

    value, (of_x, of_scale, of_residual) = gradients(run, [x, scale, residual], output)
    exact, (exact_x, exact_scale, exact_residual) = gradients(run, [x.float(), scale, residual.float()], torch.float32)
    assert (value.dtype, of_x.dtype, of_residual.dtype) == (output, inputs, inputs)
    assert torch.equal(value, exact.to(output))
    torch.testing.assert_close(of_x.float(), exact_x, rtol=1e-2, atol=1e-6)
    torch.testing.assert_close(of_residual.float(), exact_residual, rtol=1e-2, atol=1e-6)
    torch.testing.assert_close(of_scale, exact_scale, rtol=1e-2, atol=1e-1)


def test_other_tensors_take_the_plain_path() -> None:
    scale, zero_point = torch.tensor(0.3), torch.tensor(0.0)
    x = torch.randn(4, 6)
    double = activation(x.double(), scale.double(), zero_point.double(), 0, 3)
    assert double.dtype == torch.float64
    view = torch.randn(4, 12)[:, ::2].requires_grad_()
    (gradient,) = torch.autograd.grad(activation(view, scale, zero_point, 0, 3).sum(), view)
    assert gradient.shape == view.shape
    broadcast = activation(x, scale, zero_point, 0, 3, residual=torch.ones(6))
    assert torch.equal(broadcast, activation(x + 1, scale, zero_point, 0, 3))
    with pytest.raises(ArgumentError, match="scale: expected one value for the whole tensor"):
        activation(x, torch.ones(6), zero_point, 0, 3)


@pytest.mark.parametrize("shape", [(6, 5), (6, 5, 3, 3), (6, 1, 3, 3)])
@pytest.mark.parametrize("is_per_channel", [True, False])
def test_soft_round(plain, shape, is_per_channel) -> None:
    weight = torch.randn(shape)
    spec = QuantSpec(3, is_signed=False, granularity=PerChannel(0)) if is_per_channel else QuantSpec(3, is_signed=False)
    parameters = MseGrid()(weight, spec)
    floors = floor_codes(weight, parameters).contiguous(memory_format=torch.preserve_format)
    v = initial_v(weight, parameters) + 0.3 * torch.randn(shape)
    rest = parameters.scale, parameters.zero_point, spec.q_min, spec.q_max

    def run(v: Tensor) -> Tensor:
        return soft_round(floors, v, *rest)

    assert_same(gradients(run, [v]), plain(gradients, run, [v]))
    low = soft_round(floors, v, *rest, dtype=torch.bfloat16)
    assert torch.equal(low, run(v).bfloat16())


@pytest.mark.parametrize("shape", [(1, 8, 1, 1), (8,), (1, 1, 1, 3)])
def test_scales_that_are_not_by_rows_take_the_plain_path(plain, shape) -> None:
    square = (8, 8, 3, 3) if len(shape) == 4 else (8, 8)
    floors, v = torch.randint(-2, 2, square).float(), torch.randn(square)
    scale = torch.rand(shape) + 0.1
    rest = scale, torch.zeros(shape), -2, 1

    def run(v: Tensor) -> Tensor:
        return soft_round(floors, v, *rest)

    assert_same(gradients(run, [v]), plain(gradients, run, [v]))
    strided = (torch.rand(8, 2) + 0.1)[:, :1]
    arguments = floors.flatten(1), v.flatten(1), strided, torch.zeros(8, 1), -2, 1
    torch.testing.assert_close(soft_round(*arguments), plain(soft_round, *arguments))


def test_shapes_that_differ_take_the_plain_path() -> None:
    assert float(mean_squared_error(torch.zeros(2, 10), torch.ones(1, 10))) == 1.0
    with pytest.raises(RuntimeError):
        mean_squared_error(torch.zeros(8, 10), torch.zeros(4, 10))
    assert float(mean_squared_error(torch.tensor(3.0), torch.tensor(1.0))) == 4.0


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("limits", [(0.0, math.inf), (0.0, 6.0), (-1.0, 1.0)])
@pytest.mark.parametrize("has_residual", [False, True])
def test_add_and_clamp(plain, shape, limits, has_residual) -> None:
    generator = torch.Generator().manual_seed(0)
    x, residual = (4 * torch.randn(shape, generator=generator) for _ in range(2))
    if len(shape) == 4:
        x, residual = (tensor.to(memory_format=torch.channels_last) for tensor in (x, residual))
    inputs = [x, residual] if has_residual else [x]

    def run(x: Tensor, residual: Tensor | None = None) -> Tensor:
        return add_and_clamp(x, residual, limits)

    assert_same(gradients(run, inputs), plain(gradients, run, inputs))
    composed = (x + residual if has_residual else x).clamp(*limits)
    assert torch.equal(run(*inputs), composed)


def test_an_integer_summand_does_not_make_the_sum_whole() -> None:
    whole, floats = torch.tensor([0, 1, 2]), torch.tensor([0.3, 0.4, -5.0])
    torch.testing.assert_close(add_and_clamp(whole, floats, (0.0, math.inf)), torch.tensor([0.3, 1.4, 0.0]))


@pytest.mark.parametrize("beta", [20.0, 7.3, 2.0])
@pytest.mark.parametrize("count", [5, 10_001])
def test_rounding_penalty(plain, beta, count) -> None:
    v = 3 * torch.randn(count)
    v[:5] = torch.tensor([0.0, -80.0, 80.0, 1e-7, -1e-7])
    fast, slow = gradients(rounding_penalty, [v], beta), plain(gradients, rounding_penalty, [v], beta)
    torch.testing.assert_close(fast[0], slow[0], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(fast[1], slow[1], rtol=1e-5, atol=1e-5)


def test_nan_in_v_is_nan_in_the_penalty_and_in_its_gradient() -> None:
    v = torch.tensor([0.3, math.nan, -0.2])
    value, (gradient,) = gradients(rounding_penalty, [v], 7.3)
    assert value.isnan()
    assert gradient.isnan().tolist() == [False, True, False]


@pytest.mark.parametrize("shape", [(5,), (3, 4), (4, 16, 9, 7)])
@pytest.mark.parametrize("low", [False, True])
def test_mean_squared_error(plain, shape, low) -> None:
    output, target = torch.randn(shape), torch.randn(shape)
    if low:
        output, target = output.bfloat16(), target.bfloat16()
    fast = gradients(mean_squared_error, [output], target, 3.0)
    slow = plain(gradients, mean_squared_error, [output.float()], target.float(), 3.0)
    torch.testing.assert_close(fast[0].float(), slow[0], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(fast[1][0].float(), slow[1][0], rtol=1e-2 if low else 1e-5, atol=1e-7)


@pytest.mark.parametrize("exponent", [1.0, 2.0, 2.4, 4.0])
@pytest.mark.parametrize("width", [1, 300, 5000])
@pytest.mark.parametrize("has_counts", [False, True])
def test_errors_of_candidate_ranges(plain, exponent, width, has_counts) -> None:
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(3, width, generator=generator)
    values[:, 0] = 0.0  # on the grid exactly: its error is 0
    counts = torch.randint(0, 9, (3, width), generator=generator).float() if has_counts else None
    search = _Search(values, counts, QuantSpec(3), exponent)
    rows = torch.tensor([0, 2, 1, 2, 0, 0, 1])
    scale = torch.rand(7, generator=generator) + 0.05
    zero = torch.tensor([0.0, 1, 2, 3, 4, 5, 7])
    fast, slow = search._errors(rows, scale, zero), plain(search._errors, rows, scale, zero)
    torch.testing.assert_close(fast, slow, rtol=1e-6, atol=1e-6)


def test_results_do_not_depend_on_the_number_of_threads() -> None:
    x = torch.randn(64, 16, 33, 33).to(memory_format=torch.channels_last)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            value, grads = gradients(
                lambda x, scale: activation(x, scale, torch.tensor(0.0), 0, 3, draw=HALF), [x, torch.tensor(0.4)]
            )
            error, of_error = gradients(mean_squared_error, [value], torch.zeros_like(value))
            found.append((value, *grads, error, *of_error))
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


def test_second_derivatives_are_refused_and_not_wrong() -> None:
    v = torch.randn(40, requires_grad=True)
    (first,) = torch.autograd.grad(rounding_penalty(v, 3.0), v, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable|does not require grad|twice"):
        first.sum().backward()
