"""Layer norms whose channels share a range: the same float output, and less error where one scale serves all."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from tests.capture.networks import Transformer
from tests.capture.test_attention import swin, vit
from torch import Tensor, nn

import clcalib
from clcalib.capture.chain import capture
from clcalib.capture.graph import operator_name
from clcalib.quant.functional import fake_quantize
from clcalib.quant.ranges import MinMax, MseGrid
from clcalib.quant.reparameterize import reparameterize_layer_norm
from clcalib.quant.spec import QuantSpec


def with_uneven_channels(model: nn.Module) -> nn.Module:
    """Channels of very different ranges and offsets behind every layer norm, as trained ViTs have them."""
    generator = torch.Generator().manual_seed(5)
    for module in model.modules():
        if isinstance(module, nn.LayerNorm):
            size = module.weight.shape
            module.weight.data = torch.exp(torch.randn(size, generator=generator))
            module.bias.data = torch.randn(size, generator=generator)
    return model.eval()


def small() -> nn.Module:
    torch.manual_seed(0)
    return Transformer()


@pytest.mark.parametrize(("build", "size", "changed"), [(small, 16, 5), (vit, 32, 5), (swin, 32, 9)])
def test_the_float_output_stays_and_the_parameters_change(
    build: Callable[[], nn.Module], size: int, changed: int
) -> None:
    images = torch.randn(6, 3, size, size)
    chain = capture(with_uneven_channels(build()), images[:2])
    before = {name: tensor.clone() for name, tensor in chain.module.state_dict().items()}
    made = reparameterize_layer_norm(chain, images)
    assert all(torch.equal(before[name], tensor) for name, tensor in chain.module.state_dict().items())
    with torch.no_grad():
        expected, result = chain.module(images), made.module(images)
    torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-5)
    after = made.module.state_dict()
    assert after.keys() == before.keys()
    gammas = [name for name in after if "norm" in name and name.endswith("weight")]
    assert sum(not torch.equal(after[name], before[name]) for name in gammas) == changed


def norm_outputs(chain: clcalib.Chain, images: Tensor) -> list[Tensor]:
    names = [node.name for node in chain.module.graph.nodes if operator_name(node) == "layer_norm"]
    with torch.no_grad():
        return list(chain.subgraph((chain.input_name,), names)(images))


def test_all_channels_have_about_one_range_afterwards() -> None:
    """Up to what a channel of one sign would not use, as every range holds 0."""
    images = torch.randn(8, 3, 16, 16)
    plain = capture(with_uneven_channels(small()), images[:2])
    for chain, least, most in ((plain, 4.0, 1e9), (reparameterize_layer_norm(plain, images, MinMax()), 1.0, 2.0)):
        for value in norm_outputs(chain, images):
            ranges = value.flatten(0, -2).amax(0) - value.flatten(0, -2).amin(0)
            assert least <= float(ranges.max() / ranges.min()) <= most


def test_the_layer_behind_it_gets_a_smaller_error_from_one_scale_for_the_tensor() -> None:
    images = torch.randn(16, 3, 16, 16)
    plain = capture(with_uneven_channels(small()), images[:2])
    errors = []
    for chain in (plain, reparameterize_layer_norm(plain, images)):
        spec, total = QuantSpec(4), 0.0
        norms, layers = (
            norm_outputs(chain, images),
            ("blocks.0.qkv", "blocks.0.mlp.0", "blocks.1.qkv", "blocks.1.mlp.0"),
        )
        for value, layer in zip(norms, layers, strict=False):
            found = MseGrid()(value, spec)
            quantized = fake_quantize(value, found.scale, found.zero_point, spec.q_min, spec.q_max)
            difference = (quantized - value) @ chain.module.get_parameter(f"{layer}.weight").T
            total += float(difference.square().mean())
        errors.append(total)
    assert errors[1] < 0.8 * errors[0]


def test_a_norm_that_a_shortcut_reads_too_and_a_layer_without_bias_are_left_alone() -> None:
    class Behind(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.other_norm = nn.LayerNorm(6), nn.LayerNorm(6)
            self.layer, self.plain, self.head = nn.Linear(6, 6), nn.Linear(6, 6, bias=False), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = self.norm(x)
            return self.head(torch.relu(self.plain(self.other_norm(x + self.layer(x)))))

    chain = capture(with_uneven_channels(Behind()), torch.randn(2, 4, 6))
    made = reparameterize_layer_norm(chain, torch.randn(8, 4, 6))
    state, before = made.module.state_dict(), chain.module.state_dict()
    assert all(torch.equal(state[name], before[name]) for name in before)


@pytest.mark.parametrize("recipe", ["nearest", "straight_through"])
def test_the_pipeline_saves_and_loads_it(recipe: str, tmp_path) -> None:
    images = torch.randn(8, 3, 16, 16)
    options = {} if recipe == "nearest" else {"steps": 2, "batch_size": 4}
    results = [
        clcalib.quantize(
            with_uneven_channels(small()),
            clcalib.CalibrationSet.from_tensor(images),
            recipe=clcalib.recipes.RECIPES[recipe](**options),
            bits=clcalib.Bits(8, 4),
            is_layer_norm_reparameterized=choice,
        )
        for choice in (True, False)
    ]
    assert not torch.equal(results[0].model(images), results[1].model(images))
    results[0].save(tmp_path / "saved")
    assert torch.equal(clcalib.load(tmp_path / "saved", small())(images), results[0].model(images))
