"""Networks that return several tensors in a structure."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
import torch.utils._pytree as pytree
from tests.capture.contract import assert_every_cut_is_exact, assert_units_cover_the_graph
from tests.capture.detector import Backbone
from torch import Tensor, nn

import clcalib
from clcalib.capture.chain import Chain, capture
from clcalib.capture.outputs import Structured, whole
from clcalib.errors import ArgumentError, CaptureError
from clcalib.quant.insert import fit_policy, insert_quantizers
from clcalib.quant.policy import Bits, build_policy
from clcalib.quant.ranges import RANGE_RULES


class Pair(NamedTuple):
    fine: Tensor
    coarse: Tensor


class Returns(nn.Module):
    """A backbone whose maps are returned in the structure that ``make`` builds."""

    def __init__(self, make: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__()
        self.backbone, self.make = Backbone(), make

    def forward(self, x: Tensor) -> Any:
        maps = self.backbone(x)
        return self.make(maps["fine"], maps["coarse"])


STRUCTURES: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "list": lambda a, b: [a, b],
    "one in a dict": lambda a, b: {"out": a},
    "ordered dict": lambda a, b: OrderedDict(z=a, a=b),
    "named tuple": Pair,
    "nested, with constants": lambda a, b: {"maps": (a, [b]), "none": None, "number": 3},
    "one twice": lambda a, b: (a, b, a),
}


@pytest.mark.parametrize("name", STRUCTURES)
def test_the_structure_is_that_of_the_model(name: str) -> None:
    model = Returns(STRUCTURES[name]).eval()
    chain = capture(model, torch.randn(2, 3, 8, 8))
    images = torch.randn(5, 3, 8, 8)
    with torch.no_grad():
        expected, own = model(images), whole(chain.module)(images)
    assert type(own) is type(expected)
    assert pytree.tree_structure(own) == pytree.tree_structure(expected)
    for a, b in zip(pytree.tree_leaves(own), pytree.tree_leaves(expected), strict=True):
        assert torch.equal(a, b) if isinstance(b, Tensor) else a == b


@pytest.mark.parametrize("unit", ["block", "layer"])
def test_every_output_is_the_target_of_a_unit(unit: Any) -> None:
    chain = capture(Backbone().eval(), torch.randn(2, 3, 8, 8), unit=unit)
    assert len(chain.output_names) == 2
    assert set(chain.output_names) <= {unit.target for unit in chain.units}
    assert chain.feature_name == chain.output_name == chain.output_names[-1], "the last one that is computed"
    assert_units_cover_the_graph(chain)
    assert_every_cut_is_exact(chain, chain.module, torch.randn(3, 3, 8, 8))


class Pyramid(nn.Module):
    """Every stage is a residual block, and the outputs of all leave the network."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, 1, 1)
        self.stages = nn.ModuleList([Stage() for _ in range(3)])

    def forward(self, x: Tensor) -> list[Tensor]:
        maps = [self.stem(x)]
        for stage in self.stages:
            maps.append(stage(maps[-1]))
        return maps[1:]


class Stage(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(4, 4, 3, 1, 1), nn.Conv2d(4, 4, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.b(torch.relu(self.a(x))) + x)


def test_outputs_that_wait_for_the_end_join_no_blocks() -> None:
    chain = capture(Pyramid().eval(), torch.randn(2, 3, 8, 8))
    assert [unit.name for unit in chain.units] == ["stem", "stages.0", "stages.1", "stages.2"]
    assert [len(unit.outputs) for unit in chain.units] == [1, 1, 2, 3]
    assert_every_cut_is_exact(chain, chain.module, torch.randn(3, 3, 8, 8))


def test_quantizers_leave_structure_and_units_as_they_are() -> None:
    chain = capture(Pyramid().eval(), torch.randn(2, 3, 8, 8))
    policy = fit_policy(chain, build_policy(chain.layers, Bits(4, 4)))
    quantized: Chain = insert_quantizers(chain, policy, RANGE_RULES["minmax"]).chain
    assert len(quantized.output_names) == 3
    assert quantized.units[-1].outputs == quantized.output_names
    images = torch.randn(2, 3, 8, 8)
    result = whole(quantized.module)(images)
    assert isinstance(whole(quantized.module), Structured)
    assert [tuple(tensor.shape) for tensor in result] == [(2, 4, 8, 8)] * 3


def test_an_output_without_the_batch_is_refused() -> None:
    model = Returns(lambda a, b: (a, b.mean())).eval()
    with pytest.raises(CaptureError, match=r"returns the shape \(\) for 2 images; the first dimension must be the"):
        capture(model, torch.randn(2, 3, 8, 8))


class Detects(nn.Module):
    """Returns a mask and indices behind the floating values that they are made of."""

    def __init__(self, *, returns_scores: bool = True) -> None:
        super().__init__()
        self.conv, self.returns_scores = nn.Conv2d(3, 4, 3, padding=1), returns_scores

    def forward(self, x: Tensor) -> Any:
        scores = self.conv(x)
        found = {"classes": scores.argmax(1), "any": scores.mean((1, 2, 3)) > 0}
        return {"scores": scores, **found} if self.returns_scores else found


def test_masks_and_indices_are_returned_and_floating_values_are_reconstructed() -> None:
    model, images = Detects().eval(), torch.randn(32, 3, 8, 8)
    chain = capture(model, images)
    assert chain.output_name == chain.feature_name == chain.units[-1].target
    assert chain.output_name != chain.output_names[-1]
    recipe = clcalib.with_last_phase(clcalib.with_contrastive(clcalib.recipes.qdrop(steps=3)), steps=2)
    calibration = clcalib.CalibrationSet.from_tensor(images)
    own = clcalib.quantize(model, calibration, recipe=recipe, bits=Bits(8, 8)).model(images)
    assert [own[name].dtype for name in ("scores", "classes", "any")] == [torch.float32, torch.int64, torch.bool]
    assert torch.equal(own["classes"], own["scores"].argmax(1))


def test_a_network_that_returns_no_floating_values_is_told() -> None:
    calibration = clcalib.CalibrationSet.from_tensor(torch.randn(8, 3, 8, 8))
    model = Detects(returns_scores=False).eval()
    with pytest.raises(ArgumentError, match="model: expected floating values behind the unit conv, got"):
        clcalib.quantize(model, calibration, recipe=clcalib.recipes.nearest(), bits=Bits(8, 8))
