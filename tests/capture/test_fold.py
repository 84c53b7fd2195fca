from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from tests.capture.networks import Awkward, ManyShapes, randomise_norms
from torch import Tensor, fx, nn

from clcalib.capture.fold import fold_batch_norm
from clcalib.capture.trace import trace
from demo_network import resnet20


def norms_in(module: fx.GraphModule) -> int:
    return sum("batch_norm" in str(node.target) for node in module.graph.nodes if node.op == "call_function")


@pytest.mark.parametrize(
    ("build", "size", "before", "left"), [(resnet20, 32, 19, 0), (Awkward, 32, 11, 1), (ManyShapes, 8, 5, 0)]
)
def test_folding_keeps_the_function(build: Callable[[], nn.Module], size: int, before: int, left: int) -> None:
    model = randomise_norms(build())
    module = trace(model, torch.randn(2, 3, size, size))
    state = copy.deepcopy(module.state_dict())
    folded = fold_batch_norm(module)
    images = torch.randn(6, 3, size, size)
    with torch.no_grad():
        expected, result = module(images), folded(images)
    assert norms_in(module) == before, "the original keeps its batch norms"
    assert norms_in(folded) == left, "one that follows no layer stays"
    torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-5)
    assert not torch.equal(result, torch.zeros_like(result))
    assert all(torch.equal(value, state[name]) for name, value in module.state_dict().items())


def test_names_stay_and_a_new_bias_is_beside_its_weight() -> None:
    module = trace(randomise_norms(resnet20()), torch.randn(2, 3, 32, 32))
    folded = fold_batch_norm(module)
    names = set(dict(folded.named_parameters()))
    assert {"conv1.weight", "conv1.bias", "layer3.2.conv2.weight", "layer3.2.conv2.bias", "linear.weight"} <= names
    assert not any("bn" in name for name in folded.state_dict())
    assert not any(parameter.requires_grad for parameter in folded.parameters())
    assert folded.get_parameter("linear.weight") is not module.get_parameter("linear.weight")


def test_value_of_one_channel_by_hand() -> None:
    model = nn.Sequential(nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1, eps=1e-30)).eval()
    conv, norm = model
    assert isinstance(conv, nn.Conv2d)
    assert isinstance(norm, nn.BatchNorm2d)
    conv.weight.data.fill_(3.0)
    assert conv.bias is not None
    conv.bias.data.fill_(2.0)
    norm.weight.data.fill_(5.0)
    norm.bias.data.fill_(7.0)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    norm.running_mean.fill_(1.0)
    norm.running_var.fill_(4.0)
    folded = fold_batch_norm(trace(model, torch.randn(2, 1, 3, 3)))
    assert float(folded.get_parameter("0.weight")) == 3.0 * 5.0 / 2.0
    assert float(folded.get_parameter("0.bias")) == (2.0 - 1.0) * 5.0 / 2.0 + 7.0


class Shared(nn.Module):
    """One convolution before two different batch norms; and one whose output is read twice."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 1, bias=False)
        self.tied = nn.Conv2d(4, 4, 1, bias=False)
        self.twin = nn.Conv2d(4, 4, 1, bias=False)
        self.twin.weight = self.tied.weight
        self.norms = nn.ModuleList([nn.BatchNorm2d(4) for _ in range(5)])
        self.read_twice = nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norms[0](self.conv(x)) + self.norms[1](self.conv(x))
        x = self.norms[2](self.tied(x)) + self.norms[3](self.twin(x))
        y = self.read_twice(x)
        return self.norms[4](y) + y


def test_shared_weights_and_shared_outputs_are_left_alone() -> None:
    module = trace(randomise_norms(Shared()), torch.randn(2, 4, 5, 5))
    folded = fold_batch_norm(module)
    assert norms_in(folded) == norms_in(module) == 5
    images = torch.randn(3, 4, 5, 5)
    with torch.no_grad():
        assert torch.equal(folded(images), module(images))
