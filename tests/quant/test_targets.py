"""Targets whose kernels add two products in 16 bits: no sum of two may overflow."""

from __future__ import annotations

import pytest
import torch
from tests.tiny import images, tiny

import clcalib
from clcalib import processor
from clcalib.capture.chain import capture
from clcalib.errors import ProcessorWarning
from clcalib.export import rehearsal
from clcalib.export.rehearsal import Widths, rehearse
from clcalib.processor import adds_in_16_bits
from clcalib.quant.insert import chain_policy
from clcalib.quant.targets import TARGETS

LIMIT = 2**15
PAIRS = [(name, target.exact_without_vnni) for name, target in TARGETS.items() if target.exact_without_vnni]


def test_each_runtime_of_x86_kernels_has_a_target_for_processors_without_vnni() -> None:
    assert [(name, f"{name}-avx2") for name in ("onnxruntime", "openvino", "torch")] == PAIRS
    for name, reduced in PAIRS:
        one, other = TARGETS[name], TARGETS[reduced]
        assert (one.runtime, one.file, one.placement) == (other.runtime, other.file, other.placement)
        assert other.exact_without_vnni is None


@pytest.mark.parametrize("name", [reduced for _, reduced in PAIRS])
@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 7, 8])
def test_two_products_with_the_largest_activation_fit_into_16_bits(name: str, bits: int) -> None:
    """What a kernel sees of a weight is its code less its zero point, which lies anywhere among the codes."""
    chain = capture(tiny(), images(2))
    for row in chain_policy(chain, clcalib.Bits(bits, 8), target=TARGETS[name]):
        if row.weight is None:
            continue
        spec = row.weight
        offsets = (0,) if spec.is_symmetric else (spec.q_min, spec.q_max)
        largest = max(abs(code - offset) for code in (spec.q_min, spec.q_max) for offset in offsets)
        assert 2 * 255 * largest < LIMIT
        is_edge = row.layer in (chain.layers[0], chain.layers[-1])
        assert spec.bits == min(7, 8 if is_edge else bits)
        assert ("7 of 8 bits" in row.reason) is (is_edge or bits == 8)


@pytest.mark.parametrize("name", [name for name, _ in PAIRS])
def test_the_layers_that_may_overflow_are_those_of_8_bits_and_those_of_7_with_zero_points(name: str) -> None:
    chain, target = capture(tiny(), images(2)), TARGETS[name]
    layers, edges = list(chain.layers), [chain.layers[0], chain.layers[-1]]
    for bits, expected in ((8, layers), (7, layers), (6, edges), (2, edges)):
        assert target.overflowing(chain_policy(chain, clcalib.Bits(bits, 8), target=target)) == expected
    same = {"first_last_bits": "same", "target": target}
    assert target.overflowing(chain_policy(chain, clcalib.Bits(6, 8), **same)) == []  # type: ignore[arg-type]
    reduced = TARGETS[str(target.exact_without_vnni)]
    assert reduced.overflowing(chain_policy(chain, clcalib.Bits(8, 8), target=reduced)) == []


def test_a_processor_that_adds_in_16_bits_is_told_before_calibration(
    monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    widths, shown = Widths(capture(tiny(), images(2)), clcalib.Bits(4, 8)), images(4)
    monkeypatch.setattr(rehearsal, "adds_in_16_bits", lambda: True)
    with pytest.warns(ProcessorWarning, match=r"weights of conv, fc;.*--target onnxruntime-avx2"):
        rehearse(widths, TARGETS["onnxruntime"], shown)
    with pytest.warns(ProcessorWarning, match=r"conv, block.conv1, block.conv2 and 1 more"):
        rehearse(Widths(widths.chain, clcalib.Bits(8, 8)), TARGETS["onnxruntime"], shown)
    recwarn.clear()
    rehearse(widths, TARGETS["onnxruntime-avx2"], shown)
    monkeypatch.setattr(rehearsal, "adds_in_16_bits", lambda: False)
    rehearse(widths, TARGETS["onnxruntime"], shown)
    assert [one for one in recwarn if issubclass(one.category, ProcessorWarning)] == []


@pytest.mark.parametrize(
    ("machine", "features", "expected"),
    [
        ("x86_64", {"sse4_2", "avx2"}, True),
        ("AMD64", {"avx2", "avx512f"}, True),
        ("x86_64", {"avx2", "avx_vnni"}, False),
        ("x86_64", {"avx2", "avx512_vnni"}, False),
        ("aarch64", {"asimddp"}, False),
        ("x86_64", set(), False),  # not known
    ],
)
def test_sums_are_told_by_the_processor_s_features(
    machine: str, features: set[str], expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processor, "features", lambda: frozenset(features))
    monkeypatch.setattr(processor.platform, "machine", lambda: machine)
    assert adds_in_16_bits() is expected


def test_a_kernel_here_overflows_where_that_is_said_and_nowhere_else() -> None:
    """255 x 127, 64 times, in oneDNN's product of bytes: exact in 32 bits, and cut off where two are added in 16."""
    shown, weight = torch.full((1, 64), 255, dtype=torch.uint8), torch.full((8, 64), 127, dtype=torch.int8)
    packed = torch.ops.onednn.qlinear_prepack(weight, None)
    scales, zeros = torch.ones(8), torch.zeros(8, dtype=torch.int64)
    one, zero = torch.tensor(1.0), torch.tensor(0)
    rest = (None, 1.0, 0, torch.float32, "none", [], "none")
    (found,) = torch.ops.onednn.qlinear_pointwise(shown, one, zero, packed, scales, zeros, *rest).unique().tolist()
    assert (found != 64 * 255 * 127) is adds_in_16_bits()
