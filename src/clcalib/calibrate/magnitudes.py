"""Whether a float network's own values can be calibrated on: one pass over all images, before anything is optimised."""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import torch
from torch import Tensor, fx

from clcalib.calibrate.layout import Layout, device_of
from clcalib.calibrate.trainable import channels_last
from clcalib.capture.chain import Chain
from clcalib.capture.graph import is_weighted, layer_name, module_path, operator_name
from clcalib.capture.running import State, images_at_once
from clcalib.errors import EqualAnswersWarning, NumericalError
from clcalib.team.team import Team

LARGEST = 1e15  # the sum of as many squares as a tensor can have values stays within float32
EQUAL = 1e-6  # of the largest answer; answers that differ by less are one answer, up to rounding


@torch.no_grad()
def check_magnitudes(chain: Chain, images: Tensor, held_out: Tensor | None = None, *, team: Team | None = None) -> None:
    """Raise where the float network's values are not finite, or too large to be compared by squared errors.

    What is looked at is the target of every unit, and what the network returns; the device is waited for at the end.

    Args:
        chain: the float chain.
        images: all calibration images (N, ...).
        held_out: those that are measured on.
        team: who looks at which of them; all come to the same end.

    Raises:
        NumericalError: a value is NaN, infinite or above ``LARGEST``; the layer that made it and the image are named.

    Warns:
        EqualAnswersWarning: the network gives one and the same answer for all calibration images.
    """
    for name, rows in (("calibration", images), ("held-out", held_out)):
        if rows is None:
            continue
        largest, answers = _extremes(chain, rows, Layout.of(team or Team(), len(rows)))
        if not bool(largest <= LARGEST):
            raise _located(chain, rows, name) if chain.placed is None else _located_unit(chain, rows, name)
        if name == "calibration" and len(rows) > 1 and answers and all(_are_equal(*ends) for ends in answers):
            warnings.warn(
                f"the float network gives the same answer for all {len(rows)} calibration images: they are equal or "
                "empty, or a layer lets nothing through; look at the images, their scaling, and the first unit whose "
                "values do not depend on them",
                EqualAnswersWarning,
                stacklevel=3,
            )


def _extremes(chain: Chain, images: Tensor, layout: Layout) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
    """The largest size of all values, (); and of each element of the network's answers the lowest and highest value."""
    team, images = layout.team, layout.cut(images, device_of(chain))
    largest = torch.zeros((), device=images.device)
    ends = list[Tensor]()
    for state in _passes(chain, images, layout):
        for index, outputs in enumerate(state):
            target = outputs[chain.units[index].outputs.index(chain.units[index].target)]
            # Two passes: aminmax would copy what is not in the order of its shape.
            largest = torch.maximum(largest, torch.maximum(target.float().amax(), -target.float().amin()))
        floats = [output.float() for output in outputs if output.is_floating_point()]
        own = [torch.stack((output.amin(0), output.amax(0))) for output in floats]
        ends = [_joined(torch.stack(pair)) for pair in zip(ends or own, own, strict=True)]
    largest, *ends = (torch.stack(team.by_worker(end)) for end in (largest, *ends))
    return largest.amax(), [(lowest, highest) for lowest, highest in map(_joined, ends)]


def _joined(ends: Tensor) -> Tensor:
    """Lowest and highest values (n, 2, *) of several parts as those of all, (2, *)."""
    return torch.stack((ends[:, 0].amin(0), ends[:, 1].amax(0)))


def _passes(chain: Chain, images: Tensor, layout: Layout) -> Iterator[Iterator[State]]:
    """For each batch, the outputs of one unit after the other; no more than two units' are alive.

    They are channels_last, in which convolutions are faster; images of three channels are not.
    """
    bodies = [chain.body(index) for index in range(len(chain.units))]
    size = min(images_at_once(body) for body in bodies)

    def units(state: State) -> Iterator[State]:
        for body in bodies:
            state = tuple(channels_last(output) for output in body(*state))
            yield state

    for _, start, stop, _ in layout.batches(size):
        yield units((layout.aligned(images[start:stop]),))


def _are_equal(lowest: Tensor, highest: Tensor) -> bool:
    return bool((highest - lowest).amax() <= EQUAL * torch.maximum(lowest.abs(), highest.abs()).amax())


def _located(chain: Chain, images: Tensor, name: str) -> NumericalError:
    """The error for the first node, in execution order, whose value is out of bounds."""
    module = chain.module
    device = device_of(chain)
    for number, image in enumerate(images):
        runner = _Watching(module)
        runner.run(image[None].to(device or image.device))
        if runner.found is None:
            continue
        node, value = runner.found
        unit = next((unit.name for unit in chain.units if node.name in unit.nodes), "")
        return _error(unit, _described(module, node), value, f"{name} image {number}")
    raise AssertionError("the same images gave other values")


def _located_unit(chain: Chain, images: Tensor, name: str) -> NumericalError:
    """The error for the first unit whose value is out of bounds, where other workers have some of the units."""
    for number, image in enumerate(images):
        state: State = (image[None],)
        for index, unit in enumerate(chain.units):
            state = chain.body(index)(*state)
            largest = float(state[unit.outputs.index(unit.target)].float().abs().max())
            if not largest <= LARGEST:
                return _error(unit.name, "it", largest, f"{name} image {number}")
    raise AssertionError("the same images gave other values")


def _error(unit: str, what: str, value: float, image: str) -> NumericalError:
    values = "values that are not finite" if value != value or value == float("inf") else f"values up to {value:.3g}"
    return NumericalError(
        f"unit {unit}: {what} gives {values} on {image}, and values above {LARGEST:.0e} cannot be compared; look for "
        "outliers in that image, in the weights and in the statistics of batch norm"
    )


class _Watching(fx.Interpreter):
    """Runs a graph on one image and remembers the first node whose value is out of bounds."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.found: tuple[fx.Node, float] | None = None

    def run_node(self, n: fx.Node) -> object:
        value = super().run_node(n)
        if self.found is None and n.op in ("call_function", "call_module") and isinstance(value, Tensor):
            largest = float(value.abs().max()) if value.is_floating_point() and value.numel() else 0.0
            if not largest <= LARGEST:
                self.found = n, largest
        return value


def _described(module: fx.GraphModule, node: fx.Node) -> str:
    """The layer, or the operator and the module that it is in."""
    if is_weighted(node, ()):
        return f"layer {layer_name(node)}"
    return " in ".join(part for part in (operator_name(node) or node.name, module_path(node)) if part)
