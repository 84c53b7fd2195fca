"""Rounding with error feedback: what rounding one input's weights spoils, the weights not yet rounded make good.

After GPTQ (Frantar, Ashkboos, Hoefler, Alistarh 2022, "GPTQ: Accurate Post-Training Quantization for Generative
Pre-trained Transformers", arXiv:2210.17323, section 3), which solves Optimal Brain Quantization column by column::

    H = X X^T + damping * mean(diag(X X^T)) * I,    H^-1 = U^T U  (U upper triangular)
    for column j:  q_j = round(w_j),  e = (w_j - q_j) / U_jj,  w_k = w_k - e U_jk  for all k > j

which lowers ||(W - Q) X||^2, the error that rounding leaves in the layer's output, without any gradient step.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from clcalib.errors import ArgumentError, NumericalError
from clcalib.quant.functional import dequantize, quantize
from clcalib.quant.spec import QParams, QuantSpec

DAMPING = 0.01  # as in the paper, section 3.3
IMAGES_AT_ONCE = 32  # bounds the memory that the patches take


def error_feedback(
    weight: Tensor, qparams: QParams, spec: QuantSpec, hessian: Tensor, *, damping: float = DAMPING
) -> Tensor:
    """The codes of rounding column by column with error feedback, the input with the most energy first.

    Args:
        weight: the float weight W, output channels first  # shape: (O, *I)
        qparams: scale and zero point, which stay as they are  # shape: () or (O, 1, ...)
        spec: gives q_min and q_max.
        hessian: X X^T of each group's inputs (``input_hessian``)  # shape: (G, K, K), K the product of I
        damping: share of the diagonal's mean that is added to the diagonal, so that H has an inverse.

    Returns:
        int16 codes  # shape: (O, *I)

    Raises:
        ArgumentError: the Hessian's shape does not fit the weight, or the damping is not positive.

    *Deviations*: columns in the order of the falling diagonal (the paper's code has that as an option); no blocks of
    128 columns, which only save memory traffic; arithmetic in float64.
    """
    rows, columns, groups = len(weight), weight[0].numel(), len(hessian)
    if hessian.shape != (groups, columns, columns) or rows % groups:
        raise ArgumentError("hessian", f"shape (groups, {columns}, {columns})", tuple(hessian.shape))
    if not 0 < damping < float("inf"):
        raise ArgumentError("damping", "a positive share of the diagonal's mean", damping)
    # A row for each output channel; the groups are independent problems of the same form.
    flat = weight.detach().double().reshape(groups, rows // groups, columns)
    shape = (groups, rows // groups, 1)
    numbers = qparams.scale, qparams.zero_point
    scale, zero_point = (value.detach().double().flatten().expand(rows).reshape(shape) for value in numbers)
    parts = [
        _codes(flat[g], scale[g], zero_point[g], spec, _factor(hessian[g].double(), damping)) for g in range(groups)
    ]
    return torch.cat(parts).reshape(weight.shape).to(torch.int16)


def input_hessian(
    inputs: Tensor,
    kernel: Sequence[int] = (),
    *,
    stride: Sequence[int] = (1, 1),
    padding: Sequence[int] = (0, 0),
    dilation: Sequence[int] = (1, 1),
    groups: int = 1,
) -> Tensor:
    """X X^T, X the patches that each output of a convolution is computed from; without a kernel, the rows of a linear.

    Args:
        inputs: of the layer  # shape: (N, C, H, W), or (*, C) without a kernel
        kernel: size of the convolution's kernel  # two numbers
        stride: of the convolution  # two numbers
        padding: of the convolution, zeros on both sides  # two numbers
        dilation: of the convolution  # two numbers
        groups: of the convolution.

    Returns:
        one matrix for each group, in float64  # shape: (groups, K, K), K = C / groups * kernel[0] * kernel[1]
    """
    if not kernel:
        rows = inputs.detach().reshape(-1, inputs.shape[-1])
        return (rows.T @ rows).double().unsqueeze(0)
    total: Tensor | None = None
    for part in torch.split(inputs.detach(), IMAGES_AT_ONCE):
        patches = functional.unfold(part, tuple(kernel), tuple(dilation), tuple(padding), tuple(stride))
        # (N, C * kernel, L) with the channel slowest -> (groups, K, N * L)
        columns = torch.unflatten(patches, 1, (groups, -1)).permute(1, 2, 0, 3).flatten(2)
        product = (columns @ columns.transpose(1, 2)).double()
        total = product if total is None else total + product
    assert total is not None
    return total


def _factor(hessian: Tensor, damping: float) -> tuple[Tensor, Tensor]:
    """The order of the columns, and U with U^T U = (the damped Hessian in that order)^-1."""
    if not bool(torch.isfinite(hessian).all()):
        raise NumericalError("the inputs of a layer are not finite or too large; look for extreme activations")
    order = torch.argsort(hessian.diagonal(), descending=True, stable=True)
    added = damping * hessian.diagonal().mean().clamp(min=torch.finfo(torch.float32).tiny)
    damped = hessian[order][:, order] + added * torch.eye(len(hessian), dtype=hessian.dtype, device=hessian.device)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
    return order, torch.linalg.cholesky(inverse, upper=True)


def _codes(weight: Tensor, scale: Tensor, zero_point: Tensor, spec: QuantSpec, factor: tuple[Tensor, Tensor]) -> Tensor:
    order, upper = factor
    left = weight[:, order].T.contiguous()  # a row for each column, so that those not yet rounded lie together
    scale, zero_point = scale.flatten(), zero_point.flatten()
    codes = torch.empty_like(left)
    for column in range(len(left)):
        codes[column] = quantize(left[column], scale, zero_point, spec.q_min, spec.q_max)
        error = (left[column] - dequantize(codes[column], scale, zero_point)) / upper[column, column]
        left[column + 1 :].addr_(upper[column, column + 1 :], error, alpha=-1.0)
    result = torch.empty_like(codes)
    result[order] = codes
    return result.T
