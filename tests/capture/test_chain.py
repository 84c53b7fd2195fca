from __future__ import annotations

import copy
import dataclasses
import operator
from collections import Counter
from collections.abc import Callable
from typing import Any, Literal

import pytest
import torch
from tests.capture.contract import assert_every_cut_is_exact, assert_units_cover_the_graph, run
from tests.capture.networks import Awkward, ManyShapes, Transformer, UNet, randomise_norms
from torch import Tensor, fx, nn

from clcalib.capture.chain import Chain, capture
from clcalib.errors import ArgumentError, CaptureError
from demo_network import resnet20

NETWORKS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "resnet20": (resnet20, 32),
    "awkward": (Awkward, 32),
    "transformer": (Transformer, 16),
    "unet": (UNet, 8),
    "many_shapes": (ManyShapes, 8),
}


@pytest.mark.parametrize("fold", [False, True])
@pytest.mark.parametrize("unit", ["block", "layer"])
@pytest.mark.parametrize("name", NETWORKS)
def test_prefix_body_suffix_are_the_network(name: str, unit: Literal["block", "layer"], fold: bool) -> None:
    build, size = NETWORKS[name]
    model = randomise_norms(build())
    chain = capture(model, torch.randn(2, 3, size, size), unit=unit, fold=fold, expand=fold)
    assert_units_cover_the_graph(chain)
    for batch in (1, 5):
        images = torch.randn(batch, 3, size, size)
        assert_every_cut_is_exact(chain, chain.module if fold else model, images)


def test_filling_caches_runs_every_node_once() -> None:
    """K bodies one after the other cost one pass over the network: O(K), not O(K^2)."""
    chain = capture(randomise_norms(resnet20()), torch.randn(2, 3, 32, 32), unit="layer")
    counts: Counter[str] = Counter()

    class Counting(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            if n.op == "call_function":
                counts[str(n.target)] += 1
            return super().run_node(n)

    state: tuple[Tensor, ...] = (torch.randn(2, 3, 32, 32),)
    for index in range(len(chain.units)):
        state = Counting(chain.body(index)).run(*state)
    whole = Counter(str(node.target) for node in chain.module.graph.nodes if node.op == "call_function")
    sizes = "aten.sym_size.int"  # a batch size is read anew in each unit that needs it
    assert {name: count for name, count in counts.items() if name != sizes} == {
        name: count for name, count in whole.items() if name != sizes
    }


def test_pieces_share_parameters_with_the_whole() -> None:
    chain = capture(randomise_norms(resnet20()), torch.randn(2, 3, 32, 32))
    weight = chain.module.get_parameter("layer1.0.conv1.weight")
    assert chain.body(1).get_parameter("layer1.0.conv1.weight") is weight
    assert chain.suffix(0).get_parameter("layer1.0.conv1.weight") is weight


def test_inserted_modules_move_into_the_pieces() -> None:
    """The quantization stage puts modules in front of weights and behind tensors."""
    chain = capture(randomise_norms(Transformer()), torch.randn(2, 3, 16, 16))
    changed = with_inserted_modules(chain)
    images = torch.randn(3, 3, 16, 16)
    with torch.no_grad():
        assert not torch.allclose(changed.module(images), chain.module(images))
    assert_every_cut_is_exact(changed, changed.module, images)


class HalfWeight(nn.Module):
    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self) -> Tensor:
        return self.weight / 2


class Coarse(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.round(x * 4) / 4


def with_inserted_modules(chain: Chain) -> Chain:
    """Halve the MLP weights through modules without arguments; round the target of the second unit."""
    module = copy.deepcopy(chain.module)
    for node in list(module.graph.nodes):
        if node.op == "get_attr" and str(node.target).endswith("mlp.0.weight"):
            name = f"half_{node.name}"
            module.add_submodule(name, HalfWeight(module.get_parameter(str(node.target)).detach()))
            with module.graph.inserting_after(node):
                node.replace_all_uses_with(module.graph.call_module(name))
    target = next(node for node in module.graph.nodes if node.name == chain.units[1].target)
    module.add_submodule("coarse", Coarse())
    with module.graph.inserting_after(target):
        rounded = module.graph.call_module("coarse", (target,))
    target.replace_all_uses_with(rounded, delete_user_cb=lambda user: user is not rounded)
    module.recompile()

    def renamed(names: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(rounded.name if name == target.name else name for name in names)

    units = [
        dataclasses.replace(
            unit, inputs=renamed(unit.inputs), outputs=renamed(unit.outputs), target=renamed((unit.target,))[0]
        )
        for unit in chain.units
    ]
    return Chain(module, tuple(units), chain.feature_name)


def test_a_size_is_read_off_a_multiple_of_the_batch() -> None:
    class Windows(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            windows = self.layer(x.reshape(x.shape[0] * 4, 2, 4))
            return windows.reshape(x.shape[0], 4, 2, 4).sum((1, 2))

    chain = capture(Windows().eval(), torch.randn(2, 4, 2, 4))
    linear = next(node.name for node in chain.module.graph.nodes if "linear" in str(node.target))
    x = torch.randn(5, 4, 2, 4)
    (inner,) = run(chain.subgraph((chain.input_name,), (linear,)), x)
    rest = chain.subgraph((linear,), (chain.output_name,))
    assert operator.floordiv in {node.target for node in rest.graph.nodes}
    assert torch.equal(run(rest, inner)[0], chain.module(x))


def test_errors_say_what_is_wrong() -> None:
    chain = capture(randomise_norms(resnet20()), torch.randn(2, 3, 32, 32))
    with pytest.raises(ArgumentError, match="index: expected a unit from 0 to 10, got 11"):
        chain.body(11)
    with pytest.raises(ArgumentError, match="read: expected 'logits' or 'features'"):
        chain.suffix(0, "nothing")  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="no_such_node"):
        chain.subgraph(("no_such_node",), (chain.output_name,))
    with pytest.raises(CaptureError, match="it needs x and is given nothing"):
        chain.subgraph((), (chain.output_name,))
