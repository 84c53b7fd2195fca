"""The transcription that the speed of clcalib is measured against computes what it says."""

from __future__ import annotations

import pytest
import torch

from clcalib.quant import functional, rounding
from clcalib.quant.spec import PerChannel, QParams, QuantSpec
from demo_network import CifarResNet

reference = pytest.importorskip("benchmarks.reference_step", reason="the benchmarks are not part of this copy")


@pytest.fixture(scope="module")
def built():
    torch.manual_seed(0)
    images = torch.randn(64, 3, 8, 8)
    model = CifarResNet(1).eval()
    names, network = reference.build(model, images)
    return names, network, images, model


def test_its_fake_quantizer_is_that_of_functional(generator):
    x, scale, zero_point = torch.randn(1000, generator=generator) * 3, torch.tensor(0.4), torch.tensor(1.0)
    expected = functional.fake_quantize(x, scale, zero_point, 0, 3)
    assert torch.equal(reference.fake_quantize(x, scale, zero_point, 4), expected)


def test_its_soft_weight_is_that_of_rounding(generator):
    layer = reference.Layer(torch.randn(4, 3, 3, 3, generator=generator), torch.zeros(4), bits=2)
    layer.start_soft_rounding()
    layer.alpha.data += torch.randn(layer.alpha.shape, generator=generator)
    spec = QuantSpec(2, granularity=PerChannel(0))
    expected = rounding.soft_quantize(layer.weight, layer.alpha, QParams(layer.delta, layer.zero_point), spec)
    torch.testing.assert_close(layer.quantized_weight(), expected)


def test_without_quantizers_it_is_the_network(built):
    _, network, images, model = built
    reference.set_quantized(network, False)
    torch.testing.assert_close(network(images), model(images))
    reference.set_quantized(network, True)


def test_thirty_steps_lower_the_reconstruction_loss(built):
    names, network, images, _ = built
    index = names.index("layer1.0")
    cached = reference.cache(network, index, images)
    quantized, _, target = cached

    @torch.no_grad()
    def error():
        return float((network[index](quantized) - target).square().sum(1).mean())

    nearest = error()
    reference.reconstruct(network[index], cached, steps=30)
    assert error() < nearest
