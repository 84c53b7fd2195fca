"""A float model with the quantized weights computes what the quantized one does with float activations."""

from __future__ import annotations

import copy

import pytest
import torch
from tests.capture.networks import Awkward, ManyShapes, Transformer, UNet, randomise_norms
from tests.quant.test_reparameterize import with_uneven_channels
from tests.tiny import Tiny, images, tiny
from torch import nn
from torch.nn import functional as F

import clcalib
from clcalib.errors import ArgumentError

NEAREST = clcalib.recipes.nearest()


def quantized(model, shown, **options):
    settings = {"recipe": NEAREST, "bits": clcalib.Bits(3, None), "measured_images": 0, **options}
    return clcalib.quantize(model, clcalib.CalibrationSet.from_tensor(shown), **settings)


def loaded(result, model):
    """A float model of the same architecture, with the quantized weights."""
    other = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.fill_(0.5)
    assert other.load_state_dict(result.float_state_dict(model), strict=True)
    return other.eval()


def check(result, model, shown, tolerance=1e-5):
    with torch.no_grad():
        own, plain, floats = result.model(shown), loaded(result, model)(shown), model(shown)
    torch.testing.assert_close(plain, own, rtol=tolerance, atol=tolerance * float(own.abs().max()))
    assert float((own - floats).abs().max()) > 100 * float((own - plain).abs().max())  # 3 bits do change something


class Plain(nn.Module):
    """One after the other: a norm without affine map behind a layer without bias, a tied head, a norm that stays."""

    def __init__(self):
        super().__init__()
        self.first = nn.BatchNorm2d(3, eps=1e-3)
        self.conv = nn.Conv2d(3, 6, 3, bias=False)
        self.norm = nn.BatchNorm2d(6, affine=False, eps=1e-2)
        self.fc = nn.Linear(6, 6)
        self.same = nn.Linear(6, 6)
        self.same.weight = self.fc.weight

    def forward(self, x):
        x = F.relu(self.norm(self.conv(self.first(x)))).mean((2, 3))
        return self.same(F.relu(self.fc(x)))


def transformer():
    torch.manual_seed(0)
    return with_uneven_channels(Transformer()).eval()


@pytest.mark.parametrize(
    ("build", "size", "options"),
    [
        (tiny, 8, {}),
        (tiny, 8, {"overrides": {"block.conv1": "float"}}),
        (lambda: randomise_norms(Awkward()), 32, {}),
        (lambda: randomise_norms(ManyShapes()), 8, {}),
        (lambda: UNet(3).eval(), 8, {}),
        (transformer, 16, {"is_layer_norm_reparameterized": True}),
    ],
)
def test_the_plain_model_computes_the_same(build, size, options):
    torch.manual_seed(0)
    model, shown = build(), torch.randn(16, 3, size, size)
    check(quantized(model, shown, **options), model, shown)


def test_a_norm_without_affine_map_takes_the_bias_as_its_mean():
    torch.manual_seed(0)
    model, shown = randomise_norms(Plain()), torch.randn(16, 3, 8, 8)
    result = quantized(model, shown, first_last_bits="same")
    check(result, model, shown)
    state = result.float_state_dict(model)
    assert torch.equal(state["fc.weight"], state["same.weight"])
    assert torch.equal(state["first.running_mean"], model.first.running_mean)
    bias = dict(result.quantized.chain.module.named_parameters())["conv.bias"]
    assert torch.equal(state["norm.running_mean"], -bias)
    assert torch.equal(state["norm.running_var"], torch.ones(6) - 1e-2)


def test_optimised_weights_and_every_name_of_the_model():
    model, shown = tiny(), images(48)
    result = quantized(model, shown, recipe=clcalib.recipes.adaround(steps=3), bits=clcalib.Bits(2, 4))
    state = result.float_state_dict(model)
    assert list(state) == list(model.state_dict())
    for layer, source in result.quantized.sources.items():
        weight = result.quantized.weight(layer)
        assert torch.equal(state[source], weight())
        codes = state[source] / weight.scale + weight.zero_point
        torch.testing.assert_close(codes, weight.codes.float(), rtol=0, atol=1e-4)
    for norm in (model.bn, model.block.bn1, model.block.bn2):
        name = next(key for key, module in model.named_modules() if module is norm)
        assert torch.equal(state[f"{name}.weight"], torch.ones(8))
        assert torch.equal(state[f"{name}.running_mean"], torch.zeros(8))


@pytest.mark.parametrize("epsilon", [1e-5, 1e-3, 1e-2, 0.3])
def test_the_identity_is_exact(epsilon):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, eps=epsilon), nn.Flatten(), nn.Linear(16, 2)).eval()
    result = quantized(model, torch.randn(16, 3, 2, 2))
    norm, x = loaded(result, model)[1], torch.randn(8, 4, 2, 2)
    assert torch.equal(norm(x), x)


def test_a_part_of_a_model_has_its_path_in_front():
    class Whole(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), tiny())

        def forward(self, x):
            return self.body(x)

    torch.manual_seed(0)
    model, shown = Whole().eval(), images(32)
    result = quantized(model, shown, submodule="body.1")
    check(result, model, shown)
    state = result.float_state_dict(model)
    assert torch.equal(state["body.0.weight"], model.body[0].weight)
    assert not torch.equal(state["body.1.fc.weight"], model.body[1].fc.weight)


def test_what_cannot_be_mapped_back_is_told():
    torch.manual_seed(0)
    normed = nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 4, 3, padding=1))
    model = nn.Sequential(normed, nn.ReLU(), nn.Flatten(), nn.Linear(256, 4)).eval()
    result = quantized(model, images(16))
    with pytest.raises(ArgumentError, match="model: expected a parameter for each weight, got none called 0.weight"):
        result.float_state_dict(model)
    other = quantized(tiny(), images(16))
    with pytest.raises(
        ArgumentError, match="model: expected the model that was quantized, got other shapes: .*fc.weight"
    ):
        other.float_state_dict(Tiny(classes=7).eval())


def test_two_values_for_one_parameter_are_told():
    class Tied(nn.Module):
        """The table of tokens is the last layer's weight too; quantizing it leaves the table in float."""

        def __init__(self):
            super().__init__()
            self.table = nn.Embedding(10, 8)
            self.middle = nn.Linear(8, 8)
            self.head = nn.Linear(8, 10, bias=False)
            self.head.weight = self.table.weight

        def forward(self, tokens):
            return self.head(F.relu(self.middle(self.table(tokens))).mean(1))

    torch.manual_seed(0)
    model, tokens = Tied().eval(), torch.randint(0, 10, (32, 5))
    result = quantized(model, tokens)
    with pytest.raises(ArgumentError, match="a value of its own for each use .*, got several for .*weight"):
        result.float_state_dict(model)
    settled = quantized(model, tokens, overrides={"*": "float", "middle": "W3"})
    plain = loaded(settled, model)
    torch.testing.assert_close(plain(tokens), settled.model(tokens))
    assert plain.head.weight is plain.table.weight


@pytest.mark.slow
def test_a_network_of_timm():
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    model = randomise_norms(timm.create_model("mobilenetv3_small_050", pretrained=False))
    shown = torch.randn(16, 3, 64, 64)
    check(quantized(model, shown), model, shown, tolerance=1e-4)
