"""Error feedback against its definition, and what it must and must not change."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.reference import error_feedback as reference
from torch import Tensor
from torch.nn import functional

from clcalib.errors import ArgumentError
from clcalib.quant.error_feedback import DAMPING, error_feedback, input_hessian
from clcalib.quant.functional import dequantize
from clcalib.quant.ranges import MseGrid
from clcalib.quant.rounding import nearest
from clcalib.quant.spec import PerChannel, PerTensor, QParams, QuantSpec

TWO_BITS = QuantSpec(2, granularity=PerChannel())
CONVOLUTIONS = [
    {},
    {"stride": (2, 1), "padding": (1, 2)},
    {"dilation": (2, 1)},
    {"groups": 2, "padding": (1, 1)},
    {"groups": 4},
]


def correlated(channels: int = 4, count: int = 3) -> Tensor:
    """Images whose neighbouring pixels and channels are alike, as activations are."""
    images = torch.randn(count, channels, 6, 5).relu()
    images = images + images.roll(1, 2) + images.mean(1, keepdim=True)
    return images


def output_error(weight: Tensor, codes: Tensor, found: QParams, hessian: Tensor) -> float:
    """||(W - Q) X||^2."""
    off = (weight - dequantize(codes, found.scale, found.zero_point)).double()
    off = off.reshape(len(hessian), -1, hessian.shape[1])
    return float((off @ hessian * off).sum())


@pytest.mark.parametrize("settings", CONVOLUTIONS, ids=str)
def test_the_hessian_is_that_of_the_patches(settings: dict[str, object]) -> None:
    images, kernel = correlated().double(), (3, 2)
    complete = {"stride": (1, 1), "padding": (0, 0), "dilation": (1, 1), "groups": 1} | settings
    expected = [reference.hessian(columns) for columns in reference.patches(images.numpy(), kernel, **complete)]
    np.testing.assert_allclose(input_hessian(images, kernel, **settings).numpy(), expected, rtol=1e-9)


@pytest.mark.parametrize("settings", CONVOLUTIONS, ids=str)
def test_the_hessian_measures_the_error_of_the_output(settings: dict[str, object]) -> None:
    images = correlated(count=35).double()  # more than are taken at once
    weight = torch.randn(8, 4 // int(str(settings.get("groups", 1))), 3, 2).double()
    found = MseGrid()(weight, TWO_BITS)
    codes = nearest(weight, found, TWO_BITS)
    off = weight - dequantize(codes, found.scale, found.zero_point)
    expected = float(functional.conv2d(images, off, **settings).square().sum())
    hessian = input_hessian(images, (3, 2), **settings)
    assert output_error(weight, codes, found, hessian) == pytest.approx(expected, rel=1e-6)


def test_a_linear_layer_has_the_hessian_of_its_rows() -> None:
    rows = torch.randn(2, 5, 3).double()
    flat = rows.reshape(-1, 3)
    torch.testing.assert_close(input_hessian(rows), (flat.T @ flat)[None])


@pytest.mark.parametrize("spec", [TWO_BITS, QuantSpec(4, True, True, PerChannel()), QuantSpec(3)], ids=str)
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_equals_the_reference(spec: QuantSpec, groups: int) -> None:
    weight = torch.randn(4, 4 // groups, 2, 2).double()
    found = MseGrid()(weight.float(), spec)
    scale, zero = (value.double().flatten().expand(4).numpy() for value in (found.scale, found.zero_point))
    hessian = input_hessian(correlated().double(), (2, 2), groups=groups)
    expected = []
    for group in range(groups):
        part = slice(group * 4 // groups, (group + 1) * 4 // groups)
        rows = weight[part].flatten(1).numpy()
        limits = spec.q_min, spec.q_max
        expected.append(reference.codes(rows, scale[part], zero[part], *limits, hessian[group].numpy(), DAMPING))
    codes = error_feedback(weight, found, spec, hessian)
    assert codes.dtype == torch.int16
    np.testing.assert_array_equal(codes.flatten(1).numpy(), np.concatenate(expected))


@pytest.mark.parametrize("groups", [1, 4])
def test_the_output_is_nearer_than_under_nearest_rounding(groups: int) -> None:
    ratios = []
    for seed in range(10):
        torch.manual_seed(seed)
        weight = torch.randn(8, 4 // groups, 3, 3)
        hessian = input_hessian(correlated(count=16), (3, 3), groups=groups)
        found = MseGrid()(weight, TWO_BITS)
        errors = [
            output_error(weight, codes, found, hessian)
            for codes in (error_feedback(weight, found, TWO_BITS, hessian), nearest(weight, found, TWO_BITS))
        ]
        ratios.append(errors[0] / errors[1])
    assert sum(ratios) / len(ratios) < 0.8


def test_inputs_that_are_uncorrelated_give_nearest_rounding() -> None:
    weight = torch.randn(5, 7)
    found = MseGrid()(weight, TWO_BITS)
    codes = error_feedback(weight, found, TWO_BITS, torch.diag(torch.rand(7) + 0.1)[None])
    assert torch.equal(codes, nearest(weight, found, TWO_BITS))


@pytest.mark.parametrize("rank", [0, 1, 3])
def test_a_singular_hessian_is_damped(rank: int) -> None:
    """Fewer samples than inputs; with none at all there is nothing to feed back."""
    weight, rows = torch.randn(5, 7), torch.randn(rank, 7)
    found = MseGrid()(weight, TWO_BITS)
    codes = error_feedback(weight, found, TWO_BITS, input_hessian(rows))
    assert TWO_BITS.q_min <= codes.min() <= codes.max() <= TWO_BITS.q_max
    if rank == 0:
        assert torch.equal(codes, nearest(weight, found, TWO_BITS))


def test_the_same_scale_may_serve_all_channels() -> None:
    spec = QuantSpec(3, granularity=PerTensor())
    weight, hessian = torch.randn(4, 4, 2, 2), input_hessian(correlated(), (2, 2))
    found = MseGrid()(weight, spec)
    wide = QParams(found.scale.expand(4, 1, 1, 1), found.zero_point.expand(4, 1, 1, 1))
    assert torch.equal(error_feedback(weight, found, spec, hessian), error_feedback(weight, wide, spec, hessian))


@pytest.mark.parametrize(("shape", "damping", "argument"), [((1, 6, 6), 0.01, "hessian"), ((1, 7, 7), 0.0, "damping")])
def test_bad_arguments_are_named(shape: tuple[int, ...], damping: float, argument: str) -> None:
    weight = torch.randn(5, 7)
    found = MseGrid()(weight, TWO_BITS)
    with pytest.raises(ArgumentError, match=argument):
        error_feedback(weight, found, TWO_BITS, torch.ones(shape), damping=damping)
