"""Error feedback for the layers of one unit, each on what the layers before it, already rounded, send into it."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, fx

from clcalib.calibrate.layout import Layout
from clcalib.calibrate.lockstep import Lockstep
from clcalib.calibrate.space import StoreSpace
from clcalib.calibrate.store import RowState
from clcalib.capture.graph import arguments_of, is_convolution, is_linear, operator_name
from clcalib.quant.error_feedback import error_feedback, input_hessian
from clcalib.quant.modules import IntegerWeight
from clcalib.quant.spec import PerChannel, QParams

HESSIAN_IMAGES = 256  # images that error feedback sees


@torch.no_grad()
def compensated(
    body: fx.GraphModule,
    weights: Mapping[str, Tensor],
    state: RowState,
    space: StoreSpace,
    layout: Layout | None = None,
) -> dict[str, IntegerWeight]:
    """Round the layers of a quantized unit with error feedback, in execution order.

    Args:
        body: the quantized unit, with ranges in all its quantizers; not changed.
        weights: the float weight by the name of its ``IntegerWeight`` in ``body``.
        state: the unit's input from the quantized prefix; the first ``HESSIAN_IMAGES`` are looked at.
        space: where values inside the unit are kept for a while.
        layout: how the images are dealt; what is added up is that of all workers' images.

    Returns:
        The new weights by name.  Layers for which X has no plain form stay out: they keep what they have (transposed
        convolutions, convolutions over three axes, padding given as a word, scales shared across inputs).
    """
    lockstep, found = Lockstep(body, state, HESSIAN_IMAGES, space, layout), dict[str, IntegerWeight]()
    for node in lockstep.nodes:
        name = _weight_of(node)
        if name not in weights or name in found:
            continue
        quantizer = body.get_submodule(name)
        patches = _patches(node, weights[name])
        if patches is None or not isinstance(quantizer, IntegerWeight) or not _is_by_output(quantizer):
            continue
        lockstep.advance(node)
        source, layout = node.all_input_nodes[0], lockstep.layout
        parts = [
            functools.reduce(operator.add, (patches(values) for values in lockstep.values(source, shard)))
            for shard in range(len(layout.own_counts))
        ]
        hessian = layout.team.total(parts)
        parameters = QParams(quantizer.scale, quantizer.zero_point)
        codes = error_feedback(weights[name], parameters, quantizer.spec, hessian)
        found[name] = IntegerWeight(codes, parameters, quantizer.spec)
        lockstep.replace(name, found[name])
    return found


def _weight_of(node: fx.Node) -> str:
    """The module that a layer has its weight from, or "" where there is none."""
    source = node.args[1] if is_convolution(node) or is_linear(node) else None
    return str(source.target) if isinstance(source, fx.Node) and source.op == "call_module" else ""


def _is_by_output(quantizer: IntegerWeight) -> bool:
    granularity = quantizer.spec.granularity
    return not isinstance(granularity, PerChannel) or granularity.axis == 0


def _patches(node: fx.Node, weight: Tensor) -> Callable[[Tensor], Tensor] | None:
    """What makes X X^T of a layer's input, or None where X has no plain form."""
    if is_linear(node):
        return input_hessian
    arguments = arguments_of(node)
    if operator_name(node) not in ("conv1d", "conv2d"):
        return None
    settings = {name: arguments.get(name) for name in ("stride", "padding", "dilation")}
    if any(isinstance(value, str) or value is None for value in settings.values()):
        return None
    axes, groups = weight.ndim - 2, int(arguments.get("groups", 1))
    numbers = {name: _two(value, axes, 0 if name == "padding" else 1) for name, value in settings.items()}
    kernel = (1, *weight.shape[2:]) if axes == 1 else tuple(weight.shape[2:])

    def hessian(inputs: Tensor) -> Tensor:
        images = inputs.unsqueeze(2) if axes == 1 else inputs
        return input_hessian(images, kernel, groups=groups, **numbers)

    return hessian


def _two(value: Any, axes: int, neutral: int) -> tuple[int, int]:
    """A setting for two axes; a convolution over one axis is one over two, of which the first has length 1."""
    values = (value,) * axes if isinstance(value, int) else tuple(value)
    values = values * axes if len(values) == 1 else values
    return (neutral, values[0]) if axes == 1 else (values[0], values[1])
