"""Moving the stores of a cut through a unit, batch by batch: beside the old and the new stores one batch is alive."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, fx, nn

from clcalib.calibrate.codes import CodeGrid
from clcalib.calibrate.layout import Layout
from clcalib.calibrate.space import StoreSpace
from clcalib.calibrate.store import Rows, RowState, RowsWriter
from clcalib.capture.running import State, images_at_once
from clcalib.quant.functional import compiled_passes
from clcalib.quant.modules import ActivationQuantizer


class StateWriter:
    """The stores behind a unit, filled batch by batch.

    An output that comes straight from an ``ActivationQuantizer`` is stored as codes; one that is handed through stays
    in the store that it is in; other float32 values are stored as ``float_dtype``.

    Args:
        body: the unit, with all its quantizers.
        state: its input.
        space: where the new stores get their bytes.
        float_dtype: see above.
    """

    def __init__(
        self, body: fx.GraphModule, state: RowState, space: StoreSpace, float_dtype: torch.dtype = torch.float32
    ) -> None:
        inputs = [node for node in body.graph.nodes if node.op == "placeholder"]
        outputs = next(node for node in reversed(body.graph.nodes) if node.op == "output").args[0]
        self._rows = {at: state[inputs.index(node)] for at, node in enumerate(outputs) if node in inputs}
        self._writers = {
            at: RowsWriter(space, len(state[0]), _grid_of(body, node), float_dtype)
            for at, node in enumerate(outputs)
            if node not in inputs
        }

    @property
    def is_idle(self) -> bool:
        """Whether nothing has to be computed."""
        return not self._writers

    def append(self, start: int, outputs: State) -> None:
        """Put a batch of the unit's outputs behind those that are there, which are ``start`` images."""
        for at, writer in self._writers.items():
            writer.append(outputs[at])

    def finish(self) -> RowState:
        """The stores, when all images are in them."""
        done = self._rows | {at: writer.finish() for at, writer in self._writers.items()}
        return tuple(done[at] for at in sorted(done))


@compiled_passes()
def run_batches(
    body: fx.GraphModule,
    state: RowState,
    see: Callable[[int, State], None],
    count: int | None = None,
    *,
    layout: Layout | None = None,
) -> None:
    """Run a unit over the first ``count`` images, or all; ``see`` gets each batch's first row, and its outputs.

    Args:
        body: the unit.
        state: its input.
        see: see above.
        count: of the images of all shards.
        layout: how the images are dealt; None where they are all in ``state``.
    """
    layout = layout or Layout.alone(len(state[0]))
    for batch in layout.batches(images_at_once(body), count):
        see(batch.start, body(*(layout.aligned(rows.slice(batch.start, batch.stop)) for rows in state)))


@torch.no_grad()
def advance_rows(
    body: fx.GraphModule,
    state: RowState,
    space: StoreSpace,
    float_dtype: torch.dtype = torch.float32,
    *,
    layout: Layout | None = None,
) -> RowState:
    """Run a unit over all images into new stores, as ``StateWriter`` makes them; ``layout`` as in ``run_batches``."""
    writer = StateWriter(body, state, space, float_dtype)
    if not writer.is_idle:
        run_batches(body, state, writer.append, layout=layout)
    return writer.finish()


@torch.enable_grad()
def squared_gradient(
    body: nn.Module,
    rest: nn.Module,
    state: RowState,
    float_outputs: RowState,
    position: int,
    space: StoreSpace,
    *,
    layout: Layout | None = None,
) -> Rows:
    """Squared gradient of KL(float logits, logits of the quantized unit + float rest) in the unit's output, mean 1.

    Args:
        body: the quantized unit.
        rest: the float remainder, the unit's outputs -> logits.
        state: the unit's input from the quantized prefix.
        float_outputs: the float unit's outputs.
        position: of the output that the gradient is taken in.
        space: where the result is stored.
        layout: how the images are dealt; the mean is that of all of them.  None where they are all in ``state``.
    """
    layout = layout or Layout.alone(len(state[0]))
    size = min(images_at_once(body), images_at_once(rest))
    half = max(1, size // 2)  # what lies between is kept for the gradient
    writer, totals = RowsWriter(space, len(state[0])), [0.0] * len(layout.own_counts)
    for shard, start, stop, _ in layout.batches(size):
        with torch.no_grad():
            outputs = body(*(layout.aligned(rows.slice(start, stop)) for rows in state))
        targets = tuple(layout.aligned(rows.slice(start, stop)) for rows in float_outputs)
        for first in range(0, len(outputs[0]), half):
            part = slice(first, first + half)
            gradient = _gradient(rest, tuple(o[part] for o in outputs), tuple(t[part] for t in targets), position)
            writer.append(gradient.square_())
            totals[shard] += float(gradient.sum(dtype=torch.float64))
    squared, (total,) = writer.finish(), layout.total([[value] for value in totals])
    mean = max(total / (layout.count * gradient[0].numel()), torch.finfo(gradient.dtype).tiny)
    scaled = RowsWriter(space, len(squared))
    for _, start, stop, _ in layout.batches(size):
        scaled.append(squared.slice(start, stop) / mean)
    return scaled.finish()


def _gradient(rest: nn.Module, outputs: State, targets: State, position: int) -> Tensor:
    inputs = [tensor.detach() for tensor in outputs]
    inputs[position].requires_grad_(True)
    with torch.no_grad():
        floats = rest(*targets)[0]
    divergence = nn.functional.kl_div(
        rest(*inputs)[0].log_softmax(1), floats.log_softmax(1), reduction="sum", log_target=True
    )
    return torch.autograd.grad(divergence, inputs[position])[0]


def _grid_of(body: fx.GraphModule, node: fx.Node) -> CodeGrid | None:
    module = body.get_submodule(str(node.target)) if node.op == "call_module" else None
    if not isinstance(module, ActivationQuantizer) or module.spec.grid != "uniform":
        return None
    return CodeGrid.of(module)
