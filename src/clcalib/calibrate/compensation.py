"""Error feedback for the layers of one unit, each on what the layers before it, already rounded, send into it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx

from clcalib.capture.graph import is_convolution, is_linear, operator_name
from clcalib.capture.running import State
from clcalib.quant.error_feedback import error_feedback, input_hessian
from clcalib.quant.modules import IntegerWeight
from clcalib.quant.spec import PerChannel, QParams


class _Compensator(fx.Interpreter):
    """Runs a body once; at each layer with a given float weight, rounds it anew before the layer is computed."""

    def __init__(self, body: fx.GraphModule, weights: Mapping[str, Tensor]) -> None:
        super().__init__(body)
        self._weights = weights
        self.found: dict[str, IntegerWeight] = {}

    def run_node(self, n: fx.Node) -> Any:
        source = n.args[1] if is_convolution(n) or is_linear(n) else None
        name = str(source.target) if isinstance(source, fx.Node) else ""
        if isinstance(source, fx.Node) and source.op == "call_module" and name in self._weights:
            if name not in self.found:
                self._round(n, name)
            if name in self.found:
                self.env[source] = self.found[name]()
        return super().run_node(n)

    def _round(self, node: fx.Node, name: str) -> None:
        weight, quantizer = self._weights[name], self.fetch_attr(name)
        arguments, _ = self.fetch_args_kwargs_from_env(node)
        hessian = _hessian(node, arguments[0], weight)
        if hessian is None or not _is_by_output(quantizer):
            return
        parameters = QParams(quantizer.scale, quantizer.zero_point)
        codes = error_feedback(weight, parameters, quantizer.spec, hessian)
        self.found[name] = IntegerWeight(codes, parameters, quantizer.spec)


@torch.no_grad()
def compensated(body: fx.GraphModule, weights: Mapping[str, Tensor], state: State) -> dict[str, IntegerWeight]:
    """Round the layers of a quantized unit with error feedback, in execution order.

    Args:
        body: the quantized unit, with ranges in all its quantizers; not changed.
        weights: the float weight by the name of its ``IntegerWeight`` in ``body``.
        state: the unit's input from the quantized prefix, (N, ...), N small enough for one pass.

    Returns:
        The new weights by name.  Layers for which X has no plain form stay out: they keep what they have (transposed
        convolutions, convolutions over three axes, padding given as a word, scales shared across inputs).
    """
    compensator = _Compensator(body, weights)
    compensator.run(*state)
    return compensator.found


def _is_by_output(quantizer: IntegerWeight) -> bool:
    granularity = quantizer.spec.granularity
    return not isinstance(granularity, PerChannel) or granularity.axis == 0


def _hessian(node: fx.Node, inputs: Tensor, weight: Tensor) -> Tensor | None:
    if is_linear(node):
        return input_hessian(inputs)
    bound = node.normalized_arguments(fx.GraphModule({}, fx.Graph()), normalize_to_only_use_kwargs=True)
    if operator_name(node) not in ("conv1d", "conv2d") or bound is None:
        return None
    settings = {name: bound.kwargs.get(name) for name in ("stride", "padding", "dilation")}
    if any(isinstance(value, str) or value is None for value in settings.values()):
        return None
    axes = weight.ndim - 2
    numbers = {name: _two(value, axes, 0 if name == "padding" else 1) for name, value in settings.items()}
    kernel = (1, *weight.shape[2:]) if axes == 1 else tuple(weight.shape[2:])
    images = inputs.unsqueeze(2) if axes == 1 else inputs
    return input_hessian(images, kernel, groups=int(bound.kwargs.get("groups", 1)), **numbers)


def _two(value: Any, axes: int, neutral: int) -> tuple[int, int]:
    """A setting for two axes; a convolution over one axis is one over two, of which the first has length 1."""
    values = (value,) * axes if isinstance(value, int) else tuple(value)
    values = values * axes if len(values) == 1 else values
    return (neutral, values[0]) if axes == 1 else (values[0], values[1])
