"""InfoNCE on cosines and its gradient, in one pass over the keys."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from clcalib.errors import ArgumentError
from clcalib.fused import calls

MOST_ELEMENTS = 1 << 18  # of all keys, 1 MiB: beyond the second-level cache two matrix products are faster


def can_take(queries: Tensor, directions: Tensor, positive: Tensor) -> bool:
    """Whether ``cosine_info_nce`` takes these: on the CPU, float32 and contiguous, keys that fit into the cache.

    Args:
        queries: (B, d).
        directions: the keys, not yet in columns  # shape: (M, d)
        positive: the key of each query's own image  # shape: (B,)
    """
    tensors = queries, directions
    are_rows = all(tensor.dtype == torch.float32 and tensor.ndim == 2 for tensor in tensors)
    if not are_rows or directions.numel() > MOST_ELEMENTS or queries.shape[1] != directions.shape[1]:
        return False
    if positive.shape != queries.shape[:1] or positive.dtype != torch.int64 or positive.device.type != "cpu":
        return False
    return all(map(Tensor.is_contiguous, tensors)) and calls.can_take(*tensors)


def cosine_info_nce(queries: Tensor, columns: Tensor, positive: Tensor, least: float, temperature: float) -> Tensor:
    """mean_i -log( e^{s_ip(i)} / sum_j e^{s_ij} ), s_ij = <q_i / max(|q_i|, least), k_j> / temperature.

    Args:
        queries: get a gradient  # shape: (B, d)
        columns: the keys, each a column of length one; get none  # shape: (d, M)
        positive: p, the key of each query's own image  # shape: (B,) int64
        least: the length below which a query counts as zero.
        temperature: divides the cosines.

    Returns:
        the mean  # shape: ()

    Raises:
        ArgumentError: a positive is no key.

    Source: van den Oord et al. 2018, eq. 4, with the critic of ``objectives/critics.py``.
    """
    result: Tensor = _CosineInfoNce.apply(queries, columns.detach(), positive.contiguous(), least, temperature)
    return result


class _CosineInfoNce(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, queries: Tensor, columns: Tensor, positive: Tensor, least: float, temperature: float
    ) -> Tensor:
        loss, gradient = calls.cosine_info_nce(queries, columns, positive, least, 1.0 / temperature)
        if loss == -1.0:
            raise ArgumentError("positive", f"keys from 0 to {columns.shape[1] - 1}", positive.tolist())
        ctx.save_for_backward(gradient)
        return torch.tensor(loss, dtype=torch.float32, device=queries.device)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Any) -> Any:
        (gradient,) = ctx.saved_tensors
        return gradient * gradients[0], None, None, None, None
