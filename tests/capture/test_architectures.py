"""Networks as torchvision and timm build them: captured bit for bit, with the batch left free."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from tests.capture.contract import assert_every_cut_is_exact, assert_units_cover_the_graph
from tests.capture.networks import randomise_norms
from torch import nn

from clcalib.capture.chain import Chain, capture
from clcalib.capture.fold import fold_batch_norm
from clcalib.capture.graph import operator_name
from clcalib.capture.trace import trace
from clcalib.capture.units import count_single_cuts, group_units

torchvision = pytest.importorskip("torchvision")
timm = pytest.importorskip("timm")


def from_torchvision(name: str) -> Callable[..., nn.Module]:
    return lambda **options: torchvision.models.get_model(name, weights=None, **options)


def from_timm(name: str) -> Callable[..., nn.Module]:
    return lambda **options: timm.create_model(name, pretrained=False, **options)


@dataclass(frozen=True)
class Case:
    build: Callable[..., nn.Module]
    size: int  # pixels; small where the architecture permits
    units: int  # of kind block
    cuts: int  # points that one tensor crosses alone, as captured
    options: tuple[tuple[str, Any], ...] = ()


CASES = {
    "resnet18": Case(from_torchvision("resnet18"), 64, 10, 22),
    "resnet50": Case(from_torchvision("resnet50"), 64, 18, 38),
    "mobilenet_v2": Case(from_torchvision("mobilenet_v2"), 64, 20, 71),
    "regnet_x_400mf": Case(from_torchvision("regnet_x_400mf"), 64, 24, 49),
    "mnasnet0_5": Case(from_torchvision("mnasnet0_5"), 64, 21, 70),
    "efficientnet_lite0": Case(from_timm("efficientnet_lite0"), 64, 20, 70),
    "deit_tiny": Case(from_timm("deit_tiny_patch16_224"), 64, 26, 31, (("img_size", 64),)),
    "swin_tiny": Case(from_timm("swin_tiny_patch4_window7_224"), 112, 29, 74, (("img_size", 112),)),
    "convnext_atto": Case(from_timm("convnext_atto"), 64, 17, 33),
    "fastvit_t8": Case(from_timm("fastvit_t8"), 64, 32, 40),
}


def unit_kinds(chain: Chain) -> list[Chain]:
    return [chain, Chain(chain.module, group_units(chain.module, "layer"), chain.feature_name)]


FAST = ("resnet18", "convnext_atto")  # the others take more than five seconds each


@pytest.mark.parametrize(
    "name", [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in CASES]
)
def test_architecture(name: str) -> None:
    case = CASES[name]
    model = randomise_norms(case.build(**dict(case.options)))
    example = torch.randn(2, 3, case.size, case.size)
    module = trace(model, example)
    for batch in (1, 2, 5):
        images = torch.randn(batch, 3, case.size, case.size)
        with torch.no_grad():
            assert torch.equal(module(images), model(images))
    assert count_single_cuts(module) in (case.cuts, case.cuts + 1)  # torch 2.11 writes an operator more of convnext
    folded = fold_batch_norm(module)
    with torch.no_grad():
        expected = module(example)
        error = (folded(example) - expected).abs().max() / expected.abs().max()
    assert error < 1e-5
    assert not _foldable_norms(folded)
    chain = Chain(folded, group_units(folded), _feature(folded))
    assert len(chain.units) == case.units
    for divided in unit_kinds(chain):
        assert_units_cover_the_graph(divided)
        assert_every_cut_is_exact(divided, folded, example)


def test_a_small_network_from_torchvision_through_the_front_door() -> None:
    chain = capture(randomise_norms(CASES["resnet18"].build()), torch.randn(1, 3, 64, 64))
    names = [f"layer{stage}.{block}" for stage in (1, 2, 3, 4) for block in (0, 1)]
    assert [unit.name for unit in chain.units] == ["conv1", *names, "fc"]
    assert chain.units[3].layers == ("layer2.0.conv1", "layer2.0.conv2", "layer2.0.downsample.0")


def _foldable_norms(module: torch.fx.GraphModule) -> list[str]:
    norms = [node for node in module.graph.nodes if operator_name(node) == "batch_norm"]
    return [node.name for node in norms if "conv" in operator_name(node.args[0]) and len(node.args[0].users) == 1]


def _feature(module: torch.fx.GraphModule) -> str:
    last = [node for node in module.graph.nodes if operator_name(node) in ("linear", "conv2d")][-1]
    return str(last.args[0])
