"""The contrastive term on features and sizes that it was not made for: finite, and so is its gradient."""

from __future__ import annotations

import itertools
import warnings

import pytest
import torch
from torch import Tensor

import clcalib
from clcalib.errors import ArgumentError, SmallCalibrationWarning
from clcalib.objectives.contrastive import LOSSES
from clcalib.objectives.critics import CRITICS
from clcalib.objectives.keys import FALSE_NEGATIVES, as_vectors, build_keys
from clcalib.objectives.local import in_batch
from tests.hard.figures import IS_FULL, record
from tests.tiny import images, tiny

pytestmark = pytest.mark.usefixtures("exported_once")
TEMPERATURES = (1e-3, 1e-2, 0.1, 1.0, 10.0)
WIDTH = 8


def features(kind: str, count: int) -> Tensor:
    plain = torch.randn(count, WIDTH, generator=torch.Generator().manual_seed(count))
    return {
        "plain": lambda: plain,
        "equal": lambda: plain[:1].repeat(count, 1),
        "zeros": lambda: plain * 0,
        "one zero": lambda: plain * (torch.arange(count) > 0)[:, None],
        "1e-30": lambda: plain * 1e-30,
        "1e15": lambda: plain * 1e15,
        "parallel": lambda: plain[:1] * torch.arange(1, count + 1)[:, None],
        "float16": lambda: (plain * 1e4).half(),
        "bfloat16": lambda: plain.bfloat16(),
        "maps of float16": lambda: (plain * 1e4).half()[:, :, None, None].expand(-1, -1, 3, 3),
    }[kind]()


KINDS = (
    *("plain", "equal", "zeros", "one zero", "1e-30"),
    *("1e15", "parallel", "float16", "bfloat16", "maps of float16"),
)
PAIRS = list(itertools.product(KINDS, KINDS))
COUNTS = (2, 3, 33) if IS_FULL else (2, 33)


@pytest.mark.parametrize(("kind", "own"), PAIRS if IS_FULL else [pair for pair in PAIRS if pair[0] == pair[1]])
def test_the_loss_and_its_gradient_are_finite(kind: str, own: str) -> None:
    tried = 0
    for count, loss, critic, temperature, mask in itertools.product(
        COUNTS, LOSSES, CRITICS, TEMPERATURES, FALSE_NEGATIVES
    ):
        keys = build_keys(features(kind, count), torch.arange(count) % 2, torch.arange(count))
        queries = features(own, count).clone().requires_grad_(True)
        scores = CRITICS[critic](temperature)(as_vectors(queries), keys)
        assert scores.dtype == torch.float32
        index = torch.arange(count)
        value = LOSSES[loss](scores, index, FALSE_NEGATIVES[mask](keys, index))
        value.backward()
        where = (count, loss, critic, temperature, mask)
        assert torch.isfinite(value), where
        assert torch.isfinite(queries.grad).all(), where
        tried += 1
    record("contrastive", keys=kind, queries=own, tried=tried, not_finite=0)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("kind", ["zeros", "equal", "one zero", "1e-30"])
def test_keys_of_the_batch(kind: str, loss: str) -> None:
    for count, critic, temperature in itertools.product(COUNTS, CRITICS, TEMPERATURES):
        queries = features(kind, count).clone().requires_grad_(True)
        value = in_batch(loss, CRITICS[critic](temperature), queries, features(kind, count))
        value.backward()
        assert torch.isfinite(value)
        assert torch.isfinite(queries.grad).all()


@pytest.mark.parametrize("critic", CRITICS)
def test_a_query_of_zeros_does_not_drown_the_others(critic: str) -> None:
    """Its gradient is that of a short vector, not of one without length."""
    keys = build_keys(features("plain", 16), torch.zeros(16, dtype=torch.int64), torch.arange(16))
    queries = (features("plain", 16) + 0.1).detach()
    queries[3] = keys.mean if critic == "centred_cosine" else 0.0
    queries.requires_grad_(True)
    LOSSES["info_nce"](CRITICS[critic](0.1)(queries, keys), torch.arange(16), None).backward()
    lengths = queries.grad.norm(dim=1)
    others = torch.cat((lengths[:3], lengths[4:]))
    assert float(lengths[3]) < 1e8 * float(others.max())
    assert float(lengths[3]) < 1e7


def quantize(count: int, **settings) -> clcalib.QuantizationResult:
    recipe = clcalib.with_contrastive(clcalib.recipes.qdrop(steps=3), interval=1, images="all", **settings)
    calibration = clcalib.CalibrationSet.from_tensor(images(count))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SmallCalibrationWarning)
        return clcalib.quantize(tiny(), calibration, recipe=recipe, bits=clcalib.Bits(2, 2), precision="float32")


def test_one_image_is_an_error() -> None:
    with pytest.raises(ArgumentError, match="calibration: expected at least two different images"):
        quantize(1)


READS = ("features", "logits", "activations", "pooled_activations", "learned_head")
LAST_OF_ONE = 65  # two whole batches of 32, and one image


@pytest.mark.parametrize(
    ("count", "read", "keys"),
    list(itertools.product((2, 3, 33, LAST_OF_ONE), READS, (None, "batch")))
    if IS_FULL
    else [(2, "features", None), (33, "activations", "batch")],
)
def test_two_images_work_and_no_batch_of_one_is_left_over(count: int, read: str, keys: str | None) -> None:
    result = quantize(count, read=read, keys=keys)
    assert torch.isfinite(result.model(images(5))).all()
    assert not [message for message in result.record.warnings if "not finite" in message]
