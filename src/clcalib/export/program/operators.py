"""The operators of PyTorch's reference form: ``quantized_decomposed.quantize_per_tensor`` and its counterparts."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from clcalib.errors import MissingPackageError

Operator = Callable[..., Any]


@dataclass(frozen=True)
class Operators:
    """``quantize`` and ``dequantize`` of activations, per tensor; ``dequantize_weight``, per channel."""

    quantize: Operator
    dequantize: Operator
    dequantize_weight: Operator


@functools.cache
def operators() -> Operators:
    """The operators, registered.  A saved program can be loaded once this was called.

    Raises:
        MissingPackageError: this version of PyTorch has them no more.
    """
    try:
        # Not with ``import torch``; and PyTorch's makers mean to move it, which must not break the rest of the package.
        importlib.import_module("torch.ao.quantization.fx._decomposed")
    except ImportError as error:
        raise MissingPackageError(
            f"PyTorch {torch.__version__} has no operators quantized_decomposed; take an earlier version"
        ) from error
    known = torch.ops.quantized_decomposed
    return Operators(
        known.quantize_per_tensor.default, known.dequantize_per_tensor.default, known.dequantize_per_channel.default
    )
