"""Small files and fast graphs: names, shared constants, joined slices, pads that kernels write, channels of zeros."""

from __future__ import annotations

import collections
import dataclasses
from pathlib import Path

import onnx
import pytest
import torch
from tests.export.graphs import operators, run
from tests.processors import here
from tests.tiny import tiny
from torch import Tensor, nn
from torch.nn import functional as F

import clcalib
from clcalib.capture.chain import capture
from clcalib.export.deployed import onnx_rules, write_float
from clcalib.export.onnx.emit import Emitted, emit
from clcalib.export.onnx.rules import OnnxRules
from clcalib.export.roundtrip import compare_codes, with_codes
from clcalib.export.runtimes import LayerCounts, integer_report, session
from clcalib.quant.insert import QuantizedChain
from clcalib.quant.targets import TARGETS

IMAGES = torch.randn(32, 3, 12, 12, generator=torch.Generator().manual_seed(3))
COMPACT = OnnxRules(is_compact=True)


class Deep(nn.Module):
    """Layers of 16 channels in a row."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3)
        self.layers = nn.ModuleList(nn.Conv2d(16, 16, 3, padding=1) for _ in range(count))
        self.head = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        for layer in self.layers:
            x = torch.relu(layer(x))
        return self.head(x.mean((2, 3)))


class Padded(nn.Module):
    """Pads in front of convolutions: of zeros, uneven; of zeros, too wide; of other values; of channels."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Conv2d(channels, 4, 3, padding=1) for channels in (3, 4, 4, 4, 8))

    def forward(self, x: Tensor) -> Tensor:
        x = self.layers[0](F.pad(x, (0, 1, 1, 0)))
        x = self.layers[1](F.pad(x, (0, 3)))
        x = self.layers[2](F.pad(x, (1, 1, 1, 1), mode="reflect"))
        x = self.layers[3](F.pad(x, (1, 1), value=1.0))
        return self.layers[4](F.pad(x, (0, 0, 0, 0, 2, 2))).flatten(1)


class Sliced(nn.Module):
    """Slices of slices: along two axes; twice along one; of a slice that is read twice."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer(x)
        both, again, rows = x[:, :, ::2, 1::2], x[:, :, 1:][:, :, :6, :6], x[:, :, 2:8]
        return torch.cat([both, again, rows[..., :6], rows[..., 6:]], 1).flatten(1)


def quantized(model: nn.Module, target: str | None, weights: int, activations: int) -> QuantizedChain:
    calibration = clcalib.CalibrationSet.from_tensor(IMAGES)
    bits = clcalib.Bits(weights, activations)
    return clcalib.quantize(
        model,
        calibration,
        recipe=clcalib.recipes.nearest(),
        bits=bits,
        target=target and here(target),
        measured_images=0,
    ).quantized


def seeded(model: type[nn.Module], *arguments: int) -> nn.Module:
    torch.manual_seed(0)
    return model(*arguments).eval()


def overhead(found: Emitted) -> int:
    """Bytes of a file beside the numbers that it needs: weights, their scales, biases."""
    numbers = sum(len(value.raw_data) for value in found.model.graph.initializer if value.dims)
    return len(found.model.SerializeToString()) - numbers


@pytest.mark.parametrize("target", ["onnxruntime", "openvino"])
def test_a_layer_costs_few_bytes_beside_its_numbers(target: str) -> None:
    rules = onnx_rules(TARGETS[target])
    chains = [quantized(seeded(Deep, count), target, 4, 4).chain for count in (2, 6)]
    few, many, named_few, named_many = (
        overhead(emit(chain, rules=dataclasses.replace(rules, is_compact=is_compact)))
        for is_compact in (True, False)
        for chain in chains
    )
    assert 0 < (many - few) / 4 < 440  # of these, about 70 take the zero points of 4-bit codes off
    assert many - few < 0.5 * (named_many - named_few)


def test_equal_constants_are_one_and_names_of_layers_and_ends_stay() -> None:
    chain = quantized(seeded(Deep, 2), "onnxruntime", 4, 4)
    plain, compact = (
        emit(chain.chain, rules=OnnxRules(is_packed=True, are_codes_integer=True, is_compact=is_compact))
        for is_compact in (False, True)
    )
    stored = [
        (value.data_type, tuple(value.dims), value.raw_data, tuple(value.int32_data))
        for value in compact.model.graph.initializer
    ]
    assert max(collections.Counter(stored).values()) == 1
    assert len(stored) < len(plain.model.graph.initializer)
    assert {node.name for node in compact.model.graph.node} >= {"stem", "layers.0", "layers.1", "head"}
    assert compact.layers == plain.layers
    assert [value.name for value in (*compact.model.graph.input, *compact.model.graph.output)] == ["input", "logits"]
    inner = {name for node in compact.model.graph.node for name in node.output} - {"logits"}
    assert max(map(len, inner)) <= 2
    assert set(compact.codes.values()) <= inner
    assert len(set(compact.codes.values())) == len(compact.codes)
    made = operators(compact.model)
    assert made.pop("Mul") == len(chain.weights)  # the scales of biases, whose factors are there anyway
    assert made == operators(plain.model)
    assert torch.equal(run(compact.model, IMAGES)[0], run(plain.model, IMAGES)[0])
    again = emit(chain.chain, rules=OnnxRules(is_packed=True, are_codes_integer=True, is_compact=True))
    assert again.model.SerializeToString() == compact.model.SerializeToString()


def test_inner_names_keep_off_those_of_the_ends() -> None:
    rules = OnnxRules(is_compact=True, input_name="b", output_name="a")
    found = emit(capture(tiny(), torch.randn(2, 3, 12, 12)), rules=rules)
    made = [name for node in found.model.graph.node for name in node.output]
    assert len(made) == len(set(made))
    assert made.count("a") == 1
    assert "b" not in made


def test_slices_along_several_axes_are_one() -> None:
    model = seeded(Sliced)
    chain = capture(model, IMAGES[:2])
    for rules in (OnnxRules(), COMPACT):
        found = emit(chain, rules=rules)
        assert operators(found.model)["Slice"] == 6  # 1 for both axes, 2 with rows of rows, 3 where one is read twice
        torch.testing.assert_close(run(found.model, IMAGES, is_optimized=False)[0], model(IMAGES))


def test_kernels_write_the_pads_of_zeros_in_front_of_them() -> None:
    model = seeded(Padded)
    found = emit(capture(model, IMAGES[:2]))
    pads = [list(onnx.helper.get_attribute_value(a)) for n in found.model.graph.node for a in n.attribute
            if n.op_type == "Conv" and a.name == "pads"]  # fmt: skip
    assert operators(found.model)["Pad"] == 4
    assert pads[0] == [2, 1, 1, 2]
    assert all(each == [1, 1, 1, 1] for each in pads[1:])
    for is_optimized in (True, False):
        own = run(found.model, IMAGES, is_optimized=is_optimized)[0]
        torch.testing.assert_close(own, model(IMAGES), rtol=1e-4, atol=1e-5)
    chain = quantized(model, "onnxruntime", 8, 8).chain
    found = emit(chain, rules=onnx_rules(TARGETS["onnxruntime"]))
    compared = compare_codes(chain, found, session(with_codes(found), threads=1), IMAGES)
    assert compared.max_code_difference <= 1


def test_images_get_a_channel_of_zeros_where_the_kernel_is_faster_for_it() -> None:
    chain = quantized(seeded(Deep, 1), "onnxruntime", 8, 8).chain
    own, plain = (
        emit(chain, rules=OnnxRules(are_codes_integer=True, channel_multiple=multiple)) for multiple in (4, 1)
    )
    stored = [{tuple(value.dims) for value in found.model.graph.initializer} for found in (own, plain)]
    assert (16, 4, 3, 3) in stored[0] - stored[1]
    assert (16, 3, 3, 3) in stored[1] - stored[0]
    assert torch.equal(run(own.model, IMAGES)[0], run(plain.model, IMAGES)[0])
    counts = LayerCounts.of(integer_report(own.model.SerializeToString()))
    assert (counts.integer_layers, counts.float_layers, counts.float_operations) == (3, 0, 0)
    # The kernel takes no weights with zero points; OpenVINO's takes any number of channels.
    asymmetric = quantized(seeded(Deep, 1), None, 8, 8).chain
    rules = onnx_rules(TARGETS["onnxruntime"])
    assert operators(emit(asymmetric, rules=rules).model)["Pad"] == 0
    other = quantized(seeded(Deep, 1), "openvino", 8, 8).chain
    assert operators(emit(other, rules=onnx_rules(TARGETS["openvino"])).model)["Pad"] == 0


def test_the_float_file_is_written_in_the_same_way(tmp_path: Path) -> None:
    chain = capture(seeded(Deep, 3), IMAGES[:2])
    write_float(chain, tmp_path / "float.onnx")
    assert (tmp_path / "float.onnx").read_bytes() == emit(chain, rules=COMPACT).model.SerializeToString()
    assert len((tmp_path / "float.onnx").read_bytes()) < len(emit(chain).model.SerializeToString())
