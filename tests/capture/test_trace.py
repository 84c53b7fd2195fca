from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import torch
from tests.capture.networks import Awkward, Transformer, randomise_norms
from torch import Tensor, nn
from torch.nn import functional as F

from clcalib.capture.trace import trace
from clcalib.errors import ArgumentError, CaptureError, NumericalError, TrainModeWarning
from demo_network import resnet20


@pytest.mark.parametrize(("build", "size"), [(resnet20, 32), (Awkward, 32), (Transformer, 16)])
def test_the_graph_is_the_model_for_every_batch(build: Callable[[], nn.Module], size: int) -> None:
    model = randomise_norms(build())
    module = trace(model, torch.randn(1, 3, size, size))
    for batch in (1, 2, 7):
        images = torch.randn(batch, 3, size, size)
        with torch.no_grad():
            assert torch.equal(module(images), model(images))


def test_the_graph_is_functional_and_keeps_names_and_meta() -> None:
    model = randomise_norms(Awkward())
    module = trace(model, torch.randn(2, 3, 32, 32))
    for node in module.graph.nodes:
        assert node.op in ("placeholder", "get_attr", "call_function", "output")
        assert not getattr(getattr(node.target, "_schema", None), "is_mutable", False), node.target
    names = dict(model.named_parameters())
    for name, parameter in module.named_parameters():
        assert torch.equal(parameter, names[name])
        assert parameter.data_ptr() != names[name].data_ptr(), "a copy, so that the float twin never goes stale"
        assert not parameter.requires_grad
    conv = next(node for node in module.graph.nodes if "conv2d" in str(node.target))
    assert [path for path, _ in conv.meta["nn_module_stack"].values()] == ["", "stem", "stem.0"]
    assert tuple(conv.meta["val"].shape[1:]) == (8, 16, 16)


def test_attention_and_norms_stay_whole() -> None:
    module = trace(Transformer().eval(), torch.randn(2, 3, 16, 16))
    targets = [str(node.target) for node in module.graph.nodes]
    assert targets.count("aten.scaled_dot_product_attention.default") == 2
    assert targets.count("aten.layer_norm.default") == 5
    assert targets.count("aten.linear.default") == 9
    assert not any("dropout" in target for target in targets)


def test_the_model_and_the_global_state_are_left_alone() -> None:
    model = randomise_norms(resnet20())
    model.layer1[0].bn1.train()  # flags differ between modules
    flags = [module.training for module in model.modules()]
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    example = torch.randn(2, 3, 32, 32)
    kept = example.clone()
    random_state = torch.get_rng_state()
    with pytest.warns(TrainModeWarning):
        trace(model, example)
    assert [module.training for module in model.modules()] == flags
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())
    assert torch.equal(torch.get_rng_state(), random_state)
    assert torch.equal(example, kept)
    assert torch.is_grad_enabled()
    assert torch.backends.mha.get_fastpath_enabled()


def test_flags_are_restored_after_a_failure() -> None:
    model = Branching()
    model.layer.eval()
    with pytest.warns(TrainModeWarning), pytest.raises(CaptureError):
        trace(model, torch.randn(2, 3))
    assert model.training
    assert not model.layer.training


def test_a_model_in_train_mode_is_captured_in_eval_mode() -> None:
    model = randomise_norms(resnet20())
    images = torch.randn(4, 3, 32, 32)
    with torch.no_grad():
        expected = model(images)
    with pytest.warns(TrainModeWarning, match="captured in eval mode"):
        module = trace(model.train(), images)
    with torch.no_grad():
        assert torch.equal(module(images), expected)


def test_masks_and_tables_are_computed_once() -> None:
    class Table(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.utils.parametrizations.weight_norm(nn.Linear(4, 4))
            self.table = nn.Parameter(torch.randn(3, 4))
            self.register_buffer("index", torch.tensor([2, 0, 1]))

        def forward(self, x: Tensor) -> Tensor:
            mask = x.new_zeros((3, 4))
            mask[1:] = 1.0
            return self.layer(x) + self.table[self.index] * mask

    model = Table().eval()
    module = trace(model, torch.randn(2, 3, 4))
    calls = [str(node.target) for node in module.graph.nodes if node.op == "call_function"]
    assert calls == ["aten.linear.default", "aten.add.Tensor"]
    assert "layer.weight" in module.state_dict()
    x = torch.randn(5, 3, 4)
    with torch.no_grad():
        assert torch.equal(module(x), model(x))


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer(x)
        if x.sum() > 0:  # THE LINE
            return x * 2
        return x


class FixedBatch(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(2, -1)  # THE LINE


class ToNumpy(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.from_numpy(x.detach().numpy() + 1)  # THE LINE


def line_in_forward(kind: type[nn.Module]) -> int:
    with open(__file__, encoding="utf-8") as file:
        lines = file.read().splitlines()
    start = next(index for index, line in enumerate(lines) if line.startswith(f"class {kind.__name__}("))
    return next(index for index in range(start, len(lines)) if "# THE LINE" in lines[index]) + 1


@pytest.mark.parametrize("kind", [Branching, FixedBatch, ToNumpy])
def test_what_cannot_be_captured_names_the_line(kind: type[nn.Module], capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(CaptureError) as caught:
        trace(kind().eval(), torch.randn(2, 3))
    message = str(caught.value)
    assert f"{__file__}:{line_in_forward(kind)}" in message
    assert "\n" not in message
    assert len(message) < 600
    remedy = (
        "use x.shape[0] or -1" if kind is FixedBatch else "rewrite it with tensor operations only, or name the part"
    )
    assert remedy in message
    captured = capfd.readouterr()
    assert (captured.out, captured.err) == ("", ""), "torch's own walls of text are held back"


class TwoInputs(nn.Module):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return x + y


class NoTensor(nn.Module):
    def forward(self, x: Tensor) -> tuple[int, None]:
        return len(x.shape), None


class Mean(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean()


class Noisy(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(x, 0.5, training=True)


class Counter(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x + self.calls


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (TwoInputs, "takes x, y; only one image tensor is supported: wrap the model .* or name the part"),
        (NoTensor, "returns a tuple without a tensor in it"),
        (Mean, "the first dimension must be the batch"),
        (Noisy, "random in eval mode"),
        (Counter, "changes its buffer `calls`"),
    ],
)
def test_what_is_supported_is_said(kind: type[nn.Module], message: str) -> None:
    model = kind().eval()
    with pytest.raises(CaptureError, match=message):
        trace(model, torch.randn(2, 3))
    assert all(float(buffer) == 0 for buffer in model.buffers()), "the model's state is not touched"


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["layer2.0.conv1.weight", "layer2.0.bn1.running_var"])
def test_values_that_are_not_finite_are_named(name: str, bad: float) -> None:
    model = randomise_norms(resnet20())
    model.state_dict()[name].view(-1)[3] = bad
    with pytest.raises(NumericalError, match=f"`{name}`"):
        trace(model, torch.randn(2, 3, 32, 32))


class TwoHalves(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.conv(x).mean((2, 3)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda model: model.half(), "float16 in the parameter `conv.weight`; convert it with model.float"),
        (lambda model: model.head.bfloat16(), "bfloat16 in the parameter `head.weight`"),
        (lambda model: model.double(), "float64 in the parameter `conv.weight`"),
        (lambda model: model.to("meta"), "no values in the parameter `conv.weight`; load the weights"),
        (lambda model: model.head.to("meta"), "one device, got `conv.weight` on cpu, `head.weight` on meta; load"),
    ],
)
def test_models_in_another_type_or_without_values(change: Callable[[nn.Module], object], message: str) -> None:
    model = TwoHalves().eval()
    change(model)
    with pytest.raises(ArgumentError, match=rf"model: expected .*{message}"):
        trace(model, torch.randn(2, 3, 8, 8))


@pytest.mark.parametrize("size", [(3, 3), (5, 19), (1, 7)])
def test_unusual_sizes_are_captured_or_the_model_is_quoted(size: tuple[int, int]) -> None:
    model = TwoHalves().eval()
    if min(size) < 3:
        with pytest.raises(ArgumentError, match="the model says: Calculated padded input size"):
            trace(model, torch.randn(2, 3, *size))
        return
    images = torch.randn(4, 3, *size)
    assert torch.equal(trace(model, images)(images), model(images))


def test_tied_weights_stay_tied() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 3)
            self.b.weight = self.a.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.b(torch.relu(self.a(x)))

    model = Tied().eval()
    module = trace(model, torch.randn(2, 3))
    weights = [tensor for name, tensor in module.named_parameters(remove_duplicate=False) if name.endswith("weight")]
    assert len({id(weight) for weight in weights}) == 1
    x = torch.randn(4, 3)
    assert torch.equal(module(x), model(x))


@pytest.mark.parametrize("shape", [(2, 1, 32, 32), (2, 32, 32), (1, 4, 8, 8)])
def test_images_that_the_model_refuses(shape: tuple[int, ...]) -> None:
    with pytest.raises(ArgumentError, match=r"example: expected images that CifarResNet takes, got .*the model says:"):
        trace(resnet20().eval(), torch.randn(shape))


@pytest.mark.parametrize("example", [torch.zeros(2, 3, 4, 4, dtype=torch.uint8), torch.zeros(0, 3, 4, 4), [1.0]])
def test_examples_that_are_no_images(example: object) -> None:
    with pytest.raises(ArgumentError, match="example: expected"):
        trace(resnet20().eval(), example)  # type: ignore[arg-type]


def test_warnings_of_the_model_pass() -> None:
    class Warns(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            warnings.warn("from the model", UserWarning, stacklevel=1)
            return x * 2

    with pytest.warns(UserWarning, match="from the model"):
        module = trace(Warns().eval(), torch.randn(2, 3))
    assert module(torch.ones(1, 3)).tolist() == [[2.0, 2.0, 2.0]]
