"""Moving the stores of a cut through a unit, batch by batch: beside the old and the new stores one batch is alive."""

from __future__ import annotations

import torch
from torch import Tensor, fx, nn

from clcalib.calibrate.codes import CodeGrid
from clcalib.calibrate.space import StoreSpace
from clcalib.calibrate.store import Rows, RowState, RowsWriter
from clcalib.capture.running import BATCH, State
from clcalib.quant.modules import ActivationQuantizer


@torch.no_grad()
def advance_rows(
    body: fx.GraphModule, state: RowState, space: StoreSpace, float_dtype: torch.dtype = torch.float32
) -> RowState:
    """Run a unit over all images, in the batches of ``running.advance``, into new stores.

    An output that comes straight from an ``ActivationQuantizer`` is stored as codes; one that is handed through stays
    in the store that it is in; other float32 values are stored as ``float_dtype``.
    """
    count = len(state[0])
    inputs = [node for node in body.graph.nodes if node.op == "placeholder"]
    outputs = next(node for node in reversed(body.graph.nodes) if node.op == "output").args[0]
    writers = {
        position: RowsWriter(space, count, _grid_of(body, node), float_dtype)
        for position, node in enumerate(outputs)
        if node not in inputs
    }
    if writers:
        for start in range(0, count, BATCH):
            values = body(*(rows.slice(start, start + BATCH) for rows in state))
            for position, writer in writers.items():
                writer.append(values[position])
    done = {position: writer.finish() for position, writer in writers.items()}
    return tuple(done[at] if at in done else state[inputs.index(node)] for at, node in enumerate(outputs))


@torch.enable_grad()
def squared_gradient(
    body: nn.Module, rest: nn.Module, state: RowState, float_outputs: RowState, position: int, space: StoreSpace
) -> Rows:
    """Squared gradient of KL(float logits, logits of the quantized unit + float rest) in the unit's output, mean 1.

    Args:
        body: the quantized unit.
        rest: the float remainder, the unit's outputs -> logits.
        state: the unit's input from the quantized prefix.
        float_outputs: the float unit's outputs.
        position: of the output that the gradient is taken in.
        space: where the result is stored.
    """
    count = len(state[0])
    writer, total = RowsWriter(space, count), 0.0
    for start in range(0, count, BATCH):
        with torch.no_grad():
            outputs = body(*(rows.slice(start, start + BATCH) for rows in state))
        targets = tuple(rows.slice(start, start + BATCH) for rows in float_outputs)
        for half in range(0, len(outputs[0]), BATCH // 2):
            part = slice(half, half + BATCH // 2)
            gradient = _gradient(rest, tuple(o[part] for o in outputs), tuple(t[part] for t in targets), position)
            writer.append(gradient.square_())
            total += float(gradient.sum(dtype=torch.float64))
    squared = writer.finish()
    mean = max(total / (count * gradient[0].numel()), torch.finfo(gradient.dtype).tiny)
    scaled = RowsWriter(space, count)
    for start in range(0, count, BATCH):
        scaled.append(squared.slice(start, start + BATCH) / mean)
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
