"""Bytes are those of the saved checkpoint; bit operations are counted by hand."""

from __future__ import annotations

import math

import pytest
import torch
from safetensors.torch import load_file
from tests.capture.networks import ManyShapes, Transformer, randomise_norms
from tests.tiny import images, tiny
from torch import nn

import clcalib
from clcalib.quant.cost import bit_operations, bit_operations_at_8_bits, layer_bytes, weight_bytes
from clcalib.quant.insert import chain_policy
from clcalib.quant.spec import PerChannel, QuantSpec

NEAREST = clcalib.recipes.nearest()


@pytest.mark.parametrize("build", [tiny, lambda: randomise_norms(ManyShapes()), lambda: Transformer().eval()])
def test_bytes_are_those_of_the_checkpoint(build, tmp_path):
    torch.manual_seed(0)
    model = build()
    calibration = clcalib.CalibrationSet.from_tensor(torch.randn(32, 3, 16, 16))
    layer = clcalib.capture(model, calibration.images[:2]).layers[1]
    result = clcalib.quantize(
        model, calibration, recipe=NEAREST, bits=clcalib.Bits(3, 5), overrides={layer: "float"}, measured_images=0
    )
    result.save(tmp_path)
    saved = load_file(tmp_path / "model.safetensors")
    names = [f"float/{result.quantized.sources[layer]}"]
    names += [n for n in saved if n.startswith(("codes/", "weight_scale/", "weight_zero_point/"))]
    chain = clcalib.capture(model, calibration.images[:2])
    found = layer_bytes(chain, result.policy)
    assert sum(found.values()) == sum(saved[name].nbytes for name in names)
    assert found[layer] == saved[names[0]].nbytes


def test_bytes_of_one_weight():
    assert weight_bytes((5, 3, 1, 1), QuantSpec(3, granularity=PerChannel(0))) == math.ceil(45 / 8) + 5 * 8
    assert weight_bytes((5, 3, 1, 1), QuantSpec(3, granularity=PerChannel(1))) == math.ceil(45 / 8) + 3 * 8
    assert weight_bytes((5, 3), QuantSpec(8)) == 15 + 8
    assert weight_bytes((5, 3), None) == 60


def test_bit_operations_of_layers():
    chain = clcalib.capture(tiny(), images(2))
    rows = chain_policy(chain, clcalib.Bits(2, 4), overrides={"block.conv2": "A32"})
    first, inner, last = 3 * 8 * 9 * 64, 8 * 8 * 9 * 64, 8 * 4
    assert bit_operations(chain, rows) == {
        "conv": first * 8 * 8,  # the image counts 8 bits
        "block.conv1": inner * 2 * 4,
        "block.conv2": inner * 2 * 32,
        "fc": last * 8 * 8,
    }
    assert bit_operations_at_8_bits(chain) == 64 * (first + 2 * inner + last)


def test_everything_at_8_bits_costs_1():
    chain = clcalib.capture(tiny(), images(2))
    rows = chain_policy(chain, clcalib.Bits(8, 8))
    assert sum(bit_operations(chain, rows).values()) == bit_operations_at_8_bits(chain)


def test_products_and_layers_that_are_called_twice():
    torch.manual_seed(0)
    chain = clcalib.capture(Transformer().eval(), torch.randn(2, 3, 16, 16))
    rows = chain_policy(chain, clcalib.Bits(4, 3))
    tokens, heads, width = 17, 2, 4
    assert bit_operations(chain, rows)["blocks.0.matmul1"] == heads * tokens * tokens * width * 3 * 3

    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.same, self.head = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)

        def forward(self, x):
            return self.head(self.same(self.same(self.stem(x)).relu()))

    chain = clcalib.capture(Twice().eval(), torch.randn(2, 4))
    rows = chain_policy(chain, clcalib.Bits(4, 3))
    assert bit_operations(chain, rows)["same"] == 2 * 16 * 4 * 3
