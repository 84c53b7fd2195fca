"""Fused attention is written as its parts: the same values, cuts and shapes, and products with names."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.capture.contract import assert_every_cut_is_exact, assert_units_cover_the_graph
from tests.reference.attention import attention
from torch import Tensor, nn
from torch.nn import functional as F

from clcalib.capture.attention import expand_attention
from clcalib.capture.chain import capture
from clcalib.capture.describe import describe
from clcalib.capture.graph import operator_name
from clcalib.capture.trace import trace

timm = pytest.importorskip("timm")


class Attend(nn.Module):
    """One attention over the rows of an image, with the options of the fused operator."""

    def __init__(self, *, mask: Tensor | None = None, key_heads: int = 4, **options: Any) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(8, heads * 4) for heads in (4, key_heads, key_heads))
        self.register_buffer("mask", mask)
        self.options = options

    def heads(self, x: Tensor) -> tuple[Tensor, ...]:
        layers = (self.query, self.key, self.value)
        return tuple(layer(x).unflatten(-1, (-1, 4)).transpose(1, 2) for layer in layers)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.heads(x)
        return F.scaled_dot_product_attention(query, key, value, attn_mask=self.mask, **self.options)


GENERATOR = torch.Generator().manual_seed(0)
SOME = torch.rand(6, 6, generator=GENERATOR) < 0.6
SOME[2] = False  # a token that may look at none
CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "scaled": {"scale": 0.3},
    "float mask": {"mask": torch.randn(6, 6, generator=GENERATOR)},
    "choice": {"mask": SOME},
    "causal": {"is_causal": True},
    "shared heads": {"key_heads": 2, "enable_gqa": True},
}


@pytest.mark.parametrize("case", CASES)
def test_the_parts_give_the_values_of_the_operator_and_of_the_reference(case: str) -> None:
    torch.manual_seed(0)
    model = Attend(**CASES[case]).eval()
    expanded = expand_attention(trace(model, torch.randn(2, 6, 8)))
    assert "scaled_dot_product_attention" not in {operator_name(node) for node in expanded.graph.nodes}
    for batch in (1, 3):
        x = torch.randn(batch, 6, 8)
        with torch.no_grad():
            result, expected = expanded(x), model(x)
            parts = [part.double().numpy() for part in model.heads(x)]
        torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-6)
        mask = None if model.mask is None else model.mask.numpy()
        causal = bool(model.options.get("is_causal"))
        slow = attention(*parts, mask=mask, is_causal=causal, scale=model.options.get("scale"))
        torch.testing.assert_close(result.double(), torch.from_numpy(slow), rtol=1e-5, atol=1e-6)


def test_dropout_stays_fused_and_a_network_without_attention_stays_itself() -> None:
    fused = trace(Attend().eval(), torch.randn(2, 6, 8))
    (node,) = [node for node in fused.graph.nodes if operator_name(node) == "scaled_dot_product_attention"]
    node.kwargs = {"dropout_p": 0.1}
    assert expand_attention(fused) is fused
    plain = trace(nn.Conv2d(3, 4, 3).eval(), torch.randn(2, 3, 8, 8))
    assert expand_attention(plain) is plain


def vit() -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model(
        "vit_tiny_patch16_224", img_size=32, patch_size=8, depth=2, embed_dim=32, num_heads=2, num_classes=5
    ).eval()


def swin() -> nn.Module:
    torch.manual_seed(0)
    sizes = {"img_size": 32, "window_size": 4, "embed_dim": 16, "depths": (2, 2), "num_heads": (2, 4)}
    return timm.create_model("swin_tiny_patch4_window7_224", num_classes=5, **sizes).eval()


@pytest.mark.parametrize("build", [vit, swin])
@pytest.mark.parametrize("unit", ["block", "layer"])
def test_transformers_of_timm_are_cut_exactly(build: Any, unit: Any) -> None:
    model, images = build(), torch.randn(3, 3, 32, 32)
    chain = capture(model, images, unit=unit)
    assert_units_cover_the_graph(chain)
    assert_every_cut_is_exact(chain, chain.module, images)
    with torch.no_grad():
        torch.testing.assert_close(chain.module(images), model(images), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("build", [vit, swin])
def test_attention_and_mlp_are_units_of_their_own_and_attention_holds_its_two_products(build: Any) -> None:
    rows = describe(capture(build(), torch.randn(2, 3, 32, 32)))
    blocks = [row for row in rows if ".blocks." in f".{row.name}"]
    assert len(blocks) == (4 if build is vit else 8)
    for row in blocks:
        is_attention = row.name.endswith("attn")
        assert is_attention or row.name.endswith("mlp")
        names = ("qkv", "proj") if is_attention else ("fc1", "fc2")
        assert row.layers == tuple(f"{row.name}.{name}" for name in names)
        assert row.products == ((f"{row.name}.matmul1", f"{row.name}.matmul2") if is_attention else ())
    if build is vit:  # 17 tokens of width 32: layers 17 * 32 * (96 + 32), products 2 * 17 * 17 * 32
        assert blocks[0].macs == 17 * 32 * 128 + 2 * 17 * 17 * 32


def test_products_of_every_kind_are_found_and_those_with_a_parameter_are_not() -> None:
    class Products(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)
            self.table = nn.Parameter(torch.randn(4, 4))

        def forward(self, x: Tensor) -> Tensor:
            y = self.layer(x)
            z = torch.bmm(x, y.transpose(1, 2)) + torch.einsum("bij,bkj->bik", x, y)
            return z + torch.baddbmm(z, x, y.transpose(1, 2)) + (x @ self.table).mean()

    chain = capture(Products().eval(), torch.randn(2, 3, 4))
    assert chain.products == ("matmul1", "matmul2", "matmul3")
