"""The quantized network is an ordinary module: torch exports, compiles, copies and saves it, with the same bits."""

from __future__ import annotations

import copy
import shutil

import pytest
import torch
from tests.capture.networks import Awkward, Transformer, randomise_norms
from tests.tiny import images, tiny
from torch import nn

import clcalib

# Of torch 2.11, about code of its own, where a graph with several outputs is copied, and a program loaded.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning"),
    pytest.mark.filterwarnings("ignore:The given buffer is not writable:UserWarning"),
]

NEAREST = clcalib.recipes.nearest()


class TwoOutputs(nn.Module):
    """A dictionary of two tensors."""

    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 2, 1)

    def forward(self, x):
        features = torch.relu(self.body(x))
        return {"features": features, "map": self.head(features)}


def transformer():
    return Transformer().eval()


CASES = {
    "residual": (tiny, 8, {}),
    "awkward": (lambda: randomise_norms(Awkward()), 32, {}),
    "transformer": (transformer, 16, {"softmax_grid": "log_sqrt2", "gelu_grid": "twin"}),
    "two outputs": (lambda: TwoOutputs().eval(), 8, {}),
}


@pytest.fixture(scope="module", params=CASES)
def case(request):
    """The quantized network, images and its own answer."""
    build, size, options = CASES[request.param]
    torch.manual_seed(0)
    model, shown = build(), torch.randn(16, 3, size, size)
    return (quantized(model, shown, **options), shown)


def quantized(model, shown, **options):
    settings = {"recipe": NEAREST, "bits": clcalib.Bits(3, 4), "measured_images": 0, **options}
    return clcalib.quantize(model, clcalib.CalibrationSet.from_tensor(shown), **settings).model


def assert_same(found, own):
    if isinstance(own, dict):
        assert list(found) == list(own)
        for name, tensor in own.items():
            assert_same(found[name], tensor)
        return
    assert torch.equal(found, own)
    assert float(own.std()) > 0


def export(network, shown):
    batch = torch.export.Dim("batch", min=1, max=1024)
    return torch.export.export(network, (shown[:4],), dynamic_shapes=({0: batch},))


def test_it_is_exported_again_with_a_free_batch(case):
    network, shown = case
    program = export(network, shown).module()
    for count in (1, 3, 16):
        assert_same(program(shown[:count]), network(shown[:count]))


def test_an_exported_program_is_saved_and_loaded(case, tmp_path):
    network, shown = case
    torch.export.save(export(network, shown), tmp_path / "network.pt2")
    again = torch.export.load(tmp_path / "network.pt2").module()
    assert_same(again(shown), network(shown))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_it_is_compiled(case):
    network, shown = case
    torch.compiler.reset()
    with torch.no_grad():
        own = network(shown)
        assert_same(torch.compile(network, backend="aot_eager", fullgraph=True)(shown), own)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None and shutil.which("clang++") is None, reason="needs a C++ compiler")
@pytest.mark.filterwarnings("ignore")  # those of torch's own compiler
@pytest.mark.parametrize("name", ["residual", "transformer"])
def test_inductor_compiles_it(name):
    """Its own kernels may round differently, so a value at the edge of two codes may change."""
    build, size, options = CASES[name]
    torch.manual_seed(0)
    model, shown = build(), torch.randn(16, 3, size, size)
    network = quantized(model, shown, **options)
    torch.compiler.reset()
    with torch.no_grad():
        found, own = torch.compile(network)(shown), network(shown)
    assert float((found - own).abs().mean()) < 1e-2 * float(own.std())


def test_copies_do_not_depend_on_each_other(case):
    network, shown = case
    own = network(shown)
    twin = copy.deepcopy(network)
    assert_same(twin(shown), own)
    with torch.no_grad():
        for tensor in twin.state_dict().values():
            tensor.zero_()
    assert_same(network(shown), own)


def test_the_state_goes_out_and_in_again(case):
    network, shown = case
    state = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    own, other = network(shown), copy.deepcopy(network)
    with torch.no_grad():
        for tensor in other.state_dict().values():
            tensor.fill_(1)
    assert other.load_state_dict(state, strict=True)
    assert_same(other(shown), own)
    codes = [tensor for name, tensor in state.items() if name.endswith(".codes")]
    assert codes
    assert all(tensor.dtype == torch.int16 for tensor in codes)


def test_it_stays_in_eval_mode_and_has_nothing_to_train(case):
    network, shown = case
    own = network(shown)
    assert not any(parameter.requires_grad for parameter in network.parameters())
    assert_same(copy.deepcopy(network).train()(shown), own)  # nothing in it has a mode


@pytest.mark.slow
def test_a_network_of_timm(tmp_path):
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    model = randomise_norms(timm.create_model("mobilenetv3_small_050", pretrained=False))
    shown = torch.randn(16, 3, 64, 64)
    network = quantized(model, shown, bits=clcalib.Bits(8, 8))
    program = export(network, shown).module()
    for count in (1, 16):
        assert_same(program(shown[:count]), network(shown[:count]))
    torch.compiler.reset()
    with torch.no_grad():
        assert_same(torch.compile(network, backend="aot_eager")(shown), network(shown))
    assert_same(copy.deepcopy(network)(shown), network(shown))


def test_the_saved_and_loaded_network_is_one_too(tmp_path):
    model, shown = tiny(), images(32)
    result = clcalib.quantize(
        model,
        clcalib.CalibrationSet.from_tensor(shown),
        recipe=NEAREST,
        bits=clcalib.Bits(3, 4),
        measured_images=0,
    )
    result.save(tmp_path)
    network = clcalib.load(tmp_path, model)
    assert_same(export(network, shown).module()(shown), result.model(shown))
