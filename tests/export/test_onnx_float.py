"""Float graphs: what ONNX Runtime computes is what PyTorch computes, for any batch."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from tests.capture.networks import Awkward, ManyShapes, Transformer, UNet, randomise_norms
from tests.export.graphs import evaluate, operators, run
from tests.tiny import images, tiny
from torch import Tensor, nn
from torch.nn import functional as F

from clcalib.capture.chain import capture
from clcalib.export.onnx.emit import emit, unsupported

NETWORKS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "tiny": (tiny, 8),
    "awkward": (Awkward, 32),
    "transformer": (Transformer, 16),
    "u-net": (UNet, 8),
    "many shapes": (ManyShapes, 8),
}


class Ending(nn.Module):
    """A convolution (so that there is a layer), then what is tried."""

    def __init__(self, function: Callable[[Tensor], object], *modules: nn.Module) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 4, 3, padding=1)
        self.function, self.inner = function, nn.ModuleList(modules)

    def forward(self, x: Tensor) -> object:
        return self.function(self.layer(x), *self.inner)


def windows(x: Tensor) -> Tensor:
    """Windows as in Swin: the batch grows by their number, and shrinks again."""
    count = x.shape[0]
    parts = x.reshape(count, 4, 2, 4, 2, 4).permute(0, 2, 4, 1, 3, 5).reshape(count * 4, 4, 4, 4)
    parts = parts * torch.softmax(parts.flatten(1), 1).reshape(count * 4, 4, 4, 4)
    return parts.reshape(count, 2, 2, 4, 4, 4).permute(0, 3, 1, 4, 2, 5).reshape(count, 4, 8, 8)


def assigned(x: Tensor) -> Tensor:
    y = x * 2
    y[:, 1:3] = x[:, :2] + 1
    y[:, 0] = 0.5
    return y


ENDINGS: dict[str, Callable[..., object]] = {
    "activations": lambda x: F.gelu(x) + F.gelu(x, approximate="tanh") + F.silu(x) + F.mish(x) + F.elu(x, 0.5),
    "hard activations": lambda x: F.hardswish(x) + F.hardsigmoid(x) + F.relu6(x) + F.leaky_relu(x, 0.2) + F.softplus(x),
    "clamps": lambda x: x.clamp(min=-0.1) + x.clamp(max=0.2) + x.clamp(-1, 1),
    "powers": lambda x: x**2 + x.abs().sqrt() + torch.rsqrt(x.abs() + 1) + (x.abs() + 1) ** 1.5 + 1 / (x.abs() + 1),
    "comparisons": lambda x: torch.where((x > 0) & ~(x >= 1), x, -x).masked_fill(x != x, 0.0),
    "numbers": lambda x: 1 - x / 3 + x.mul(2) - torch.maximum(x, torch.zeros_like(x)) + x.exp().log1p().sin(),
    "max pools": lambda x: F.max_pool2d(x, 3, 2, 1, ceil_mode=True).sum((2, 3)) + F.max_pool2d(x, 2).mean((2, 3)),
    "mean pools": lambda x: F.avg_pool2d(x, 3, 2, 1, ceil_mode=True),
    "mean pools without padding": lambda x: F.avg_pool2d(x, 3, 2, 1, count_include_pad=False),
    "adaptive pools": lambda x: F.adaptive_avg_pool2d(x, 3) + F.interpolate(F.adaptive_avg_pool2d(x, 4), size=3),
    "adaptive max pool": lambda x: F.adaptive_max_pool2d(x, 2),
    "bilinear": lambda x: F.interpolate(x, size=(13, 5), mode="bilinear"),
    "bilinear corners": lambda x: F.interpolate(x, scale_factor=1.6, mode="bilinear", align_corners=True),
    "bicubic": lambda x: F.interpolate(x, scale_factor=1.3, mode="bicubic"),
    "nearest": lambda x: F.interpolate(x, scale_factor=2.0),
    "windows": windows,
    "assigned": assigned,
    "splits": lambda x: torch.cat((*x.split([1, 3], 1), *x.chunk(2, 1), torch.stack(x.unbind(1)[:2], 1)), 1),
    "moves": lambda x: torch.roll(x, (2, -3), (2, 3)).flip(1) + F.pad(x, (1, 0, 0, 2))[:, :, 2:, :-1].transpose(2, 3),
    "pads": lambda x: (
        F.pad(x, (1, 2, 0, 1), mode="reflect")[..., :8, :8] + F.pad(x, (1, 1, 1, 1), mode="replicate")[..., 1:9, 1:9]
    ),
    "repeats": lambda x: (
        x.repeat(1, 2, 1, 1) * x.mean((2, 3), keepdim=True).expand(-1, -1, 8, 8).repeat_interleave(2, 1)
    ),
    "reductions": lambda x: x.amax(1) + x.std(1) + x.var((1,), correction=0) + x.norm(dim=1) + x.logsumexp(1),
    "places": lambda x: (x.argmax(1), x.max(1).values, x.max(2).indices),
    "top": lambda x: x.flatten(1).topk(3).values,
    "shares": lambda x: x.log_softmax(1) + x.flatten(2).softmax(-1).reshape(x.shape).cumsum(2),
    "einsum": lambda x: torch.einsum("nchw,ndhw->ncd", x, x.sigmoid()),
    "products": lambda x: (
        torch.bmm(x.flatten(2), x.flatten(2).mT) + torch.baddbmm(x[:, 0, :4, :4], x[:, 1, :4], x[:, 2, :, :4])
    ),
    "pixel shuffle": lambda x: F.pixel_shuffle(x, 2),
    "chosen": lambda x: x[:, [2, 0, 1]] + x[:, -1:].index_select(1, torch.tensor([0, 0, 0])),
    "batch as a number": lambda x: x.sum((1, 2, 3)).reshape(x.shape[0], 1).expand(x.shape[0], 3) * x.shape[0],
    "types": lambda x: (x > 0).to(torch.int64).sum(1).float() + x.sum(1).double().type_as(x),
    "masked attention": lambda x: F.scaled_dot_product_attention(x, x, x, is_causal=True),
}

INNER: dict[str, Callable[[], nn.Module]] = {
    "group norm": lambda: nn.GroupNorm(2, 4),
    "layer norm": lambda: nn.LayerNorm([8, 8]),
    "rms norm": lambda: nn.RMSNorm(8),
    "instance norm": lambda: nn.InstanceNorm2d(4, affine=True),
    "batch norm": lambda: nn.Sequential(nn.ReLU(), nn.BatchNorm2d(4)),
    "prelu": lambda: nn.PReLU(4),
    "dilated groups": lambda: nn.Conv2d(4, 8, (3, 1), (1, 2), (2, 0), (2, 1), groups=2),
    "transposed": lambda: nn.ConvTranspose2d(4, 6, 3, 2, 1, output_padding=1, groups=2, dilation=1),
    "same": lambda: nn.Conv2d(4, 4, 4, padding="same"),
    "reflected": lambda: nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"),
    "one dimension": lambda: nn.Sequential(nn.Flatten(2), nn.Conv1d(4, 4, 5, 2, 1), nn.ConvTranspose1d(4, 2, 3)),
    "three dimensions": lambda: nn.Sequential(
        nn.Unflatten(1, (2, 2)), nn.Conv3d(2, 4, (2, 3, 3)), nn.AvgPool3d((1, 2, 2))
    ),
    "no bias": lambda: nn.Sequential(nn.Flatten(), nn.Linear(256, 5, bias=False)),
    "rows": lambda: nn.Linear(8, 3),
}


def assert_same(model: nn.Module, size: int, is_small: bool = False) -> None:
    torch.manual_seed(0)
    chain = capture(randomise_norms(model), torch.randn(2, 3, size, size))
    emitted = emit(chain, input_shape=(3, size, size))
    for batch in (1, 5):
        x = torch.randn(batch, 3, size, size)
        with torch.no_grad():
            expected = chain.module(x)
        returned = next(node for node in chain.module.graph.nodes if node.op == "output").args[0]
        named = dict(zip(map(str, returned), expected, strict=True)) if isinstance(returned, tuple) else {}
        expected = [named[name] for name in chain.output_names] if named else [expected]
        results = [run(emitted.model, x), *([evaluate(emitted.model, x)] if is_small else [])]
        for result in results:
            assert len(result) == len(expected)
            for own, wanted in zip(result, expected, strict=True):
                assert own.dtype == wanted.dtype
                torch.testing.assert_close(own, wanted, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_compute_the_same(name: str) -> None:
    build, size = NETWORKS[name]
    assert_same(build(), size)


@pytest.mark.parametrize("group", range(4))
def test_operators_compute_the_same(group: int) -> None:
    functions = list(ENDINGS.values())[group::4]  # several in one network: to capture one takes longest
    assert_same(Ending(lambda x: [function(x) for function in functions]), 8)


@pytest.mark.parametrize("group", range(2))
def test_modules_compute_the_same(group: int) -> None:
    modules = [build() for build in list(INNER.values())[group::2]]
    assert_same(Ending(lambda x, *modules: [module(x) for module in modules], *modules), 8)


def test_the_reference_evaluator_agrees() -> None:
    assert_same(tiny(), 8, is_small=True)


def test_names_ends_and_free_batch() -> None:
    model = emit(capture(tiny(), images(2)), metadata={"weights": "abc", "images": "def"}).model
    (given,), (made,) = model.graph.input, model.graph.output
    assert (given.name, [d.dim_param or d.dim_value for d in given.type.tensor_type.shape.dim]) == (
        "input",
        ["batch", 3, 8, 8],
    )
    assert (made.name, [d.dim_param or d.dim_value for d in made.type.tensor_type.shape.dim]) == (
        "logits",
        ["batch", 4],
    )
    names = {step.name for step in model.graph.node}
    assert names >= {"conv", "block.conv1", "block.conv2", "fc"}
    assert any(name.startswith("block/add") for name in names)  # torch 2.11 puts a number behind it
    assert {entry.key: entry.value for entry in model.metadata_props} == {"weights": "abc", "images": "def"}
    assert [entry.version for entry in model.opset_import] == [21]
    assert "Shape" not in operators(model)  # the flattening needs no size at run time


def test_several_outputs_keep_the_names_of_their_nodes() -> None:
    chain = capture(Ending(lambda x: {"a": x.relu(), "b": x.sum((2, 3))}).eval(), torch.randn(2, 3, 8, 8))
    emitted = emit(chain)
    assert emitted.outputs == chain.output_names == tuple(output.name for output in emitted.model.graph.output)


def test_layers_and_products_are_found() -> None:
    chain = capture(Transformer().eval(), torch.randn(2, 3, 16, 16))
    emitted = emit(chain)
    kinds = {step.name: step.op_type for step in emitted.model.graph.node}
    assert set(emitted.layers) == {*chain.layers, *chain.products}
    assert {kinds[emitted.layers[product]] for product in chain.products} == {"MatMul"}
    assert (kinds[emitted.layers["patch"]], kinds[emitted.layers["head"]]) == ("Conv", "Gemm")
    assert unsupported(chain) == []


def test_a_layer_that_is_called_twice_has_two_steps() -> None:
    shared = nn.Conv2d(4, 4, 1)
    chain = capture(Ending(lambda x, module: module(module(x).relu()), shared).eval(), torch.randn(2, 3, 8, 8))
    assert set(emit(chain).layers) == {"layer", "inner.0", "inner.0#2"}
