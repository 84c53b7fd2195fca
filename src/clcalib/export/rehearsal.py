"""What would fail when the file of a target is written, loaded or run is said before calibration, with what helps."""

from __future__ import annotations

import dataclasses
import glob
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor, fx

from clcalib.capture.chain import Chain
from clcalib.capture.graph import module_path, weighted_nodes
from clcalib.errors import (
    ClcalibError,
    MissingPackageError,
    ProcessorWarning,
    RuntimeMissingWarning,
    UnsupportedOperatorError,
)
from clcalib.export.deployed import check_operators
from clcalib.export.onnx.emit import Unsupported
from clcalib.export.onnx.operators import title_of
from clcalib.export.trial import BATCHES, RefusedError, try_out
from clcalib.processor import adds_in_16_bits
from clcalib.quant.insert import chain_policy
from clcalib.quant.policy import EDGE_BITS, Bits, EdgeBits, LayerPolicy, Overrides
from clcalib.quant.spec import Grid
from clcalib.quant.targets import TARGETS, Target

_REWRITE = "write the operation in another way"
_LEFT_OUT = "leave the operator outside: --submodule PART quantizes a part of the network"
_BATCH = "write shapes so that one size alone follows the batch, as x.flatten(1) and x.reshape(len(x), ...) do"


@dataclass(frozen=True)
class Widths:
    """What decides the table of widths but for the target; the attributes are the arguments of ``chain_policy``."""

    chain: Chain
    bits: Bits
    setting: str = "qdrop"
    overrides: Overrides | None = None
    first_last_bits: EdgeBits = EDGE_BITS
    grids: Mapping[str, Grid] | None = None

    def policy(self, target: Target | None) -> tuple[LayerPolicy, ...]:
        """The table for a target."""
        settings = self.bits, self.setting, self.overrides, self.first_last_bits, self.grids
        return chain_policy(self.chain, *settings, target)

    def with_float(self, pattern: str) -> Widths:
        """The same with some layers in float."""
        return dataclasses.replace(self, overrides={**(self.overrides or {}), pattern: "float"})


def rehearse(widths: Widths, target: Target, images: Tensor) -> bool:
    """Try out a float chain for a target: write it with quick ranges, load it in the runtime, run a few batches.

    Args:
        widths: of a float chain, on any device; it is not changed.
        target: that it is to be calibrated for.
        images: of the calibration; few of them are looked at  # shape: (N, ...)

    Returns:
        Whether all of it could be tried.

    Raises:
        UnsupportedOperatorError: something cannot be written, loaded or run; says what, where and what helps.

    Warns:
        RuntimeMissingWarning: what writes or runs the file is not installed, so that it was not tried.
        ProcessorWarning: kernels of this processor may compute other codes than the simulation.
    """
    _warn_of_overflow(widths, target)
    images = images[: max(BATCHES)]
    try:
        _try(widths, target, images)
    except MissingPackageError as error:
        message = (
            f"target {target.name} was not tried before calibration: whether its runtime takes the network is not "
            f"known, and its codes will not be compared with the simulation; {error}"
        )
        warnings.warn(message, RuntimeMissingWarning, stacklevel=2)
        return False
    except UnsupportedOperatorError as error:
        is_batch = any("batch" in problem.partition(" in ")[0] for problem in error.problems)
        remedies = [*_others(widths, target, images), _BATCH if is_batch else _REWRITE, _LEFT_OUT]
        raise UnsupportedOperatorError(error.summary, error.problems, remedies) from error
    except RefusedError as error:
        raise _refusal(error, widths, target, images) from error
    return True


def _warn_of_overflow(widths: Widths, target: Target) -> None:
    layers = target.overflowing(widths.policy(target)) if adds_in_16_bits() else []
    if layers:
        shown = ", ".join(layers[:3]) + (f" and {len(layers) - 3} more" if len(layers) > 3 else "")
        message = (
            f"target {target.name}: this processor has no VNNI and adds two products in 16 bits, which may overflow "
            f"with the weights of {shown}; the file is exact on processors with VNNI; where it shall be on this one, "
            f"calibrate with --target {target.exact_without_vnni}, which uses 7 of 8 bits"
        )
        warnings.warn(message, ProcessorWarning, stacklevel=3)


def _try(widths: Widths, target: Target, images: Tensor) -> None:
    check_operators(widths.chain, target)
    try_out(widths.chain, widths.policy(target), target, images)


def _refusal(error: RefusedError, widths: Widths, target: Target, images: Tensor) -> UnsupportedOperatorError:
    """The error with the place in the network, and what helps."""
    nodes = {node.name: node for node in widths.chain.module.graph.nodes}
    node = nodes.get(error.node)
    remedies = [*_others(widths, target, images)]
    if node is not None:
        remedies += _in_float(node, widths, target, images)
    remedies += [_BATCH if error.is_batch else _REWRITE, _LEFT_OUT]
    place = "" if node is None else f", at {Unsupported(title_of(node), module_path(node), node.name)}"
    what = "its batch size is baked in" if error.is_batch else "it was tried before calibration"
    summary = f"target {target.name} does not take the network, {what}"
    return UnsupportedOperatorError(summary, [f"{error}{place}"], remedies)


def _others(widths: Widths, target: Target, images: Tensor) -> Iterator[str]:
    """The targets that take the network, each of them tried out here."""
    fitting, untried = list[str](), list[str]()
    for other in TARGETS.values():
        if other.name == target.name or other.is_range_reduced:  # which refuses what the other one refuses
            continue
        try:
            _try(widths, other, images)
        except MissingPackageError:
            untried.append(other.name)
        except (RefusedError, ClcalibError):
            continue
        else:
            (untried if other.runtime is None else fitting).append(other.name)
    if fitting:
        yield f"--target {' or '.join(fitting)}: written and run here just now"
    if untried:
        yield f"--target {' or '.join(untried)}: not run here, and nothing is known against it"


def _in_float(node: fx.Node, widths: Widths, target: Target, images: Tensor) -> Iterator[str]:
    """Whether it helps to leave the layer in float that a node belongs to."""
    layers = {node: layer for layer, node in weighted_nodes(widths.chain.module)}
    if node not in layers:
        return
    pattern = glob.escape(layers[node])
    try:
        _try(widths.with_float(pattern), target, images)
    except (RefusedError, ClcalibError):
        return
    yield f"--float '{pattern}': written and run here just now"
