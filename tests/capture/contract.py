"""What holds for every captured network: each unit's three pieces put together are the network, bit for bit."""

from __future__ import annotations

import torch
from torch import Tensor, fx, nn

from clcalib.capture.chain import Chain

Run = tuple[Tensor, ...]


def run(piece: fx.GraphModule, *tensors: Tensor) -> Run:
    with torch.no_grad():
        result = piece(*tensors)
    assert isinstance(result, tuple)
    return result


def assert_every_cut_is_exact(chain: Chain, whole: nn.Module, images: Tensor) -> None:
    """suffix(body(prefix(x))) == whole(x) for every unit; state moves forward in O(K), checked against the prefixes."""
    with torch.no_grad():
        outputs = whole(images)
    ends = outputs if isinstance(outputs, tuple) else (outputs,)
    if len(ends) > 1:  # as the graph of several outputs returns them; the one computed last is what is read
        ends = run(chain.subgraph((chain.input_name,), chain.output_names), images)
        assert all(any(torch.equal(end, own) for own in outputs) for end in ends)
    expected = ends[-1]
    state: Run = (images,)
    (feature,) = run(chain.subgraph((chain.input_name,), (chain.feature_name,)), images)
    for index in range(len(chain.units)):
        is_last = index == len(chain.units) - 1
        before = run(chain.prefix(index), images)
        assert len(before) == len(state)
        assert all(torch.equal(a, b) for a, b in zip(before, state, strict=True))
        state = run(chain.body(index), *before)
        assert all(len(tensor) == len(images) for tensor in state), "every cached tensor is indexed by image"
        assert chain.units[index].target in chain.units[index].outputs
        (logits,) = run(chain.suffix(index), *state)
        everything = run(chain.subgraph(chain.units[index].outputs, chain.output_names), *state)
        assert all(torch.equal(own, end) for own, end in zip(everything, ends, strict=True)), chain.units[index].name
        (read,) = run(chain.suffix(index, "features"), *state)
        assert torch.equal(logits, expected), chain.units[index].name
        assert torch.equal(read, expected if is_last else feature), chain.units[index].name


def assert_units_cover_the_graph(chain: Chain) -> None:
    """Units follow each other without gap or overlap, and every layer is in one of them."""
    names = [name for unit in chain.units for name in unit.nodes]
    assert len(set(names)) == len(names)
    assert chain.units[0].inputs == (chain.input_name,)
    assert chain.units[-1].outputs == chain.output_names
    for unit, following in zip(chain.units[:-1], chain.units[1:], strict=True):
        assert unit.outputs == following.inputs
    assert len({unit.name for unit in chain.units}) == len(chain.units)
    assert all(unit.layers for unit in chain.units)
