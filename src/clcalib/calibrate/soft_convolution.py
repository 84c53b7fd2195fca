"""Takes a softly rounded weight into the convolution that reads it, where the pair has a kernel of its own."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx, nn

from clcalib.calibrate.lower import module_of
from clcalib.calibrate.trainable import SoftWeight
from clcalib.capture.graph import arguments_of, operator_name
from clcalib.quant.convolution import Rounding, has_kernel, soft_convolution

_SIMPLE = {"stride": [1, 1], "padding": [1, 1], "dilation": [1, 1], "groups": 1}


class SoftConvolution(nn.Module):
    """A 3 x 3 convolution with stride and padding 1 in bfloat16, and its weight under soft rounding.

    The weight stays a module of the unit, under its own name, and is only looked at from here.
    """

    def __init__(self, weight: SoftWeight) -> None:
        super().__init__()
        self._weight = (weight,)  # in a tuple, so that it is no submodule

    def forward(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        (weight,) = self._weight
        found, bounds = weight.initial_range, (float(weight.spec.q_min), float(weight.spec.q_max))
        return soft_convolution(x, Rounding(weight.floor_codes, weight.v, found.scale, found.zero_point, bounds), bias)


def join_soft_weights(body: fx.GraphModule) -> None:
    """Replace such convolutions of a unit, once it is known what computes in bfloat16; not recompiled."""
    for node in list(body.graph.nodes):
        weight = module_of(body, node.args[1]) if _is_simple(node) else None
        if not isinstance(weight, SoftWeight) or not _is_taken(weight) or len(node.args[1].users) != 1:
            continue
        name = f"soft_{node.name}"
        body.add_submodule(name, SoftConvolution(weight))
        with body.graph.inserting_before(node):
            joined = body.graph.call_module(name, (node.args[0], *node.args[2:3]))
        joined.meta = dict(node.meta)
        node.replace_all_uses_with(joined)
        body.graph.erase_node(node)


def _is_taken(weight: SoftWeight) -> bool:
    """Whether it is in bfloat16, no scale is trained, and there is one in all or one for each output."""
    scale, zero_point = weight.initial_range.scale, weight.initial_range.zero_point
    is_by_output = scale.numel() == 1 or scale.shape == (len(weight.v), 1, 1, 1)
    is_by_output = is_by_output and scale.shape == zero_point.shape and scale.dtype == zero_point.dtype == torch.float32
    return is_by_output and weight.scale_factor is None and weight.dtype == torch.bfloat16 and has_kernel(weight.v)


def _is_simple(node: fx.Node) -> bool:
    if operator_name(node) != "conv2d":
        return False
    given = arguments_of(node)
    return all(_plain(given.get(name)) == value for name, value in _SIMPLE.items())


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, (list, tuple)) else value
