"""A piece of which several workers have parts gives the bits of the whole one, forward and backward."""

from __future__ import annotations

import functools
import itertools

import pytest
import torch

from clcalib.calibrate.fuse import fuse
from clcalib.calibrate.recipe import Term
from clcalib.calibrate.store import as_rows
from clcalib.calibrate.unit_data import UnitData
from clcalib.capture.chain import Chain, capture
from clcalib.capture.running import images_at_once
from clcalib.objectives.batch import Need
from clcalib.objectives.prediction import Prediction
from clcalib.placed.division import divide, mark_units
from clcalib.placed.release import held_bytes
from tests.placed.loopback import layers_of_tiny, on_worker
from tests.tiny import images


class Reread(torch.nn.Module):
    """A tensor that one unit reads twice and a later one again: the order of the sum of its gradients matters."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = (torch.nn.Linear(24, 24) for _ in range(4))

    def forward(self, x):
        y = self.a(x.flatten(1)[:, :24]).relu()
        z = self.c(self.b(y) * y + y).relu()
        return self.d(z + y)


@functools.cache
def chain_of(network: str) -> Chain:
    if network == "tiny":
        return layers_of_tiny()
    torch.manual_seed(0)
    chain = capture(Reread().eval(), images(2), unit="layer")
    mark_units(chain)
    return chain


def divisions(units: int) -> list[tuple[int, ...]]:
    """Of so many units, all ways to deal them to one, two and three workers."""
    choices = (cuts for count in range(3) for cuts in itertools.combinations(range(1, units), count))
    return [tuple(sum(unit >= cut for cut in cuts) for unit in range(units)) for cuts in choices]


def rest_of(chain, index: int, dtype):
    """The float remainder behind a unit, read at the feature and at the logits, as the walk makes it."""
    inputs, outputs = chain.units[index].outputs, [chain.feature_name, chain.output_name]
    piece = chain.cut(inputs, outputs)
    piece = piece if dtype is None else fuse(piece, dtype)
    return piece if chain.placed is None else chain.placed(piece, inputs, outputs, dtype)


def passes(rest, state):
    """Outputs, and the gradients of a loss that also looks at the unit's own outputs."""
    leaves = [tensor.clone().requires_grad_(True) for tensor in state]
    made = [leaf * 1.5 for leaf in leaves]
    feature, logits = rest(*(tensor.view_as(tensor) for tensor in made))
    loss = feature.sin().sum() + logits.square().sum() + sum(tensor.square().sum() for tensor in made)
    return [feature.detach(), logits.detach(), *torch.autograd.grad(loss, leaves)]


@pytest.mark.parametrize("workers", divisions(4))
@pytest.mark.parametrize("dtype", [None, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("network", ["tiny", "rereading"])
def test_forward_and_backward_are_those_of_the_whole(network, workers, dtype):
    chain = chain_of(network)
    for index in range(len(workers) - 1):
        state = chain.prefix(index + 1)(images(6))
        expected = passes(rest_of(chain, index, dtype), state)
        own, _ = on_worker(chain, workers, workers[index])
        for found, wanted in zip(passes(rest_of(own, index, dtype), state), expected, strict=True):
            assert found.dtype == wanted.dtype
            assert torch.equal(found, wanted)


def test_without_gradients_nothing_is_kept_and_the_whole_network_runs():
    chain, workers = chain_of("tiny"), (0, 1, 2, 2)
    own, links = on_worker(chain, workers, 0)
    whole = own.subgraph((own.input_name,), (own.output_name,))
    with torch.no_grad():
        assert torch.equal(whole(images(5))[0], chain.module(images(5)))
    assert [message.values["gradients"] for message in links.asked] == [None, None]
    assert all(not answers._kept for answers in links.answers.values())
    assert images_at_once(whole) == images_at_once(chain.module)


def test_an_integer_tensor_passes_and_gets_no_gradient():
    """A mask that a later worker reads has no gradient, and asks for none."""

    class Masked(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = torch.nn.Linear(6, 6), torch.nn.Linear(6, 3)

        def forward(self, x):
            return self.second(self.first(x).relu()) * (x[:, :3] > 0)

    torch.manual_seed(0)
    chain, x = capture(Masked().eval(), torch.randn(4, 6), unit="layer"), torch.randn(4, 6)
    mark_units(chain)
    own, _ = on_worker(chain, (0, 1), 0)
    pieces = [each.subgraph((each.input_name,), (each.output_name,)) for each in (chain, own)]
    found = []
    for piece in pieces:
        leaf = x.clone().requires_grad_(True)
        (output,) = piece(leaf)
        found.append((output.detach(), torch.autograd.grad(output.sum(), leaf)[0]))
    assert all(torch.equal(*pair) for pair in zip(*found, strict=True))


def test_parts_have_the_nodes_of_their_worker():
    chain, workers = chain_of("tiny"), (0, 0, 1, 1)
    parts = divide(chain.cut((chain.input_name,), (chain.output_name,)), workers)
    assert [part.worker for part in parts] == [0, 1]
    assert parts[1].inputs == parts[0].made  # a shortcut among them
    own, _ = on_worker(chain, workers, 1)
    sizes = [held_bytes(on_worker(chain, workers, rank)[0].module) for rank in (0, 1)]
    assert sum(sizes) == held_bytes(chain.module)
    assert held_bytes(own.body(3)) == held_bytes(chain.body(3))


@pytest.mark.parametrize("count", [None, 4])
def test_what_lies_behind_a_unit_begins_with_a_view(count):
    """There its gradients are one sum, whoever computes them; without, their order would depend on who does."""
    seen = list[torch.Tensor]()

    class Rest(torch.nn.Module):
        def forward(self, x):
            seen.append(x)
            return (x,)

    rows = as_rows(images(8))
    data = UnitData((rows,), (rows,), rows, 0, read=Rest(), read_points=(Need.LOGITS,), keys={})
    output = images(8).requires_grad_(True) * 1
    term = Term(Prediction(), images=count)
    data.batches({"training": (output,)}, torch.arange(8), 0.0, [], [term])
    assert seen[0] is not output
    assert seen[0]._base is output
