"""What is written out of place here is, node by node, what torch makes of it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from tests.capture.networks import Awkward, randomise_norms
from torch import Tensor, fx, nn
from torch.export import Dim, ExportedProgram
from torch.nn import functional as F

from clcalib.capture.functional import IS_KNOWN, functional
from clcalib.capture.graph import module_stack
from clcalib.capture.unlift import unlift
from demo_network import resnet20
from mobilenetv2 import mobilenetv2

pytestmark = pytest.mark.skipif(not IS_KNOWN, reason="an older torch takes its own way")


def exported(model: nn.Module, size: int = 8) -> ExportedProgram:
    with torch.no_grad():
        return torch.export.export(
            model.eval(), (torch.randn(2, 3, size, size),), dynamic_shapes=({0: Dim.AUTO},), strict=False
        )


def described(module: fx.GraphModule) -> list[tuple[object, ...]]:
    """All of a graph that anyone reads later."""
    return [
        (
            node.op,
            node.name,
            node.target,
            str(node.args),
            str(node.kwargs),
            module_stack(node),
            None if node.name.startswith("sym_size") else node.meta.get("stack_trace"),
            value_described(node.meta.get("val")),
        )
        for node in module.graph.nodes
    ]


def value_described(value: object) -> object:
    if isinstance(value, Tensor):
        return str(tuple(value.shape)), str(value.stride()), value.dtype, value.device
    return str(value)


def assert_is_what_torch_makes(model: nn.Module, size: int = 8) -> None:
    program = exported(model, size)
    graph = functional(program)
    assert graph is not None
    ours = unlift(program, graph)
    slow = program.run_decompositions({})
    theirs = unlift(slow, slow.graph)
    for own, other in zip(described(ours), described(theirs), strict=True):
        assert own == other
    images = torch.randn(3, 3, size, size)
    with torch.no_grad():
        assert torch.equal(ours(images), theirs(images))
        assert torch.equal(ours(images), model(images.clone()))


class Layers(nn.Module):
    """A convolution, and behind it whatever is asked for."""

    def __init__(self, rest: Callable[[Layers, Tensor], Tensor]) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.other = nn.Conv2d(8, 8, 1)
        self.norm = nn.BatchNorm2d(8)
        self.linear = nn.Linear(8, 4)
        self.drop = nn.Dropout()
        self.register_buffer("offset", torch.ones(8, 1, 1))
        self.rest = rest

    def forward(self, x: Tensor) -> Tensor:
        return self.rest(self, self.conv(x))


def residual(net: Layers, x: Tensor) -> Tensor:
    y = net.other(x)
    y += x
    return y


IN_PLACE = {
    "relu": lambda net, x: x.relu_(),
    "relu6": lambda net, x: F.relu6(x, inplace=True),
    "hardtanh": lambda net, x: F.hardtanh(x, -0.5, 0.7, inplace=True),
    "ReLU6": lambda net, x: nn.ReLU6(inplace=True)(x),
    "hardswish": lambda net, x: F.hardswish(x, inplace=True),
    "hardsigmoid": lambda net, x: F.hardsigmoid(x, inplace=True),
    "silu": lambda net, x: F.silu(x, inplace=True),
    "mish": lambda net, x: F.mish(x, inplace=True),
    "elu": lambda net, x: F.elu(x, 0.3, inplace=True),
    "leaky_relu": lambda net, x: F.leaky_relu(x, 0.2, inplace=True),
    "sigmoid": lambda net, x: x.sigmoid_(),
    "tanh": lambda net, x: x.tanh_(),
}


@pytest.mark.parametrize("name", IN_PLACE)
def test_each_operator_in_place(name: str) -> None:
    """What read the tensor before reads the old value, what reads it later the new one, under either name."""

    def rest(net: Layers, x: Tensor) -> Tensor:
        before = net.other(x)
        after = IN_PLACE[name](net, x)
        return torch.cat((before, x, net.other(after)), 1)

    assert_is_what_torch_makes(Layers(rest))


KEPT = {
    "activations": lambda net, x: F.gelu(F.silu(F.hardswish(F.hardsigmoid(F.relu(F.elu(x)))))),
    "more": lambda net, x: F.mish(torch.tanh(torch.sigmoid(F.leaky_relu(F.relu6(F.hardtanh(x, -2, 2)))))),
    "pools": lambda net, x: F.adaptive_avg_pool2d(F.avg_pool2d(F.max_pool2d(x, 3, 1, 1), 2), (2, 2)),
    "sums": lambda net, x: (x + net.other(x) * 2 - x.relu()) / 3,
    "norm": lambda net, x: net.norm(x) + net.norm(net.other(x)),
    "head": lambda net, x: net.linear(net.drop(F.adaptive_avg_pool2d(net.norm(x).relu_(), 1).flatten(1))),
    "mean": lambda net, x: net.linear(net.drop(x.mean((2, 3)))),
    "last": lambda net, x: net.linear(F.layer_norm(x.permute(0, 2, 3, 1), (8,))).transpose(1, 2),
    "pad": lambda net, x: F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2)) + 1,
    "buffer": lambda net, x: x * net.offset,
    "sums in place": residual,
    "products in place": lambda net, x: net.norm(net.other(x)).mul_(x).sub_(2).mul_(3).add_(x),
    "gate": lambda net, x: net.norm(x).relu_() * torch.sigmoid(net.other(x.mean((2, 3), keepdim=True)).relu_()),
    "norm without factors": lambda net, x: F.batch_norm(x, net.norm.running_mean, net.norm.running_var),
    "written and returned": lambda net, x: net.other(x.relu_()).sigmoid_(),
    "written twice": lambda net, x: net.other(x.relu_().sigmoid_()),
}


@pytest.mark.parametrize("name", KEPT)
def test_operators_that_are_kept(name: str) -> None:
    assert_is_what_torch_makes(Layers(KEPT[name]))


def viewed_before(net: Layers, x: Tensor) -> Tensor:
    half = x[:, :4]
    x.relu_()
    return half


REFUSED = {
    "the tensor is a view": lambda net, x: x[:, :4].relu_(),
    "a view is read later": viewed_before,
    "a permuted view": lambda net, x: x.permute(0, 2, 3, 1).relu_(),
    "dropout may return its input": lambda net, x: net.other(net.drop(x).relu_()),
    "dropout in place": lambda net, x: F.dropout(x, 0.5, False, True).relu_(),
    "flatten may return its input": lambda net, x: x.flatten(1).relu_(),
    "contiguous may return its input": lambda net, x: x.permute(0, 2, 3, 1).contiguous().relu_(),
    "a view of what was written": lambda net, x: x.relu_()[:, :4],
    "flattened where it was written": lambda net, x: x.relu_().flatten(1),
    "reshape": lambda net, x: x.reshape(x.shape[0], -1).relu_(),
    "to": lambda net, x: x.to(torch.float32).relu_(),
    "chunk": lambda net, x: torch.cat(x.chunk(2, 1), 1),
    "a buffer": lambda net, x: x + net.offset.relu_(),
    "a parameter": lambda net, x: F.conv2d(x, net.other.weight.relu_()),
    "another shape": lambda net, x: x.add_(net.offset),
    "another order": lambda net, x: x.add_(x.permute(0, 1, 3, 2)),
    "another type": lambda net, x: x.mul_(net.offset.double().view(8, 1, 1)),
    "unknown": lambda net, x: x.cumsum(1),
    "training": lambda net, x: F.batch_norm(x, None, None, training=True),
    "training dropout": lambda net, x: F.dropout(x, 0.5, True),
    "returned twice": lambda net, x: (x, x.relu_()),
    "view returned too": lambda net, x: (x.relu(), x[:, :4], x),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_in_doubt_is_left_to_torch(name: str) -> None:
    assert functional(exported(Layers(REFUSED[name]))) is None


def test_an_input_that_is_written_to_is_left_to_torch() -> None:
    assert functional(exported(nn.Sequential(nn.ReLU(inplace=True), nn.Conv2d(3, 4, 1)))) is None


def test_an_input_that_is_called_like_a_result_is_left_to_torch() -> None:
    class Named(nn.Module):
        def forward(self, relu: Tensor) -> Tensor:
            return torch.relu(relu)

    assert functional(exported(Named())) is None


@pytest.mark.parametrize("build", [resnet20, mobilenetv2])
def test_networks(build: Callable[[], nn.Module]) -> None:
    assert_is_what_torch_makes(randomise_norms(build()), 32)


@pytest.mark.parametrize("name", ["resnet18", "squeezenet1_1", "mobilenet_v2"])
def test_networks_of_torchvision_that_write_in_place(name: str) -> None:
    models = pytest.importorskip("torchvision").models
    assert_is_what_torch_makes(models.get_model(name, weights=None), 32)


def test_a_network_that_is_left_to_torch() -> None:
    assert functional(exported(Awkward(), 32)) is None
