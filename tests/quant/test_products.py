"""Products of activations in the policy, in the network and on disk."""

from __future__ import annotations

import pytest
import torch
from tests.capture.networks import Transformer
from tests.tiny import tiny
from torch import Tensor, nn

import clcalib
from clcalib.capture.chain import Chain, capture
from clcalib.errors import ArgumentError
from clcalib.quant.insert import fit_policy, insert_quantizers
from clcalib.quant.modules import ActivationQuantizer
from clcalib.quant.policy import Bits, LayerPolicy, Override, build_policy
from clcalib.quant.ranges import RANGE_RULES

IMAGES = torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(3))


def transformer() -> nn.Module:
    torch.manual_seed(0)
    return Transformer().eval()


def rows_of(chain: Chain, bits: Bits, overrides: dict[str, Bits | Override] | None = None) -> dict[str, LayerPolicy]:
    rows = fit_policy(chain, build_policy(chain.layers, bits, overrides=overrides, products=chain.products))
    return {row.layer: row for row in rows}


def widths(row: LayerPolicy) -> tuple[int | None, ...]:
    return tuple(None if spec is None else spec.bits for spec in (row.weight, row.input, row.right))


def test_products_have_rows_with_the_activations_width_on_both_sides() -> None:
    rows = rows_of(capture(transformer(), IMAGES[:2]), Bits(3, 5))
    products = [name for name in rows if "matmul" in name]
    assert products == [f"blocks.{block}.matmul{number}" for block in (0, 1) for number in (1, 2)]
    assert all(widths(rows[name]) == (None, 5, 5) for name in products)
    names = list(rows)
    assert names.index("blocks.0.qkv") < names.index("blocks.0.matmul1") < names.index("blocks.0.proj")


def test_products_can_be_overridden_and_left_in_float() -> None:
    chain = capture(transformer(), IMAGES[:2])
    rows = rows_of(chain, Bits(4, 4), {"blocks.0.*": Bits(2, 6), "*.matmul2": Override(activations=None)})
    assert widths(rows["blocks.0.matmul1"]) == (None, 6, 6)
    assert widths(rows["blocks.1.matmul1"]) == (None, 4, 4)
    assert widths(rows["blocks.0.matmul2"]) == widths(rows["blocks.1.matmul2"]) == (None, None, None)
    assert widths(rows["blocks.0.proj"]) == (2, 6, None)
    with pytest.raises(ArgumentError, match=r"nearest layer: blocks\.\d\.matmul\d"):
        rows_of(chain, Bits(4, 4), {"blocks.1.matmul7": Bits(8, 8)})


def test_a_network_without_attention_has_the_rows_that_it_had() -> None:
    chain = capture(tiny(), torch.randn(2, 3, 8, 8))
    assert chain.products == ()
    assert list(rows_of(chain, Bits(4, 4))) == ["conv", "block.conv1", "block.conv2", "fc"]
    assert all(row.right is None for row in rows_of(chain, Bits(4, 4)).values())


def test_a_tensor_that_a_layer_and_a_product_read_has_one_quantizer_of_the_larger_width() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            y = torch.relu(self.first(x))
            return self.second(y) + torch.bmm(y, y.transpose(1, 2)) @ y

    rows = rows_of(capture(Shared().eval(), torch.randn(2, 4, 4)), Bits(4, 4))
    assert widths(rows["second"]) == (8, 8, None)
    assert widths(rows["matmul1"]) == (None, 8, 4)
    assert widths(rows["matmul2"]) == (None, 4, 8)
    assert "reads the same tensor as second" in rows["matmul1"].reason


@pytest.mark.parametrize("overrides", [{}, {"*.matmul1": Override(activations=None)}])
def test_attention_is_quantized_optimised_saved_and_loaded(overrides: dict[str, Bits | Override], tmp_path) -> None:
    model = transformer()
    result = clcalib.quantize(
        model,
        clcalib.CalibrationSet.from_tensor(IMAGES),
        recipe=clcalib.recipes.qdrop(steps=2, batch_size=4),
        bits=Bits(4, 3),
        overrides=overrides,
    )
    quantizers = [module for module in result.model.modules() if isinstance(module, ActivationQuantizer)]
    assert len(quantizers) == 9 + (4 if overrides else 8)  # of nine layers all but the first read a quantized tensor
    result.save(tmp_path / "saved")
    loaded = clcalib.load(tmp_path / "saved", transformer())
    assert torch.equal(loaded(IMAGES), result.model(IMAGES))


def test_what_enters_a_product_lies_on_the_grid() -> None:
    result = clcalib.quantize(
        transformer(), clcalib.CalibrationSet.from_tensor(IMAGES), recipe=clcalib.recipes.nearest(), bits=Bits(8, 2)
    )
    module = result.model
    assert isinstance(module, torch.fx.GraphModule)
    seen: list[Tensor] = []

    class Looking(torch.fx.Interpreter):
        def run_node(self, n: torch.fx.Node) -> object:
            if n.op == "call_function" and "matmul" in str(n.target):
                seen.extend(self.fetch_args_kwargs_from_env(n)[0])
            return super().run_node(n)

    Looking(module).run(IMAGES)
    assert len(seen) == 8
    assert all(len(torch.unique(tensor)) <= 4 for tensor in seen)


class TwiceCalled(nn.Module):
    """One layer reads the image, which the first layer reads too, and then a hidden tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.again, self.head = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.again(torch.relu(self.first(x) + self.again(x)))))


def test_the_image_is_not_quantized_for_a_layer_that_reads_a_hidden_tensor_later() -> None:
    chain = capture(TwiceCalled().eval(), torch.randn(2, 6))
    rows = rows_of(chain, Bits(4, 4))
    assert rows["again"].input is None
    quantized = insert_quantizers(chain, list(rows.values()), RANGE_RULES["minmax"]).chain.module
    image = next(node for node in quantized.graph.nodes if node.op == "placeholder")
    assert all(user.op == "call_function" for user in image.users), "no quantizer behind the image"
