"""Strategies of hypothesis and small helpers that the tests of quant share."""

from __future__ import annotations

import torch
from hypothesis import strategies as st
from torch import Tensor

from clcalib.quant.functional import fake_quantize
from clcalib.quant.spec import QParams, QuantSpec

ALL_KINDS = [(is_symmetric, is_signed) for is_symmetric in (False, True) for is_signed in (False, True)]

numbers = st.floats(-1000.0, 1000.0, width=32, allow_subnormal=False)
tensors = st.lists(numbers, min_size=1, max_size=40).map(torch.tensor)
scales = st.floats(2.0**-10, 50.0, width=32).map(torch.tensor)
widths = st.integers(2, 8)
specs = st.builds(QuantSpec, widths, st.booleans(), st.booleans())


@st.composite
def quantizers(draw: st.DrawFn) -> tuple[Tensor, Tensor, int, int]:
    """The last four arguments of ``fake_quantize``."""
    spec = draw(specs)
    zero_point = spec.middle if spec.is_symmetric else draw(st.integers(spec.q_min, spec.q_max))
    return draw(scales), torch.tensor(float(zero_point)), spec.q_min, spec.q_max


def represent(tensor: Tensor, parameters: QParams, spec: QuantSpec) -> Tensor:
    return fake_quantize(tensor, parameters.scale, parameters.zero_point, spec.q_min, spec.q_max)


def total_error(tensor: Tensor, parameters: QParams, spec: QuantSpec, exponent: float = 2.4) -> float:
    return float((tensor.double() - represent(tensor, parameters, spec).double()).abs().pow(exponent).sum())
