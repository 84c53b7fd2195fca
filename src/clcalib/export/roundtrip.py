"""The proof that a runtime computes what was calibrated: codes against codes, at the output of every quantizer.

Two comparisons are made on the same images.  *Own*: the simulation is given the codes that the runtime had one
quantizer before, so that only what is computed in between counts; kernels that round once more or once less differ by
one code here, and anything above is a defect.  *Whole*: both start from the image, and what differed early is carried
along.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx

from clcalib.capture.chain import Chain
from clcalib.capture.graph import input_node
from clcalib.capture.running import BATCH
from clcalib.export.onnx.emit import Emitted
from clcalib.quant.functional import dequantize, quantize
from clcalib.quant.modules import ActivationQuantizer

Run = Callable[[NDArray[np.float32]], Mapping[str, NDArray[np.generic]]]
MOST_CODES = 1  # that a kernel may differ by: it rounds elsewhere, in another order


class Written(Protocol):
    """Where codes and outputs are found in what was written of a chain."""

    @property
    def codes(self) -> Mapping[str, str]:
        """Node of an activation quantizer -> name of its codes, where the runtime shows them."""

    @property
    def outputs(self) -> Sequence[str]:
        """Names of the outputs; the last one is compared."""


@dataclass(frozen=True)
class TensorDifference:
    """How the codes of one quantized tensor differ between runtime and simulation.

    Attributes:
        name: the tensor's node in the float graph.
        own: the largest difference with the runtime's own codes one quantizer before.
        own_share: of all codes, how many differ then.
        whole: the largest difference from the image on.
        whole_share: of all codes, how many differ then.
    """

    name: str
    own: int
    own_share: float
    whole: int
    whole_share: float


@dataclass(frozen=True)
class Roundtrip:
    """What a runtime makes of images, and what the simulation does.

    Attributes:
        runtime: the runtime's outputs, (N, ...), on the images.
        simulated: those of the simulation.
        tensors: of each quantized tensor, in execution order.
    """

    runtime: Tensor
    simulated: Tensor
    tensors: tuple[TensorDifference, ...]

    @property
    def max_code_difference(self) -> int:
        """The largest difference that a kernel makes by itself."""
        return max((row.own for row in self.tensors), default=0)

    @property
    def parting(self) -> TensorDifference | None:
        """The tensor where runtime and simulation first part."""
        return next((row for row in self.tensors if row.own), None)


@torch.no_grad()
def compare_codes(chain: Chain, emitted: Written, run: Run, images: Tensor, *, batch_size: int = BATCH) -> Roundtrip:
    """Run images through both and compare the codes of every quantized tensor.

    Args:
        chain: the simulation, with rounded biases; on the CPU.
        emitted: what was written of it.
        run: the runtime, which gives the codes too (``with_codes``): batch -> values by name.
        images: (N, ...).
        batch_size: images of a call.
    """
    pieces = _pieces(chain, emitted)
    counts = {name: _Counts() for name in pieces}
    outputs: list[Tensor] = []
    simulated: list[Tensor] = []
    end = chain.output_names.index(chain.output_name) if len(emitted.outputs) == len(chain.output_names) else -1
    for start in range(0, len(images), batch_size):
        batch = images[start : start + batch_size]
        found = run(batch.numpy())
        outputs.append(torch.from_numpy(np.array(found[emitted.outputs[end]])))
        codes = {name: torch.from_numpy(np.array(found[emitted.codes[name]])).float() for name in pieces}
        values = {name: piece.values(codes[name]) for name, piece in pieces.items()}
        whole = _simulate(chain, pieces, batch)
        simulated.append(whole[chain.output_name])
        for name, piece in pieces.items():
            own = piece.body(*(values.get(source, batch) for source in piece.inputs))[0]
            counts[name].add(codes[name], piece.codes(own), piece.codes(whole[name]))
    rows = tuple(count.row(pieces[name].tensor) for name, count in counts.items())
    return Roundtrip(torch.cat(outputs), torch.cat(simulated), rows)


def with_codes(emitted: Emitted) -> bytes:
    """The graph with the codes of every quantized tensor among its outputs, as a file."""
    import onnx

    model = onnx.ModelProto()
    model.CopyFrom(emitted.model)
    types = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    makers = {output: node for node in model.graph.node for output in node.output}
    for name in emitted.codes.values():
        node = makers[name]
        while node.op_type != "QuantizeLinear":
            node = makers[node.input[0]]
        model.graph.output.append(onnx.helper.make_tensor_value_info(name, types[node.input[2]], None))
    data: bytes = model.SerializeToString()
    return data


@dataclass(frozen=True)
class _Piece:
    """What lies between a quantizer and those before it."""

    body: fx.GraphModule
    inputs: tuple[str, ...]
    quantizer: ActivationQuantizer
    tensor: str

    def codes(self, values: Tensor) -> Tensor:
        """The codes of values that lie on the grid."""
        own = self.quantizer
        return quantize(values, own.scale, own.zero_point, own.spec.q_min, own.spec.q_max)

    def values(self, codes: Tensor) -> Tensor:
        return dequantize(codes, self.quantizer.scale, self.quantizer.zero_point)


class _Counts:
    """Largest difference and number of differences, over all batches."""

    def __init__(self) -> None:
        self._largest, self._different, self._all = [0, 0], [0, 0], 0

    def add(self, runtime: Tensor, own: Tensor, whole: Tensor) -> None:
        self._all += runtime.numel()
        for place, other in enumerate((own, whole)):
            difference = (runtime.reshape(other.shape) - other).abs()
            self._largest[place] = max(self._largest[place], int(difference.max()))
            self._different[place] += int((difference > 0).sum())

    def row(self, name: str) -> TensorDifference:
        own, whole = (count / max(1, self._all) for count in self._different)
        return TensorDifference(name, self._largest[0], own, self._largest[1], whole)


def _pieces(chain: Chain, emitted: Written) -> dict[str, _Piece]:
    """By the quantizer's node, each piece between quantizers whose codes the file has."""
    image = input_node(chain.module.graph)
    found = {}
    for node in chain.module.graph.nodes:
        if node.name not in emitted.codes:
            continue
        quantizer = chain.module.get_submodule(str(node.target))
        assert isinstance(quantizer, ActivationQuantizer)
        inputs = _before(node, image, emitted.codes)
        tensor = node.args[0]
        assert isinstance(tensor, fx.Node)
        found[node.name] = _Piece(chain.subgraph(inputs, (node.name,)), inputs, quantizer, tensor.name)
    return found


def _before(quantizer: fx.Node, image: fx.Node, codes: Mapping[str, str]) -> tuple[str, ...]:
    """The quantizers, or the image, that a quantizer's tensor is computed from."""
    found: dict[str, None] = {}
    seen, stack = set[fx.Node](), list(quantizer.all_input_nodes)
    while stack:
        node = stack.pop()
        if node in seen:
            continue
        seen.add(node)
        if node is image or node.name in codes:
            found[node.name] = None
        else:
            stack += node.all_input_nodes
    return tuple(found)


def _simulate(chain: Chain, pieces: Mapping[str, _Piece], batch: Tensor) -> dict[str, Tensor]:
    names = (*pieces, chain.output_name)
    return dict(zip(names, chain.subgraph((chain.input_name,), names)(batch), strict=True))
