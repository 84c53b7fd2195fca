"""Unusual layers: captured to the float output, or one error that lists every module; what stays in float is listed."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn

import clcalib
from clcalib.capture.chain import Chain, capture
from clcalib.capture.coverage import PRODUCTS, RECURRENT, float_parts
from clcalib.capture.graph import data_nodes, is_convolution, is_linear, operator_name, weighted_nodes
from clcalib.capture.products import find_products
from clcalib.errors import CaptureError, ClcalibWarning
from clcalib.quant.insert import chain_policy
from clcalib.quant.modules import IntegerWeight
from clcalib.quant.policy import Bits, float_reasons
from clcalib.report.record import read_record
from tests.hard.figures import IS_FULL, record
from tests.hard.odd_networks import NETWORKS, Fails, odd_network

CLOSE = 1e-5  # relative to the largest output
FEW = ["dynamic convolution", "grouped transposed convolution", "linear with a computed weight", "lstm", "tied weights"]


def silently(work, *arguments, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ClcalibWarning)
        return work(*arguments, **options)


def check_coverage(chain: Chain) -> None:
    """Every layer, product and parameter of the graph is quantized or listed with a reason."""
    policy = chain_policy(chain, Bits(4, 4))
    parts = float_parts(chain, float_reasons(policy))
    assert all(part.reason for part in parts)
    known = {row.layer for row in policy} | {part.name for part in parts}
    owners = {name.rpartition(".")[0] for name in known}  # of an operator with several parameters the first is named
    for path, _ in chain.module.named_parameters():
        is_bias = "bias" in path.rpartition(".")[2]
        assert is_bias or path.removesuffix(".weight") in known or path.rpartition(".")[0] in owners, path
    products = {product.node for product in find_products(chain.module.graph)}
    layers = {node for _, node in weighted_nodes(chain.module)}
    listed = {part.operator for part in parts}
    for node in data_nodes(chain.module.graph):
        if is_convolution(node) or is_linear(node) or operator_name(node) in (*PRODUCTS, *RECURRENT):
            assert node in products or node in layers or operator_name(node) in listed, node


@pytest.mark.parametrize("name", NETWORKS if IS_FULL else FEW)
def test_the_chain_is_the_network_and_nothing_is_left_out_in_silence(name: str) -> None:
    model, images = odd_network(name)
    chain = silently(capture, model, images[:2])
    with torch.no_grad():
        expected, got = model.eval()(images), chain.module(images)
    assert float((got - expected).abs().max()) <= CLOSE * float(expected.abs().max())
    check_coverage(chain)
    result = silently(
        clcalib.quantize,
        model,
        clcalib.CalibrationSet.from_tensor(images.repeat(3, *[1] * (images.ndim - 1))),
        recipe=clcalib.recipes.fast(steps=1) if IS_FULL else clcalib.recipes.nearest(),
        bits=Bits(8, 8),
        measured_images=0,
        precision="float32",
    )
    weights = [module for module in result.model.modules() if isinstance(module, IntegerWeight)]
    assert len(weights) == len(chain.layers)
    error = float((result.model(images) - expected).abs().max())
    assert error <= 0.05 * float(expected.abs().max())
    record("architectures", network=name, layers=len(weights), float_parts=[p.name for p in result.record.float_parts])


@pytest.mark.parametrize(
    ("name", "listed"),
    {
        "matmul with a parameter": {"table": "matmul"},
        "einsum with a parameter": {"table": "einsum"},
        "addmm with a parameter": {"table": "addmm"},
        "bilinear": {"mixed": "bilinear"},
        "lstm": {"rows.weight_ih_l0": "lstm"},
        "gru cell": {"cell.weight_ih": "gru_cell"},
        "tied embedding": {"table": "embedding"},
        "embedding bag": {"table": "embedding_bag"},
        "shared batch norm": {"norm": "batch_norm"},
        "dynamic convolution": {"conv2d": "conv2d"},
        "prelu": {"act": "prelu"},
    }.items(),
)
def test_what_stays_in_float_has_a_line_of_its_own(name: str, listed: dict[str, str]) -> None:
    model, images = odd_network(name)
    parts = float_parts(silently(capture, model, images[:2]), {})
    assert {part.name: part.operator for part in parts} == listed
    assert all(part.reason for part in parts)


def test_layers_that_are_float_by_choice_are_in_the_record_with_the_reason(tmp_path) -> None:
    model, images = odd_network("grouped convolution")
    calibration = clcalib.CalibrationSet.from_tensor(images.repeat(6, 1, 1, 1))
    result = clcalib.quantize(
        model, calibration, recipe=clcalib.recipes.nearest(), bits=Bits(8, 8), overrides={"conv": "float"}
    )
    result.save(tmp_path)
    (part,) = read_record(tmp_path / "run.json").float_parts
    assert (part.name, part.operator, part.reason) == ("conv", "conv2d", "override conv")
    assert part.parameters == sum(tensor.numel() for tensor in model.conv.parameters())


def test_one_error_lists_every_module_that_cannot_be_captured() -> None:
    model = Fails().eval()
    hooks = [len(module._forward_hooks) for module in model.modules()]
    with pytest.raises(CaptureError) as caught:
        capture(model, torch.randn(2, 4))
    lines = str(caught.value).splitlines()
    assert lines[0] == "5 modules of the model cannot be captured:"
    starts = [line.strip().partition(")")[0] for line in lines[1:-1]]
    assert starts == [
        "- parts.0 (Branches",
        "- parts.2 (ToNumpy",
        "- rest.1 (FixedBatch",
        "- rest.2 (Branches",
        "- the model (Fails",
    ]
    with open(__file__.replace("test_architectures", "odd_networks"), encoding="utf-8") as file:
        code = file.read().splitlines()
    marked = [number for number, line in enumerate(code, start=1) if "# FAILS" in line]
    named = [int(line.partition("odd_networks.py:")[2].partition(" ")[0]) for line in lines[1:-1]]
    assert sorted(set(named)) == marked
    assert [len(module._forward_hooks) for module in model.modules()] == hooks
    assert not any("forward" in module.__dict__ for module in model.modules())


def test_a_module_that_is_at_fault_alone_is_named_as_before() -> None:
    class Alone(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fine = nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.fine(x) if x.sum() > 0 else x

    with pytest.raises(CaptureError, match=r"^the model cannot be captured at .*data-dependent control flow"):
        capture(Alone().eval(), torch.randn(2, 4))
