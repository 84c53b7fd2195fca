"""Where a target's kernels need quantizers, and that a chain with these is the same network on disk and in pieces."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.capture.networks import Transformer
from tests.tiny import tiny
from torch import Tensor, nn
from torch.nn import functional as F

import clcalib
from clcalib.capture.chain import Chain, capture
from clcalib.errors import ArgumentError
from clcalib.quant.insert import chain_policy, insert_quantizers
from clcalib.quant.modules import ActivationQuantizer
from clcalib.quant.placement import Placement, clamp_limits, named_tensors
from clcalib.quant.policy import Bits, LayerPolicy
from clcalib.quant.ranges import RANGE_RULES
from clcalib.quant.targets import TARGETS, target_of

IMAGES = torch.randn(32, 3, 8, 8, generator=torch.Generator().manual_seed(0))
RUNTIME = TARGETS["onnxruntime"]


class Branches(nn.Module):
    """A pool between a clamp and its reader, a concatenation, a gate that is no clamp, a result that is returned."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.left = nn.Conv2d(4, 4, 1)
        self.right = nn.Conv2d(4, 4, 3, padding=1)
        self.last = nn.Conv2d(8, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu6(self.stem(x)), 2)
        return self.last(torch.cat([F.hardswish(self.left(x)), self.right(x)], 1))


def chain_of(model: nn.Module, size: int = 8) -> Chain:
    return capture(model.eval(), torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1)))


def rows_of(chain: Chain, target: str, bits: Bits | None = None, **options: object) -> dict[str, LayerPolicy]:
    rows = chain_policy(chain, bits or Bits(8, 8), target=target_of(target), **options)  # type: ignore[arg-type]
    return {row.layer: row for row in rows}


def tensors(rows: dict[str, LayerPolicy]) -> dict[str, str]:
    return {name: row.reason for name, row in rows.items() if row.kind == "tensor"}


def test_results_sums_and_pools_are_quantized_for_onnxruntime() -> None:
    rows = rows_of(chain_of(tiny()), "onnxruntime")
    assert tensors(rows) == {
        ":image": "input of conv",
        "block.conv2:output": "result of block.conv2",
        "block:relu2": "result of add",
    }  # the pool's result is what fc reads
    assert rows["conv"].input is not None
    assert rows["conv"].reason == "first layer; reads the same tensor as :image"


def test_codes_pass_through_what_only_moves_them_and_stop_at_what_computes() -> None:
    rows = rows_of(chain_of(Branches()), "onnxruntime")
    # The stem's result is quantized behind its clamp and not behind the pool; the gate's input and output are.
    assert tensors(rows) == {
        ":image": "input of stem",
        "left:output": "result of left",
        ":hardswish1": "input of cat",
        "right:output": "result of right",
        "last:output": "result of last",
    }
    chain = chain_of(Branches())
    names = {node: name for name, node in named_tensors(chain.module)}
    sources = RUNTIME.placement.sources(chain.module)  # type: ignore[union-attr]
    moved = {names[node]: names[source] for node, source in sources.items() if source is not node and node in names}
    assert moved == {":max_pool2d1": ":relu61"}


def test_a_kernel_that_adds_leaves_one_operand_in_float() -> None:
    fused = Placement(frozenset(("add",)), is_fused=True)
    chain = chain_of(tiny())
    wanted = fused.wanted(chain.module, chain.layers)
    names = {name for name, node in named_tensors(chain.module) if node in wanted}
    assert "block.conv2:output" not in names
    assert ":relu1" in names


def test_attention_keeps_quantizers_at_what_products_and_layers_read() -> None:
    chain = chain_of(Transformer(), 16)
    rows = rows_of(chain, "onnxruntime")
    paper = {row.layer for row in chain_policy(chain, Bits(8, 8))}
    assert set(rows) - paper == set(tensors(rows))
    assert all("matmul" not in reason for reason in tensors(rows).values())  # results of products may be floats


def test_a_layer_in_float_needs_nothing_quantized() -> None:
    rows = rows_of(chain_of(tiny()), "onnxruntime", overrides={"*": "float"})
    assert tensors(rows) == {}


@pytest.mark.parametrize(
    ("clamp", "limits"),
    [
        (nn.ReLU(), (0, float("inf"))),
        (nn.ReLU6(), (0, 6)),
        (nn.Hardtanh(-2, 3), (-2, 3)),
        (nn.Hardtanh(), (-1, 1)),
        (nn.Hardswish(), None),
    ],
)
def test_limits_of_clamps(clamp: nn.Module, limits: tuple[float, float] | None) -> None:
    chain = chain_of(nn.Sequential(nn.Conv2d(3, 4, 1), clamp))
    *_, node, _ = chain.module.graph.nodes
    assert clamp_limits(node) == limits


def test_widths_and_signs_that_kernels_do_not_have_are_told_before_any_work() -> None:
    chain = chain_of(tiny())
    with pytest.raises(ArgumentError, match=r"activations.*8 bits, or float, for target tensorrt.*take A8") as told:
        rows_of(chain, "tensorrt", Bits(8, 4))
    named = str(told.value).partition("kernels have it (")[2].partition(")")[0].split(", ")
    assert named == ["onnxruntime", "onnxruntime-avx2", "openvino", "openvino-avx2"]
    for other in named:
        assert rows_of(chain, other, Bits(8, 4))["block.conv1"].input.bits == 4  # type: ignore[union-attr]
    with pytest.raises(ArgumentError, match=r"weights of block.conv1.*target tensorrt"):
        rows_of(chain, "tensorrt", overrides={"block.conv1": "W4"})
    with pytest.raises(ArgumentError, match=r"target.*one of paper, onnxruntime"):
        target_of("onnx")
    rows = rows_of(chain, "tensorrt")
    assert all(
        spec.is_symmetric and spec.is_signed for row in rows.values() for spec in (row.weight, row.input) if spec
    )


@pytest.mark.parametrize("model", [tiny, Branches], ids=["tiny", "branches"])
def test_a_calibrated_chain_is_cut_and_saved_like_any_other(model: type[nn.Module], tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = model().eval()
    images = clcalib.CalibrationSet.from_tensor(IMAGES)
    recipe = clcalib.recipes.qdrop(steps=3)
    result = clcalib.quantize(network, images, recipe=recipe, bits=Bits(4, 8), target="onnxruntime")
    chain = result.quantized.chain
    assert all(
        isinstance(result.quantized.activation(name), ActivationQuantizer) for name in result.quantized.activations
    )
    whole = chain.module(IMAGES)
    for index in range(len(chain.units)):
        body, suffix = chain.body(index), chain.suffix(index)
        assert torch.equal(suffix(*body(*chain.prefix(index)(IMAGES)))[0], whole)
    result.save(tmp_path / "model")
    assert torch.equal(clcalib.load(tmp_path / "model", network)(IMAGES), whole)
    assert result.record.runtime_target == "onnxruntime"


def test_a_product_and_its_result_have_names_of_their_own() -> None:
    chain = chain_of(Transformer(), 16)
    rows = chain_policy(chain, Bits(4, 4), target=RUNTIME)
    names = [row.layer for row in rows]
    assert len(set(names)) == len(names)
    quantized = insert_quantizers(chain, rows, RANGE_RULES["minmax"], RUNTIME.placement)
    before_softmax = [
        node.args[0].target
        for node in quantized.chain.module.graph.nodes
        if node.op == "call_function" and "softmax" in str(node.target)
    ]
    assert before_softmax
    assert not any("activation" in str(target) for target in before_softmax)


def test_signs_of_the_target_win_over_patterns_and_float_activations_are_refused() -> None:
    chain = chain_of(tiny())
    row = rows_of(chain, "openvino", overrides={"block.conv1": Bits(8, 8)})["block.conv1"]
    assert row.weight is not None
    assert row.weight.is_symmetric
    narrow = rows_of(chain, "openvino", Bits(4, 8))["block.conv1"]
    assert narrow.weight is not None
    assert not narrow.weight.is_symmetric  # kernels see no zero point of fewer than 8 bits
    with pytest.raises(ArgumentError, match=r"activations.*integers for target openvino, got float"):
        rows_of(chain, "openvino", Bits(4, None))
    with pytest.raises(ArgumentError, match=r"grid.*'uniform' for target onnxruntime, got 'log2'"):
        rows_of(chain_of(Transformer(), 16), "onnxruntime", grids={"softmax": "log2"})
    floats = rows_of(chain, "onnxruntime", overrides={"block.conv1": "W4A32"})["block.conv1"]
    assert floats.input is None or "reads the same tensor" in floats.reason
