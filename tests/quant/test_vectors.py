"""The loops for every processor against the kernels in registers: both are built here, and give the same."""

from __future__ import annotations

import ctypes
import math
import os
import subprocess
from pathlib import Path

import pytest
import torch
from torch import Tensor

from clcalib.fused import build, calls
from clcalib.fused.draws import ALL, NONE, Draw

needs_compiler = pytest.mark.skipif(not calls.is_available(), reason="the compiled kernels cannot be built here")
FLOATS = (torch.float32, torch.bfloat16)
DRAWS = (ALL, NONE, Draw(123456789, 987654321, 128), Draw(5, 6, 1))
LIMITS = ((-math.inf, math.inf), (0.0, math.inf), (0.0, 6.0))
GRID = (0.37, -1.0, 2.0)


@pytest.fixture(scope="module")
def portable(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """The kernels, built for a processor of which nothing is known."""
    path: Path = tmp_path_factory.mktemp("kernels") / "portable.so"
    compiler = os.environ.get("CXX", "c++")
    subprocess.run([compiler, *build.FLAGS, "-fopenmp-simd", str(build.SOURCE), "-o", str(path)], check=True)
    return ctypes.CDLL(str(path))


def both(portable: ctypes.CDLL, run):
    """What a function gives with the kernels of this processor, and with the portable ones."""
    found = run()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(calls, "library", lambda: portable)
        calls._function.cache_clear()
        try:
            return found, run()
        finally:
            calls._function.cache_clear()


def values(count: int, dtype: torch.dtype, seed: int) -> Tensor:
    return (2 * torch.randn(count, generator=torch.Generator().manual_seed(seed))).to(dtype)


@needs_compiler
@pytest.mark.parametrize("count", [1, 15, 64, 2049, 5000])
@pytest.mark.parametrize("draw", DRAWS)
@pytest.mark.parametrize("limits", LIMITS)
@pytest.mark.parametrize("dtype", FLOATS)
def test_activations_and_their_gradients(portable, count, draw, limits, dtype) -> None:
    x, gradient = values(count, dtype, 0), values(count, dtype, 1)
    for residual in (None, values(count, dtype, 2)):
        fast, slow = both(portable, lambda r=residual: calls.activation_forward(x, r, limits, GRID, draw, dtype))
        assert torch.equal(fast, slow)
        fast, slow = both(portable, lambda r=residual: calls.activation_backward(gradient, x, r, limits, GRID, draw))
        assert torch.equal(fast[0], slow[0])
        assert fast[1] == pytest.approx(slow[1], rel=1e-5, abs=1e-4)


@needs_compiler
def test_what_is_not_finite(portable) -> None:
    x = torch.tensor([math.nan, math.inf, -math.inf, 1e30, -1e30, 3e38, 0.0, -0.0, 1e-30])
    for dtype in FLOATS:
        for draw in DRAWS:
            low = x.to(dtype)
            fast, slow = both(
                portable, lambda v=low, d=draw, t=dtype: calls.activation_forward(v, None, LIMITS[1], GRID, d, t)
            )
            torch.testing.assert_close(fast, slow, rtol=0, atol=0, equal_nan=True)


@needs_compiler
def test_a_processor_without_the_instruction_has_no_weight_gradient(portable) -> None:
    assert both(portable, lambda: bool(calls._function("has_weight_gradient")()))[1] is False
