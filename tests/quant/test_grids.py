"""Grids of softmax and GELU: values and gradients as the reference has them, and what they are good for."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.capture.networks import Transformer
from tests.quant.grids import scales, tensors, widths
from tests.reference import grids as reference
from torch import Tensor
from torch.nn import functional as F

import clcalib
from clcalib.calibrate.streams import StepStream
from clcalib.calibrate.trainable import TrainableActivation
from clcalib.errors import ArgumentError, NumericalError
from clcalib.quant.grids import GRIDS, activation_range
from clcalib.quant.modules import ActivationQuantizer
from clcalib.quant.ranges import MseGrid
from clcalib.quant.spec import PerChannel, QParams, QuantSpec

GENERATOR = torch.Generator().manual_seed(0)
SOFTMAX = torch.softmax(torch.randn(64, 50, generator=GENERATOR) * 2, 1)
GELU = F.gelu(torch.randn(4000, generator=GENERATOR) * 2)


def gradients(grid: str, spec: QuantSpec, x: Tensor, scale: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    values, step = x.double().requires_grad_(), scale.double().requires_grad_()
    result = GRIDS[grid](values, step, torch.zeros_like(step), spec.q_min, spec.q_max)
    return result.detach(), *torch.autograd.grad(result, (values, step), gradient)


@pytest.mark.parametrize(("grid", "per_octave"), [("log2", 1), ("log_sqrt2", 2)])
@given(x=tensors, scale=scales, bits=widths)
def test_logarithmic_grids_equal_the_reference(grid: str, per_octave: int, x: Tensor, scale: Tensor, bits: int) -> None:
    gradient = torch.linspace(-1, 2, len(x), dtype=torch.float64)
    result, gradient_x, gradient_scale = gradients(grid, QuantSpec(bits, grid=grid), x, scale, gradient)
    arguments = x.double().numpy(), float(scale), bits, per_octave
    np.testing.assert_allclose(result.numpy(), reference.log_quantize(*arguments), rtol=1e-12)
    expected_x, expected_scale = reference.log_gradients(*arguments, gradient.numpy())
    np.testing.assert_allclose(gradient_x.numpy(), expected_x, rtol=1e-9)
    slack = 1e-12 * (1 + float((gradient * x.double() / scale).abs().sum()))
    np.testing.assert_allclose(float(gradient_scale), expected_scale, rtol=1e-9, atol=slack)


@given(x=tensors, below=scales, above=scales, bits=widths)
def test_the_twin_grid_equals_the_reference(x: Tensor, below: Tensor, above: Tensor, bits: int) -> None:
    gradient = torch.linspace(-1, 2, len(x), dtype=torch.float64)
    spec = QuantSpec(bits, is_signed=True, grid="twin")
    result, gradient_x, gradient_scale = gradients("twin", spec, x, torch.stack((below, above)), gradient)
    arguments = x.double().numpy(), float(below), float(above), bits
    np.testing.assert_allclose(result.numpy(), reference.twin_quantize(*arguments), rtol=1e-12)
    expected_x, expected_scale = reference.twin_gradients(*arguments, gradient.numpy())
    np.testing.assert_allclose(gradient_x.numpy(), expected_x, rtol=1e-9)
    slack = 1e-12 * (1 + float((gradient * x.double()).abs().sum() / min(below, above)))
    np.testing.assert_allclose(gradient_scale.numpy(), expected_scale, rtol=1e-9, atol=slack)


@pytest.mark.parametrize("grid", ["log2", "log_sqrt2", "twin"])
@given(x=tensors, bits=widths)
def test_a_grid_is_monotone_idempotent_and_has_at_most_2_to_the_b_values(grid: str, x: Tensor, bits: int) -> None:
    spec = QuantSpec(bits).on(grid)  # type: ignore[arg-type]
    parameters = activation_range(x, spec, MseGrid())
    quantizer = ActivationQuantizer(parameters, spec)
    once = quantizer(x.sort().values)
    assert (once.diff() >= 0).all()
    torch.testing.assert_close(quantizer(once), once, rtol=1e-6, atol=0)
    dense = torch.linspace(float(x.min()), float(x.max()), 3000)
    assert len(torch.unique(quantizer(dense))) <= 2**bits


def error(x: Tensor, grid: str, part: Tensor) -> float:
    spec = QuantSpec(4).on(grid)  # type: ignore[arg-type]
    quantizer = ActivationQuantizer(activation_range(x, spec, MseGrid()), spec)
    return float((quantizer(part) - part).square().mean())


def test_the_twin_grid_is_finer_below_zero_and_coarser_above() -> None:
    """Half of the codes go to the short side, so that the sum of squares is larger than on the uniform grid."""
    below, above = GELU[GELU < 0], GELU[GELU > 0]
    assert error(GELU, "twin", below) < 0.1 * error(GELU, "uniform", below)
    assert error(GELU, "twin", above) > error(GELU, "uniform", above)


def test_a_logarithmic_grid_keeps_the_relative_error_of_small_shares() -> None:
    spec, plain = QuantSpec(4).on("log2"), QuantSpec(4)
    quantizers = [ActivationQuantizer(activation_range(SOFTMAX, s, MseGrid()), s) for s in (spec, plain)]
    shares = SOFTMAX[(SOFTMAX > 1e-3) & (SOFTMAX < 1e-2)]
    relative = [float(((quantizer(shares) - shares) / shares).abs().mean()) for quantizer in quantizers]
    assert relative[0] < 0.3 < relative[1]


def test_one_sided_and_empty_tensors_have_a_range() -> None:
    twin = QuantSpec(4).on("twin")
    assert activation_range(torch.rand(9), twin, MseGrid()).scale[0] == 1
    assert activation_range(torch.zeros(9), QuantSpec(4).on("log2"), MseGrid()).scale == 1
    with pytest.raises(NumericalError, match="NaN"):
        activation_range(torch.full((2,), torch.nan), twin, MseGrid())


@pytest.mark.parametrize(
    "options", [{"grid": "cubic"}, {"grid": "twin"}, {"grid": "log2", "granularity": PerChannel(0)}]
)
def test_a_spec_refuses_what_no_grid_has(options: dict[str, object]) -> None:
    with pytest.raises(ArgumentError, match="grid"):
        QuantSpec(4, **options)  # type: ignore[arg-type]


@given(st.sampled_from(["log2", "log_sqrt2", "twin"]))
def test_a_trained_quantizer_gives_the_values_of_the_finished_one_and_drops_some(grid: str) -> None:
    spec = QuantSpec(3).on(grid)  # type: ignore[arg-type]
    x = GELU if grid == "twin" else SOFTMAX
    plain = ActivationQuantizer(activation_range(x, spec, MseGrid()), spec)

    def trained(keep: float) -> TrainableActivation:
        return TrainableActivation(
            plain, StepStream(0, 0, 0), keep_quantized_probability=keep, is_trained=True, has_scale_gradient_factor=True
        )

    whole = trained(1.0)
    assert torch.equal(whole(x), plain(x))
    assert torch.equal(whole.finished()(x), plain(x))
    whole(x).square().sum().backward()
    assert whole.scale.grad is not None
    assert (whole.scale.grad != 0).all()
    half = trained(0.5)(x)
    is_float, is_quantized = half == x, half == plain(x)
    assert (is_float | is_quantized).all()
    assert 0.3 < float(is_quantized.double().mean()) < 0.75


def test_the_pipeline_puts_the_grids_where_softmax_and_gelu_are(tmp_path) -> None:
    torch.manual_seed(0)
    model, images = Transformer().eval(), torch.randn(8, 3, 16, 16)
    result = clcalib.quantize(
        model,
        clcalib.CalibrationSet.from_tensor(images),
        recipe=clcalib.recipes.qdrop(steps=2, batch_size=4),
        bits=clcalib.Bits(4, 3),
        softmax_grid="log2",
        gelu_grid="twin",
    )
    grids = {(row.layer, side): spec.grid for row in result.policy for side in ("input", "right")
             if (spec := getattr(row, side)) is not None}  # fmt: skip
    special = {place: grid for place, grid in grids.items() if grid != "uniform"}
    assert special == {
        (f"blocks.{block}.{name}", "input"): grid
        for block in (0, 1)
        for name, grid in (("matmul2", "log2"), ("mlp.3", "twin"))
    }
    result.save(tmp_path / "saved")
    loaded = clcalib.load(tmp_path / "saved", Transformer())
    assert torch.equal(loaded(images), result.model(images))
    with pytest.raises(ArgumentError, match="softmax_grid.*nearest: log2"):
        clcalib.quantize(
            model,
            clcalib.CalibrationSet.from_tensor(images),
            recipe=clcalib.recipes.nearest(),
            bits=clcalib.Bits(),
            softmax_grid="log3",  # type: ignore[arg-type]
        )


def test_a_range_is_found_from_a_histogram_too() -> None:
    x = torch.softmax(torch.randn(2000, 50, generator=GENERATOR) * 2, 1)  # 100,000 values
    spec = QuantSpec(4).on("log_sqrt2")
    few = activation_range(x[:1000], spec, MseGrid())
    many = activation_range(x, spec, MseGrid())
    assert isinstance(many, QParams)
    assert float(many.scale) == pytest.approx(float(few.scale), rel=0.25)
