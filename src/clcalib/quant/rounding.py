"""How a weight comes to its codes: to the nearest, by soft rounding that is trained and then hardened, or by an offset
that is trained through the rounding.

Soft rounding after AdaRound (Nagel et al. 2020, "Up or Down? Adaptive Rounding for Post-Training Quantization",
equations 22 and 23)::

    w_hat = s * (clamp(floor(w / s) + h(v) + z, q_min, q_max) - z)
    h(v) = clamp((zeta - gamma) * sigmoid(v) + gamma, 0, 1),  zeta = 1.1, gamma = -0.1
"""

from __future__ import annotations

import torch
from torch import Tensor

from clcalib.fused.soft import GAMMA, rectified_sigmoid
from clcalib.quant.functional import clamp_inclusive, quantize, round_ste
from clcalib.quant.spec import QParams, QuantSpec

_SAFE_FRACTION = 1e-5  # a fraction of exactly 0 or 1 would sit where h has no gradient


def nearest(weight: Tensor, qparams: QParams, spec: QuantSpec) -> Tensor:
    """The codes of rounding to the nearest, halves to even.

    Args:
        weight: the float weight w  # shape: (*)
        qparams: scale and zero point  # shape: broadcastable to (*)
        spec: gives q_min and q_max.

    Returns:
        int16, which holds the codes of every kind of spec  # shape: (*)
    """
    return quantize(weight, qparams.scale, qparams.zero_point, spec.q_min, spec.q_max).to(torch.int16)


def floor_codes(weight: Tensor, qparams: QParams) -> Tensor:
    """floor(w / s), as whole numbers in a float tensor; constant while the rounding is trained.

    Args:
        weight: the float weight w  # shape: (*)
        qparams: the scale s  # shape: broadcastable to (*)

    Returns:
        the floors, without the zero point  # shape: (*)
    """
    return torch.floor(weight.detach() / qparams.scale.detach())


def initial_v(weight: Tensor, qparams: QParams) -> Tensor:
    """The v at which soft rounding gives the weight back: h(v) = w / s - floor(w / s).

    The fraction is kept 1e-5 away from 0 and 1, so v is finite and has a gradient; w_hat is off by at most that share
    of a step, and clipped weights stay clipped.  ``harden(initial_v) == nearest``, save on exact ties: at a fraction
    of 1/2 hardening rounds up, rounding to the nearest goes to the even code.

    Args:
        weight: the float weight w  # shape: (*)
        qparams: the scale s  # shape: broadcastable to (*)

    Returns:
        v, in the type of the weight  # shape: (*)
    """
    steps = weight.detach() / qparams.scale.detach()
    # In float64, so that the sign of v tells on which side of 1/2 the fraction is.
    fraction = (steps - torch.floor(steps)).cpu().double().clamp_(_SAFE_FRACTION, 1.0 - _SAFE_FRACTION)
    # logit((fraction - gamma) / (zeta - gamma)), with zeta = 1 - gamma, so that exactly 1/2 gives exactly 0.
    return torch.log((fraction - GAMMA) / (1.0 - fraction - GAMMA)).to(weight)


def soft_quantize(weight: Tensor, v: Tensor, qparams: QParams, spec: QuantSpec, floors: Tensor | None = None) -> Tensor:
    """w_hat = s * (clamp(floor(w / s) + h(v) + z, q_min, q_max) - z), differentiable in v and in s.

    Args:
        weight: the float weight w  # shape: (*)
        v: the rounding variable  # shape: (*)
        qparams: scale and zero point  # shape: broadcastable to (*)
        spec: gives q_min and q_max.
        floors: ``floor_codes(weight, qparams)`` where it is at hand; else it is computed  # shape: (*)

    Returns:
        the softly rounded weight  # shape: (*)
    """
    base = floor_codes(weight, qparams) if floors is None else floors
    codes = torch.clamp(rectified_sigmoid(v) + base + qparams.zero_point, spec.q_min, spec.q_max)
    return (codes - qparams.zero_point) * qparams.scale


def harden(weight: Tensor, v: Tensor, qparams: QParams, spec: QuantSpec) -> Tensor:
    """The codes that soft rounding ends with: clamp(floor(w / s) + [v >= 0] + z, q_min, q_max).

    Args:
        weight: the float weight w  # shape: (*)
        v: the rounding variable  # shape: (*)
        qparams: scale and zero point  # shape: broadcastable to (*)
        spec: gives q_min and q_max.

    Returns:
        int16, which holds the codes of every kind of spec  # shape: (*)
    """
    codes = floor_codes(weight, qparams) + (v.detach() >= 0).to(weight.dtype) + qparams.zero_point
    return torch.clamp(codes, spec.q_min, spec.q_max).to(torch.int16)


def offset_quantize(weight: Tensor, offset: Tensor, qparams: QParams, spec: QuantSpec) -> Tensor:
    """w_hat = s * (clamp(round(w / s + d) + z, q_min, q_max) - z), differentiable in d and s, straight through.

    With u = w / s + d: d w_hat / dd = s and d w_hat / ds = round(u) - w / s where the code is not clipped; else 0 and
    q_min - z or q_max - z.

    Args:
        weight: the float weight w  # shape: (*)
        offset: d, in steps; 0 is rounding to the nearest  # shape: (*)
        qparams: scale and zero point  # shape: broadcastable to (*)
        spec: gives q_min and q_max.

    Returns:
        the weight on the grid  # shape: (*)

    Source: straight-through estimator (Bengio et al. 2013); LSQ (Esser et al. 2020), eq. 3, for the scale.
    """
    codes = clamp_inclusive(round_ste(weight / qparams.scale + offset) + qparams.zero_point, spec.q_min, spec.q_max)
    return (codes - qparams.zero_point) * qparams.scale


def offset_codes(weight: Tensor, offset: Tensor, qparams: QParams, spec: QuantSpec) -> Tensor:
    """The codes of ``offset_quantize``: clamp(round(w / s + d) + z, q_min, q_max).

    Args:
        weight: the float weight w  # shape: (*)
        offset: d, in steps  # shape: (*)
        qparams: scale and zero point  # shape: broadcastable to (*)
        spec: gives q_min and q_max.

    Returns:
        int16, which holds the codes of every kind of spec  # shape: (*)
    """
    codes = torch.round(weight.detach() / qparams.scale.detach() + offset.detach()) + qparams.zero_point
    return torch.clamp(codes, spec.q_min, spec.q_max).to(torch.int16)
