"""Quantized graphs: bit-exact where they are written in float operators, integer kernels where they have 8 bits."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest
import torch
from tests.capture.networks import ManyShapes, Transformer, randomise_norms
from tests.export.graphs import (
    Plain,
    evaluate,
    exposed,
    is_unquantized_end,
    operators,
    run,
    values_of,
    with_quantizers,
)
from tests.processors import largest_width
from tests.tiny import images, tiny
from torch import Tensor, nn

import clcalib
from clcalib.capture.chain import Chain, capture
from clcalib.export.onnx.emit import emit, with_rounded_biases
from clcalib.export.onnx.quantizers import rounded_bias
from clcalib.export.onnx.rules import OnnxRules
from clcalib.quant.insert import QuantizedChain
from clcalib.quant.modules import ActivationQuantizer
from clcalib.quant.spec import QParams, QuantSpec

PACKED = OnnxRules(is_packed=True)
NARROWEST = OnnxRules(opset=25, ir_version=13, is_packed=True)


def quantized(
    model: nn.Module, x: Tensor, weights: int, activations: int, is_symmetric: bool = True, **options: object
) -> QuantizedChain:
    calibration = clcalib.CalibrationSet.from_tensor(x)
    bits = clcalib.Bits(weights, activations, is_weight_symmetric=is_symmetric)
    return clcalib.quantize(model, calibration, recipe=clcalib.recipes.nearest(), bits=bits, **options).quantized


@pytest.fixture(scope="module")
def photos() -> Tensor:
    return torch.randn(64, 3, 12, 12, generator=torch.Generator().manual_seed(3))


def plain(photos: Tensor, weights: int, largest: int = 8) -> Chain:
    """``Plain`` with a quantizer on every tensor that integer kernels read or write."""
    torch.manual_seed(0)
    edges = {name: f"W{largest}" for name in ("first", "fc")}
    chain = quantized(Plain().eval(), photos, min(weights, largest), 8, overrides=edges).chain
    return with_quantizers(chain, photos, is_unquantized_end, QuantSpec(8))


@pytest.mark.parametrize(("weights", "activations", "is_symmetric"), [(8, 8, True), (8, 8, False), (4, 8, True)])
def test_the_graph_computes_what_the_simulation_computes(weights: int, activations: int, is_symmetric: bool) -> None:
    chain = quantized(tiny(), images(), weights, activations, is_symmetric).chain
    emitted, simulation = emit(chain), with_rounded_biases(chain)
    for batch in (1, 5):
        x = images(batch, seed=9)
        expected = simulation.module(x)
        for own in (run(emitted.model, x)[0], evaluate(emitted.model, x)[0]):
            torch.testing.assert_close(own, expected, rtol=1e-5, atol=2e-6)
    assert set(emitted.codes) == {
        name for name, module in chain.module.named_modules() if isinstance(module, ActivationQuantizer)
    }
    assert operators(emitted.model)["QuantizeLinear"] == len(emitted.codes) == 3
    assert operators(emitted.model)["Clip"] == 0


@pytest.mark.parametrize("rules", [OnnxRules(), PACKED, NARROWEST])
def test_integer_kernels_do_the_work(photos: Tensor, rules: OnnxRules, tmp_path: Path) -> None:
    for weights in (8, 4, 2):
        chain = plain(photos, weights, largest_width())
        emitted = emit(chain, rules=rules)
        logits = run(emitted.model, photos, optimized=tmp_path / "optimized.onnx")[0]
        made = operators(onnx.load(tmp_path / "optimized.onnx"))
        assert (made["QLinearConv"], made["QGemm"], made["Conv"], made["Gemm"], made["Cast"]) == (3, 1, 0, 0, 0)
        assert torch.equal(logits, run(emit(chain).model, photos)[0])
        expected = with_rounded_biases(chain, rules).module(photos)
        assert float((logits != expected).float().mean()) < 0.02  # one step of the last grid, where sums tie
        torch.testing.assert_close(
            logits, expected, rtol=0, atol=1.01 * float(chain.module.get_submodule(chain.output_name).scale)
        )


def test_packed_weights_take_half_and_a_quarter_of_the_bytes(photos: Tensor) -> None:
    def size(rules: OnnxRules, weights: int) -> dict[str, int]:
        graph = emit(plain(photos, weights), rules=rules).model.graph
        codes = [value for value in graph.initializer if value.name.endswith("/codes") and "weight" in value.name]
        return {value.name: len(value.raw_data) for value in codes}

    second = "weight_1_second/codes"  # the first layer keeps 8 bits
    assert (size(OnnxRules(), 4)[second], size(PACKED, 4)[second], size(PACKED, 3)[second]) == (2304, 1152, 1152)
    assert (size(PACKED, 2)[second], size(NARROWEST, 2)[second]) == (1152, 576)
    assert size(PACKED, 4)["weight_0_first/codes"] == size(OnnxRules(), 4)["weight_0_first/codes"] == 432


def test_the_file_says_which_codes_are_narrower_than_their_type(photos: Tensor) -> None:
    model = emit(plain(photos, 3), rules=PACKED).model
    (entry,) = model.metadata_props
    assert entry.key == "clcalib.narrow_codes"
    assert json.loads(entry.value) == {
        "weight_1_second/codes": "3 bits in int4",
        "weight_2_third/codes": "3 bits in int4",
    }
    assert len(emit(plain(photos, 4), rules=PACKED).model.metadata_props) == 0


@pytest.mark.parametrize("rules", [OnnxRules(), PACKED, NARROWEST])
@pytest.mark.parametrize("is_symmetric", [True, False])
def test_few_bits_are_exact_in_float_operators(rules: OnnxRules, is_symmetric: bool) -> None:
    chain = quantized(tiny(), images(), 2, 4, is_symmetric).chain
    emitted, simulation = emit(chain, rules=rules), with_rounded_biases(chain, rules)
    x = images(40, seed=9)
    few = emitted.reference_codes
    assert set(few) == {"activation_0_block_conv1", "activation_1_block_conv2"}
    values = values_of(simulation.module, x)
    names = [*few.values(), *few]
    results = run(exposed(emitted.model, names, onnx.TensorProto.FLOAT), x, is_optimized=False)
    torch.testing.assert_close(results[0], simulation.module(x), rtol=1e-5, atol=2e-6)
    agreeing, count = 0, 0
    for codes, name in zip(results[1:], few, strict=False):
        quantizer = chain.module.get_submodule(name)
        expected = values[name] / quantizer.scale + quantizer.zero_point
        assert torch.equal(codes, codes.round())
        agreeing, count = agreeing + int((codes == expected.round()).sum()), count + codes.numel()
    assert agreeing / count > 0.9999
    for own, name in zip(results[3:], few, strict=True):
        assert float((own == values[name]).float().mean()) > 0.9999


@pytest.mark.parametrize("bits", [2, 3, 4, 7, 8])
@pytest.mark.parametrize("is_signed", [True, False])
def test_a_quantizer_alone_is_bit_equal(bits: int, is_signed: bool) -> None:
    generator = torch.Generator().manual_seed(bits)
    spec = QuantSpec(bits, is_signed=is_signed)
    scale = torch.rand((), generator=generator) * 0.1 + 0.01
    zero_point = torch.tensor(float(spec.q_min + spec.levels // 3))
    codes = torch.arange(-3 * spec.levels, 3 * spec.levels) * 0.5  # every tie of the rounding, and beyond both ends
    x = torch.cat((codes * scale, torch.randn(4000, generator=generator) * scale * spec.levels))
    quantizer = ActivationQuantizer(QParams(scale, zero_point), spec)
    graph = alone(quantizer)
    assert torch.equal(evaluate(graph, x[:, None, None, None])[0].flatten(), quantizer(x))
    assert torch.equal(run(graph, x[:, None, None, None], is_optimized=False)[0].flatten(), quantizer(x))


def test_the_grid_with_two_steps_is_bit_equal() -> None:
    quantizer = ActivationQuantizer(
        QParams(torch.tensor([0.01, 0.13]), torch.zeros(2)), QuantSpec(4, is_signed=True, grid="twin")
    )
    x = torch.randn(4000, generator=torch.Generator().manual_seed(0))
    assert torch.equal(run(alone(quantizer), x[:, None, None, None])[0].flatten(), quantizer(x))


def alone(quantizer: ActivationQuantizer) -> onnx.ModelProto:
    """The graph of a quantizer on the image, which is also what is returned."""

    class One(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Conv2d(1, 1, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x)

    chain = capture(One().eval(), torch.randn(2, 1, 1, 1))
    module = chain.module
    module.add_submodule("quantizer", quantizer)
    image = next(node for node in module.graph.nodes if node.op == "placeholder")
    with module.graph.inserting_after(image):
        node = module.graph.call_module("quantizer", (image,))
    next(node for node in module.graph.nodes if node.op == "output").args = (node,)
    module.graph.eliminate_dead_code()
    return emit(chain).model


def test_every_kind_of_layer_has_its_channels_on_the_right_axis() -> None:
    torch.manual_seed(0)
    model = randomise_norms(ManyShapes())
    chain = quantized(model, images(), 8, 8).chain
    emitted = emit(chain)
    x = images(5, seed=9)
    expected = with_rounded_biases(chain).module(x)
    for is_optimized in (True, False):  # the reference evaluator refuses groups of a transposed convolution
        own = run(emitted.model, x, is_optimized=is_optimized)[0]
        torch.testing.assert_close(own, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("weights", "activations"), [(8, 8), (4, 4)])
def test_attention_with_quantized_products(weights: int, activations: int) -> None:
    torch.manual_seed(0)
    x = torch.randn(16, 3, 16, 16)
    whole = quantized(Transformer().eval(), x, weights, activations)
    emitted = emit(whole.chain, rules=PACKED, weights=whole.weights)
    assert set(whole.weights) <= set(emitted.layers)
    expected = with_rounded_biases(whole.chain, PACKED).module(x)
    own = run(emitted.model, x, is_optimized=False)[0]
    assert float((own - expected).abs().mean()) < 1e-3 * float(expected.abs().max())


def test_a_rounded_bias_is_the_one_in_the_graph(photos: Tensor) -> None:
    chain = plain(photos, 8)
    module = chain.module
    source, weight, bias = module.placed_0.scale, module.weight_0_first.scale, module.get_parameter("first.bias")
    expected = rounded_bias(bias, source, weight)
    graph = emit(chain).model.graph
    stored = {value.name: torch.from_numpy(onnx.numpy_helper.to_array(value).copy()) for value in graph.initializer}
    assert stored["first.bias/codes"].dtype == torch.int32
    assert torch.equal(stored["first.bias/codes"] * stored["first.bias/scale"], expected)
    steps = source * weight.flatten()
    assert float(((expected - bias).abs() / steps).max()) <= 0.51
    assert not torch.equal(expected, bias)
    is_float = emit(chain, rules=OnnxRules(is_bias_integer=False)).model.graph
    assert "first.bias" in {value.name for value in is_float.initializer}


def test_a_bias_too_large_for_its_step_stays_in_float() -> None:
    bias, weight = torch.tensor([1.0, 2.0]), torch.tensor([0.1, 1e-12])
    assert rounded_bias(bias, torch.tensor(0.1), weight) is bias
