"""A network that takes the numbers of tokens and returns an embedding, with padding masked in attention."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import clcalib
from clcalib.capture.chain import capture
from clcalib.capture.describe import describe
from clcalib.errors import ArgumentError, DataError

GENERATOR = torch.Generator().manual_seed(0)
TOKENS = torch.randint(1, 50, (24, 7), generator=GENERATOR)
TOKENS[::3, 4:] = 0  # shorter sentences


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value, self.proj = (nn.Linear(8, 8) for _ in range(4))
        self.norm, self.out_norm = nn.LayerNorm(8), nn.LayerNorm(8)
        self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        query, key, value = (
            layer(x).unflatten(-1, (2, 4)).transpose(1, 2) for layer in (self.query, self.key, self.value)
        )
        y = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        x = self.norm(x + self.proj(y.transpose(1, 2).flatten(2)))
        return self.out_norm(x + self.down(F.gelu(self.up(x))))


class Encoder(nn.Module):
    """Numbers (N, T), 0 is padding, -> the mean over the tokens (N, 8)."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(50, 8)
        self.layers = nn.ModuleList([Layer(), Layer()])

    def forward(self, tokens: Tensor) -> Tensor:
        is_there = tokens != 0
        x = self.table(tokens)
        for layer in self.layers:
            x = layer(x, is_there[:, None, None])
        share = is_there[:, :, None].to(x.dtype)
        return (x * share).sum(1) / share.sum(1).clamp(min=1)


def encoder() -> nn.Module:
    torch.manual_seed(0)
    return Encoder().eval()


def run(recipe: clcalib.Recipe, bits: clcalib.Bits) -> clcalib.QuantizationResult:
    calibration = clcalib.CalibrationSet.from_tensor(TOKENS.to(torch.int32))
    assert calibration.images.dtype == torch.int64
    return clcalib.quantize(encoder(), calibration, recipe=recipe, bits=bits, unit_patterns=("layers.*",))


def test_tokens_are_captured_and_each_layer_is_a_unit_that_the_mask_goes_into() -> None:
    chain = capture(encoder(), TOKENS[:2], patterns=("layers.*",))
    with torch.no_grad():
        torch.testing.assert_close(chain.module(TOKENS), encoder()(TOKENS), rtol=1e-5, atol=1e-6)
    rows = describe(chain)
    assert [row.name for row in rows] == ["layers.0", "layers.1"]
    assert [len(row.input_shapes) for row in rows] == [1, 2]
    assert rows[1].products == ("layers.1.matmul1", "layers.1.matmul2")


@pytest.mark.parametrize("name", ["qdrop", "glf_q"])
def test_a_sentence_encoder_is_optimised_saved_and_loaded(name: str, tmp_path) -> None:
    options = {"read": "logits"} if name == "glf_q" else {}
    recipe = clcalib.recipes.RECIPES[name](steps=40, batch_size=8, **options)
    result = run(clcalib.with_contrastive(recipe, read="logits", interval=2), clcalib.Bits(3, 4))
    errors = [unit.reconstruction_error.calibration for unit in result.record.units]
    assert sum(error.after for error in errors) < sum(error.before for error in errors)
    result.save(tmp_path / "saved")
    loaded = clcalib.load(tmp_path / "saved", encoder())
    assert torch.equal(loaded(TOKENS), result.model(TOKENS))


def test_float_widths_leave_the_embeddings_as_they_are() -> None:
    result = run(clcalib.recipes.nearest(), clcalib.Bits(None, None))
    torch.testing.assert_close(result.model(TOKENS), encoder()(TOKENS), rtol=1e-5, atol=1e-6)


def test_pixels_as_whole_numbers_are_still_refused() -> None:
    with pytest.raises(DataError, match="normalise"):
        clcalib.CalibrationSet.from_tensor(torch.zeros(2, 3, 4, 4, dtype=torch.uint8))
    with pytest.raises(ArgumentError, match="floating point"):
        capture(encoder(), torch.zeros(2, 7, dtype=torch.uint8))
