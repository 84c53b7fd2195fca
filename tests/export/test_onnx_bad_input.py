"""What cannot be written is said before calibration and all at once; the same input gives the same bytes."""

from __future__ import annotations

import dataclasses
import sys

import pytest
import torch
from tests.tiny import images, tiny
from torch import Tensor, nn
from torch.nn import functional as F

import clcalib
from clcalib.capture.chain import capture
from clcalib.errors import ArgumentError, MissingPackageError, UnsupportedOperatorError
from clcalib.export.onnx.emit import emit, unsupported
from clcalib.export.onnx.model import pack_low_first
from clcalib.export.onnx.rules import OnnxRules
from clcalib.quant.insert import chain_policy, insert_quantizers
from clcalib.quant.modules import ActivationQuantizer
from clcalib.quant.ranges import RANGE_RULES
from clcalib.quant.spec import QParams, QuantSpec


class Odd(nn.Module):
    """Two operators without a counterpart, one used in a way that has none."""

    class Inner(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.special.bessel_j0(x) + torch.erfinv(x.tanh() * 0.5)

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.inner = nn.Conv2d(3, 4, 3), self.Inner()

    def forward(self, x: Tensor) -> Tensor:
        x = self.inner(self.conv(x).relu())
        return F.adaptive_max_pool2d(x, 4) + F.elu(x[..., :4, :4], 0.5)


def test_every_unsupported_operator_is_named_with_its_place() -> None:
    chain = capture(Odd().eval(), torch.randn(2, 3, 8, 8))
    found = unsupported(chain)
    assert [(problem.operator, problem.module) for problem in found] == [
        ("aten.special_bessel_j0", "inner"),
        ("aten.erfinv", "inner"),
        ("aten.adaptive_max_pool2d", ""),
    ]
    assert "windows of different sizes" in found[-1].reason
    with pytest.raises(UnsupportedOperatorError, match="3 problems") as raised:
        emit(chain)
    assert all(str(problem) in str(raised.value) for problem in found)
    assert "aten.erfinv in inner, node erfinv" in str(raised.value)


def test_a_missing_package_is_named_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    chain = capture(tiny(), images(2))
    monkeypatch.setitem(sys.modules, "onnx", None)
    assert unsupported(chain) == []  # asked without the package
    with pytest.raises(MissingPackageError, match=r"pip install .clcalib\[onnx\]"):
        emit(chain)


def test_the_same_chain_gives_the_same_bytes() -> None:
    calibration = clcalib.CalibrationSet.from_tensor(images())
    bits = clcalib.Bits(4, 8, is_weight_symmetric=True)
    files = set()
    for order in (("a", "b"), ("b", "a")):
        result = clcalib.quantize(tiny(), calibration, recipe=clcalib.recipes.nearest(), bits=bits)
        metadata = {key: "x" for key in order}
        emitted = emit(result.quantized.chain, rules=OnnxRules(is_packed=True), metadata=metadata)
        files.add(emitted.model.SerializeToString())
    assert len(files) == 1
    assert b"/tmp" not in files.pop()


def test_a_chain_without_ranges_is_refused_but_can_be_asked() -> None:
    chain = capture(tiny(), images(2))
    waiting = insert_quantizers(chain, chain_policy(chain, clcalib.Bits(8, 8)), RANGE_RULES["minmax"]).chain
    assert unsupported(waiting) == []
    with pytest.raises(ArgumentError, match=r"chain: expected quantizers with a range, got none in activation_0"):
        emit(waiting)


def test_another_shape_is_refused() -> None:
    with pytest.raises(ArgumentError, match=r"input_shape: expected \(3, 8, 8\), as captured, got \(3, 9, 9\)"):
        emit(capture(tiny(), images(2)), input_shape=(3, 9, 9))


def test_grids_of_logarithms_are_refused() -> None:
    chain = capture(tiny(), images(2))
    policy = chain_policy(chain, clcalib.Bits(8, 8))
    module = insert_quantizers(chain, policy, RANGE_RULES["minmax"]).chain.module
    quantizer = ActivationQuantizer(QParams(torch.tensor(1.0), torch.tensor(0.0)), QuantSpec(4, grid="log2"))
    for name in ("activation_0_block_conv1", "activation_1_block_conv2", "activation_2_fc"):
        module.set_submodule(name, quantizer)
    problems = unsupported(dataclasses.replace(chain, module=module))
    assert len(problems) == 3
    assert "the grid 'log2'" in str(problems[0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"opset": 20}, "opset: expected a whole number from 21, got 20"),
        ({"ir_version": 9}, "ir_version: expected a whole number from 10 for opset 21, got 9"),
        ({"opset": 25}, "ir_version: expected a whole number from 13 for opset 25, got 10"),
        ({"input_name": ""}, "input_name: expected a name that is not empty, got ''"),
        ({"input_name": "x", "output_name": "x"}, "output_name: expected another name than input_name, got 'x'"),
    ],
)
def test_rules_name_what_is_wrong(options: dict[str, object], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        OnnxRules(**options)


@pytest.mark.parametrize(("bits", "expected"), [(4, "f10a"), (2, "ad02")])
def test_codes_are_packed_low_bits_first(bits: int, expected: str) -> None:
    codes = {4: [1, -1, -6], 2: [1, -1, -2, -2, -2]}[bits]
    assert pack_low_first(torch.tensor(codes, dtype=torch.int8), bits).hex() == expected
