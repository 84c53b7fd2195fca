"""The kernels of a GPU, run by Triton's interpreter on the CPU, against the plain path: the same as test_kernels.py.

``test_device.py`` runs this file in a process of its own, for Triton decides when it is imported whether to interpret.
Where a kernel ought to run, the plain path raises: so no test passes without it.
"""

from __future__ import annotations

import math
import os

import pytest
import torch
from tests.tiny import images, tiny
from torch import Tensor

import clcalib
from clcalib.calibrate import device_step
from clcalib.calibrate.device_step import CudaGraphs
from clcalib.fused import calls, device, soft
from clcalib.fused.draws import ALL, NONE, Draw, keep_mask, signed
from clcalib.fused.soft import rounding_penalty
from clcalib.quant import kernels, passes
from clcalib.quant.kernels import activation, add_and_clamp, soft_round
from clcalib.quant.ranges import MseGrid
from clcalib.quant.rounding import floor_codes, initial_v
from clcalib.quant.spec import PerChannel, QuantSpec

HALF = Draw(123456789, 987654321, 128)
WORDS = Draw(0xDEADBEEF, 0x80000001, 77)
LOW = 2**-7  # the interpreter cuts bfloat16 off, where a GPU rounds it
SHAPES = [(7,), (2, 3, 33, 31), (1,), (2048,)]


@pytest.fixture(autouse=True)
def _no_other_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    assert os.environ.get("TRITON_INTERPRET") == "1"
    monkeypatch.setattr(calls, "is_available", lambda: False)


@pytest.fixture
def on_device(monkeypatch: pytest.MonkeyPatch):
    """Calls a function as if the CPU were the GPU."""

    def forbidden(*arguments, **keywords):
        raise AssertionError("the plain path was taken")

    def run(function, *arguments, **keywords):
        with monkeypatch.context() as patch:
            patch.setattr(device, "KIND", "cpu")
            for module, name in ((kernels, "_plain_activation"), (passes, "soft_round_fused")):
                patch.setattr(module, name, forbidden)
            patch.setattr(soft, "rectified_sigmoid", forbidden)
            return function(*arguments, **keywords)

    return run


def gradients(function, inputs: list[Tensor], *rest, **keywords) -> tuple[Tensor, list[Tensor]]:
    inputs = [tensor.clone().requires_grad_() for tensor in inputs]
    result = function(*inputs, *rest, **keywords)
    weights = torch.randn(result.shape, generator=torch.Generator().manual_seed(1)).to(result.dtype)
    return result.detach(), list(torch.autograd.grad(result, inputs, torch.empty_like(result).copy_(weights)))


def assert_same(fast: tuple[Tensor, list[Tensor]], slow: tuple[Tensor, list[Tensor]]) -> None:
    torch.testing.assert_close(fast[0], slow[0], rtol=1e-6, atol=1e-6)
    for one, other in zip(fast[1], slow[1], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5 * (1 + float(other.abs().max())))


def test_the_kernels_are_found_and_compute_right(on_device) -> None:
    device.is_available.cache_clear()
    assert device.is_available(torch.device("cpu"))
    assert on_device(device.can_take, torch.ones(3))
    assert not on_device(device.can_take, torch.ones(4, 4)[:, ::2])
    assert not on_device(device.can_take, torch.ones(3).double())


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("draw", [ALL, HALF, NONE])
@pytest.mark.parametrize("limits", [(-math.inf, math.inf), (0.0, math.inf), (-1.0, 1.0)])
@pytest.mark.parametrize("has_residual", [False, True])
def test_activation(on_device, shape, draw, limits, has_residual) -> None:
    x, residual = (2 * torch.randn(shape) for _ in range(2))
    if len(shape) == 4:
        x, residual = (tensor.to(memory_format=torch.channels_last) for tensor in (x, residual))
    zero_point = torch.tensor(1.0)

    def run(x: Tensor, *rest: Tensor) -> Tensor:
        settings = {"residual": rest[0] if has_residual else None, "limits": limits}
        if draw == NONE:
            return add_and_clamp(x, settings["residual"], limits)
        return activation(x, rest[-1], zero_point, 0, 3, **settings, draw=draw, gradient_factor=0.25)

    inputs = [x, *([residual] if has_residual else []), *([] if draw == NONE else [torch.tensor([0.7])])]
    fast = on_device(gradients, run, inputs)
    assert_same(fast, gradients(run, inputs))
    if draw != NONE:
        assert torch.equal(fast[0], run(*inputs))


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("scale", [0.003, 0.7, -0.4])
def test_values_are_bit_equal_with_ties_and_extremes(on_device, bits: int, scale: float) -> None:
    x = torch.cat([torch.randn(500) * 4, scale * (torch.arange(17) - 8.5), torch.tensor([1e30, -1e30, 0.0, 6e6, -6e6])])
    for draw in (ALL, HALF, WORDS):
        arguments = x, torch.tensor(scale), torch.tensor(1.0), 0, 2**bits - 1
        assert torch.equal(on_device(activation, *arguments, draw=draw), activation(*arguments, draw=draw))


@pytest.mark.parametrize("threshold", [1, 77, 128, 255])
@pytest.mark.parametrize("shape", [(1, 1), (3, 5, 7), (3, 4099)])
def test_masks_are_those_of_every_device(on_device, shape: tuple[int, ...], threshold: int) -> None:
    draw = WORDS._replace(threshold=threshold)
    kept = on_device(activation, torch.full(shape, 0.25), torch.tensor(1.0), torch.tensor(0.0), 0, 3, draw=draw) == 0
    assert torch.equal(kept.float(), keep_mask(shape, draw))


@pytest.mark.parametrize("draw", [HALF, WORDS])
def test_a_draw_in_tensors_is_read_when_the_kernel_runs(on_device, draw) -> None:
    words = torch.zeros(2, dtype=torch.int32)
    later = Draw(words[0], words[1], draw.threshold)
    x, scale = torch.randn(3, 1000), torch.tensor(0.3)

    def run(x: Tensor, scale: Tensor, draw: Draw) -> Tensor:
        return activation(x, scale, torch.tensor(1.0), 0, 3, draw=draw)

    first = on_device(gradients, run, [x, scale], later)
    words.copy_(torch.tensor([signed(draw.key), signed(draw.tweak)]))
    found, expected = (on_device(gradients, run, [x, scale], one) for one in (later, draw))
    assert not torch.equal(first[0], expected[0])
    assert torch.equal(found[0], expected[0])
    assert all(torch.equal(one, other) for one, other in zip(found[1], expected[1], strict=True))
    assert torch.equal(keep_mask(x.shape, later), keep_mask(x.shape, draw))


def test_nan_is_passed_on(on_device) -> None:
    x = torch.tensor([math.nan, 1.0])
    for draw in (ALL, HALF):
        result = on_device(activation, x, torch.tensor(0.5), torch.tensor(0.0), 0, 3, limits=(0.0, math.inf), draw=draw)
        assert result.isnan().tolist() == [True, False]


@pytest.mark.parametrize("inputs", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("output", [torch.float32, torch.bfloat16])
def test_activation_in_bfloat16(on_device, inputs: torch.dtype, output: torch.dtype) -> None:
    x, residual = (torch.randn(4, 8, 5, 5).to(inputs).to(memory_format=torch.channels_last) for _ in range(2))
    scale, zero_point = torch.tensor(0.3), torch.tensor(0.0)

    def run(x: Tensor, scale: Tensor, residual: Tensor, dtype: torch.dtype) -> Tensor:
        settings = {"limits": (0.0, math.inf), "draw": HALF, "residual": residual, "dtype": dtype}
        return activation(x, scale, zero_point, 0, 3, **settings)

    arguments = [x, scale, residual]
    value, (of_x, of_scale, of_residual) = on_device(gradients, run, arguments, output)
    exact, expected = on_device(gradients, run, [x.float(), scale, residual.float()], torch.float32)
    assert (value.dtype, of_x.dtype, of_residual.dtype) == (output, inputs, inputs)
    torch.testing.assert_close(value.float(), exact, rtol=LOW if output == torch.bfloat16 else 0.0, atol=0.0)
    for one, other, absolute in zip((of_x, of_scale, of_residual), expected, (1e-6, 1e-1, 1e-6), strict=True):
        torch.testing.assert_close(one.float(), other, rtol=1e-2, atol=absolute)


@pytest.mark.parametrize("shape", [(6, 5), (6, 5, 3, 3), (6, 64, 5, 5)])
@pytest.mark.parametrize("is_per_channel", [True, False])
def test_soft_round(on_device, shape, is_per_channel) -> None:
    weight = torch.randn(shape)
    if len(shape) == 4:
        weight = weight.to(memory_format=torch.channels_last)
    spec = QuantSpec(3, is_signed=False, granularity=PerChannel(0)) if is_per_channel else QuantSpec(3, is_signed=False)
    found = MseGrid()(weight, spec)
    floors = floor_codes(weight, found)
    v = initial_v(weight, found) + 0.3 * torch.randn(shape)
    v = torch.empty_like(floors).copy_(v)

    def run(v: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        return soft_round(floors, v, found.scale, found.zero_point, spec.q_min, spec.q_max, dtype=dtype)

    assert_same(on_device(gradients, run, [v]), gradients(run, [v]))
    low = on_device(run, v, torch.bfloat16)
    assert low.dtype == torch.bfloat16
    torch.testing.assert_close(low.float(), on_device(run, v), rtol=LOW, atol=0.0)


@pytest.mark.parametrize("beta", [20.0, 7.3, 2.0])
@pytest.mark.parametrize("count", [5, 3001])
def test_rounding_penalty(on_device, beta, count) -> None:
    v = 3 * torch.randn(count)
    v[:5] = torch.tensor([0.0, -80.0, 80.0, 1e-7, -1e-7])
    fast, slow = on_device(gradients, rounding_penalty, [v], beta), gradients(rounding_penalty, [v], beta)
    torch.testing.assert_close(fast[0], slow[0], rtol=2e-6, atol=1e-6)
    torch.testing.assert_close(fast[1], slow[1], rtol=1e-4, atol=1e-5)
    in_tensor = on_device(gradients, rounding_penalty, [v], torch.tensor(beta, dtype=torch.float64))
    assert torch.equal(in_tensor[0], fast[0])
    assert torch.equal(in_tensor[1][0], fast[1][0])


def test_steps_with_their_numbers_on_the_device_are_those_of_the_host(on_device, monkeypatch) -> None:
    """A whole run, but for the recording: that the kernels get what stands in the tensors."""
    monkeypatch.setenv("CLCALIB_GRAPHS", "0")
    calibration = clcalib.CalibrationSet.from_tensor(images(24))
    recipe = clcalib.with_contrastive(clcalib.recipes.qdrop(steps=3, batch_size=8), interval=2, images=8)
    settings = {"recipe": recipe, "bits": clcalib.Bits(2, 4), "measured_images": 0, "precision": "float32"}

    def run() -> dict[str, Tensor]:
        return on_device(clcalib.quantize, tiny(), calibration, **settings).model.state_dict()

    expected = run()
    monkeypatch.setitem(device_step.RECORDERS, "cpu", CudaGraphs)
    found = run()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
