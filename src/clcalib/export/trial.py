"""A chain on trial for a target: quantized with quick ranges, written, loaded in the runtime and run.

What a calibrated chain is written as depends on its graph and its widths, not on the values of its ranges; so whatever
a writer or a runtime refuses, it refuses here, seconds after capture instead of hours later.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx
from torch.utils._pytree import tree_leaves

from clcalib.capture.chain import Chain
from clcalib.capture.graph import weighted_nodes
from clcalib.capture.placing import move
from clcalib.errors import ClcalibError, ClcalibWarning, MissingPackageError
from clcalib.export.deployed import PROGRAM, PTE, is_onnx, kind_of, onnx_rules, round_to_target
from clcalib.export.onnx.emit import Emitted, emit
from clcalib.export.program import x86
from clcalib.export.program.emit import emit_program
from clcalib.export.program.executorch import LARGEST_BATCH, PteNetwork, partition
from clcalib.export.runtimes import RUNTIMES, read_model
from clcalib.quant.grids import activation_range
from clcalib.quant.insert import QuantizedChain, Unquantized, insert_quantizers
from clcalib.quant.modules import ActivationQuantizer
from clcalib.quant.policy import LayerPolicy
from clcalib.quant.ranges import RANGE_RULES
from clcalib.quant.targets import Target

# The captured one first: what goes wrong with another one only is the batch's doing.  One is a size that broadcasts.
BATCHES = (2, 1, 3)
_RULE = RANGE_RULES["minmax"]
_IN_QUOTES = re.compile(r"'([^']+)'|\"([^\"]+)\"")
_EXECUTED = re.compile(r"While executing %(\w+)")
_LONGEST = 300

Network = Callable[[Tensor], Any]


class RefusedError(Exception):
    """What a writer or a runtime did not take.

    Attributes:
        node: of the float chain's graph, where the writer or the runtime says which one; else "".
        is_batch: whether the captured batch ran and another one did not.
    """

    def __init__(self, doing: str, error: BaseException | str, node: str = "", *, is_batch: bool = False) -> None:
        self.node, self.is_batch = node, is_batch
        super().__init__(f"{doing} failed ({_text(error)})")


@torch.no_grad()
def try_out(chain: Chain, policy: Sequence[LayerPolicy], target: Target, images: Tensor) -> None:
    """Write a float chain for a target as if it were calibrated, load the file and run a few batches.

    Nothing is left behind; the chain is not changed.  Without a runtime, writing is all that is tried.

    Args:
        chain: float, on any device.
        policy: the rows of ``chain_policy`` for the target.
        target: whose file it is.
        images: that ranges are found from and that are run, at least one  # shape: (N, ...)

    Raises:
        RefusedError: the file cannot be written, loaded or run.
        MissingPackageError: what writes, loads or runs it is not installed; all that could be tried without it worked.
    """
    shown = images.cpu()
    shown = torch.cat([shown] * max(BATCHES))[: max(BATCHES)].contiguous()  # as what is read from a file is
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ClcalibWarning)  # calibration tells what is to be told of ranges
        quantized = with_quick_ranges(chain, policy, target, shown)
    watch = _Watch(frozenset(node.name for node in chain.module.graph.nodes))
    if is_onnx(target):
        _try_onnx(chain, quantized, target, shown, watch)
    elif kind_of(target) == PTE:
        _try_pte(quantized, shown, watch)
    elif kind_of(target) == PROGRAM:
        _try_program(quantized, shown, watch)


def with_quick_ranges(chain: Chain, policy: Sequence[LayerPolicy], target: Target, images: Tensor) -> QuantizedChain:
    """A quantized copy on the CPU whose ranges are those of the smallest and the largest value, found in one pass."""
    quantized = insert_quantizers(chain, policy, _RULE, target.placement)
    move(quantized.chain.module, torch.device("cpu"))
    _RangeFinder(quantized.chain.module).run(images)
    round_to_target(quantized, target)
    return quantized


class _RangeFinder(fx.Interpreter):
    """Puts a quantizer into each place that waits for one, as its tensor comes by."""

    def call_module(self, target: Any, args: Any, kwargs: Any) -> Any:
        waiting = self.module.get_submodule(str(target))
        if isinstance(waiting, Unquantized):
            found = activation_range(args[0], waiting.spec, _RULE)
            self.module.set_submodule(str(target), ActivationQuantizer(found, waiting.spec))
        return super().call_module(target, args, kwargs)


@dataclass(frozen=True)
class _Watch:
    """Turns what goes wrong into a ``RefusedError``.

    Attributes:
        names: of the nodes of the float chain's graph.
        places: name of an operator in the file -> the node that it was written for.
    """

    names: frozenset[str]
    places: Mapping[str, str] = field(default_factory=dict)

    @contextmanager
    def step(self, doing: str, *, is_batch: bool = False) -> Iterator[None]:
        """What goes wrong inside names the node; that a package is missing stays as it is."""
        try:
            yield
        except MissingPackageError:
            raise
        except Exception as error:  # of any library, which have no base class in common
            raise RefusedError(doing, error, self._node(error), is_batch=is_batch) from error

    def run(self, title: str, run: Network, simulation: Network, images: Tensor) -> None:
        """Batches of several sizes, whose results must have the simulation's shapes, and be finite where it is."""
        first, *others = BATCHES
        for count in BATCHES:
            batch, is_batch = images[:count], count in others
            doing = f"running a batch of {count} in {title}" + (f", after one of {first}," if is_batch else "")
            with self.step(doing, is_batch=is_batch):
                found, expected = (_tensors(network(batch)) for network in (run, simulation))
            for own, simulated in zip(reversed(found), reversed(expected), strict=False):
                if own.shape != simulated.shape:
                    shapes = f"the result has the shape {tuple(own.shape)}, expected {tuple(simulated.shape)}"
                    raise RefusedError(doing, shapes, is_batch=is_batch)
                if bool(simulated.isfinite().all()) and not bool(own.isfinite().all()):
                    raise RefusedError(doing, "results are NaN or infinite, and those of the simulation are not")

    def _node(self, error: BaseException) -> str:
        """The node that an error speaks of, in quotation marks or as torch does; "" where it speaks of none."""
        cause: BaseException | None = error
        while cause is not None:
            text = str(cause)
            quoted = [name for pair in _IN_QUOTES.findall(text) for name in pair]
            executed = [name for name in _EXECUTED.findall(text) if name in self.names]
            known: list[str] = [self.places[name] for name in quoted if name in self.places] + executed
            if known:
                return known[0]
            cause = cause.__cause__ or cause.__context__
        return ""


def _try_onnx(floating: Chain, quantized: QuantizedChain, target: Target, images: Tensor, watch: _Watch) -> None:
    with watch.step("writing the file"):
        emitted = emit(quantized.chain, rules=onnx_rules(target), weights=quantized.weights)
        content = emitted.model.SerializeToString()
    if target.runtime is None:
        return
    runtime = RUNTIMES[target.runtime]
    watch = replace(watch, places=_places(floating, quantized, emitted))
    title = f"{runtime.title} {runtime.version()}"
    with watch.step(f"loading the file in {title}"):
        model = read_model(content)
        if not images.is_floating_point():
            runtime.layers(model)  # loads it; only images are run here, no token numbers
            return
        session = runtime.session(model, torch.get_num_threads())

    def run(batch: Tensor) -> list[Tensor]:
        return [torch.from_numpy(np.array(value)) for value in session(batch.numpy()).values()]

    chain = quantized.chain
    watch.run(title, run, chain.subgraph((chain.input_name,), chain.output_names), images)


def _try_program(quantized: QuantizedChain, images: Tensor, watch: _Watch) -> None:
    with watch.step("writing the program with torch.export"):
        content = io.BytesIO()
        torch.export.save(emit_program(quantized), content)
        with x86.quiet_loading():
            program = torch.export.load(io.BytesIO(content.getvalue()))
    watch.run("PyTorch", program.module(), quantized.chain.module, images)
    title, batch = f"PyTorch {x86.version()}", images[: BATCHES[0]]
    with watch.step(f"putting integer kernels into it ({title})"):
        lowered = x86.lower(program, batch)
    with watch.step(f"running its integer kernels ({title})"):
        lowered(batch)


def _try_pte(quantized: QuantizedChain, images: Tensor, watch: _Watch) -> None:
    with watch.step("writing the .pte file"):
        content = partition(emit_program(quantized, is_signed=True, largest_batch=LARGEST_BATCH)).content
    with watch.step("loading the file in ExecuTorch"):
        network = PteNetwork(content)
    watch.run("ExecuTorch", network, quantized.chain.module, images)


def _places(floating: Chain, quantized: QuantizedChain, emitted: Emitted) -> dict[str, str]:
    """Name of an operator in the file -> the node of the float chain that it was written for."""
    own = {node.name: node.name for node in floating.module.graph.nodes}
    quantizers = [node for node in quantized.chain.module.graph.nodes if node.op == "call_module" and node.args]
    own |= {node.name: node.all_input_nodes[0].name for node in quantizers}  # what a quantizer reads
    # Backwards, so that of several calls of a layer the first one stays.
    layers = {layer: node.name for layer, node in reversed(weighted_nodes(floating.module))}
    found = {name: layers[layer] for layer, name in emitted.layers.items() if layer in layers}
    for step in emitted.model.graph.node:
        parts = [part for part in step.name.partition("#")[0].split("/") if part in own]
        if parts:
            found.setdefault(step.name, own[parts[-1]])
    return found


def _tensors(result: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]


def _text(error: BaseException | str) -> str:
    """What an error says, in one line: of a long one, the beginning."""
    kind = "" if isinstance(error, str | ClcalibError) else f"{type(error).__name__}: "
    text = kind + " ".join(str(error).split())
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."
