"""Units are dealt so that the largest worker is as small as can be, and what cannot be dealt is told."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

import clcalib
from clcalib.capture.chain import capture
from clcalib.errors import ArgumentError
from clcalib.placed.plan import Amounts, _load, _memory, planned, workers_of
from clcalib.placed.release import held_bytes
from clcalib.quant.insert import chain_policy
from clcalib.report.memory_table import memory_table
from tests.test_pipeline_networks import Tokens
from tests.tiny import images, tiny

AMOUNTS = Amounts(images=40)


def linears(*sizes: int) -> clcalib.capture.chain.Chain:
    layers = [nn.Sequential(nn.Linear(a, b), nn.ReLU()) for a, b in itertools.pairwise(sizes)]
    return capture(nn.Sequential(*layers).eval(), torch.randn(2, sizes[0]), unit="layer")


@pytest.mark.parametrize("workers", [1, 2, 3, 4])
def test_the_largest_worker_is_as_small_as_can_be(workers):
    chain = linears(30, 20, 60, 40, 10, 90, 3)
    policy, count = chain_policy(chain, clcalib.Bits(4, 4)), len(chain.units)
    loads = [_load(chain, index, policy, AMOUNTS) for index in range(count)]

    def largest(cuts):
        ends = (0, *cuts, count)
        return max(_memory(a, (), loads[a:b]).total for a, b in itertools.pairwise(ends))

    plan = planned(chain, policy, AMOUNTS, workers)
    found = max(row.total for row in plan)
    assert found == min(map(largest, itertools.combinations(range(1, count), workers - 1)))
    assert [row.first for row in plan] == [0, *(row.last + 1 for row in plan[:-1])]
    assert workers_of(plan) == [rank for rank, row in enumerate(plan) for _ in range(row.first, row.last + 1)]


def test_attention_counts_as_any_other_layer():
    torch.manual_seed(0)
    chain = capture(Tokens().eval(), images(2), unit="block")
    policy = chain_policy(chain, clcalib.Bits(4, 4))
    (row,) = planned(chain, policy, AMOUNTS, 1)
    numbers = sum(tensor.numel() for tensor in chain.module.state_dict().values() if tensor.ndim > 1)
    assert any(layer.endswith("in_proj_weight") for layer in chain.layers)
    assert row.weights == held_bytes(chain.module) + 2 * 2 * numbers


def test_the_bytes_are_those_that_there_are():
    chain = capture(tiny(), images(2), unit="block")
    policy = chain_policy(chain, clcalib.Bits(4, 4))
    (row,) = planned(chain, policy, AMOUNTS, 1)
    numbers = sum(chain.module.state_dict()[f"{layer}.weight"].numel() for layer in chain.layers)
    assert row.weights == held_bytes(chain.module) + 2 * 2 * numbers
    assert row.activation == 64 * 8 * 8 * 8 * 4
    assert row.caches == 40 * 3 * 8 * 8 * 8 * 4  # of the block: its input twice, and its output
    assert row.total == row.weights + row.trained + row.caches + row.activation
    (halved,) = planned(chain, policy, Amounts(40, torch.bfloat16), 1)
    assert halved.caches == row.caches * 5 // 6  # quantized values stay as they are
    (bounded,) = planned(chain, policy, Amounts(40, memory_budget=1000, is_trained=False), 1)
    assert (bounded.caches, bounded.trained) == (1000, 0)
    (read,) = planned(chain, policy, Amounts(40, is_read=True), 1)
    assert read.weights == row.weights + held_bytes(chain.module)


def test_more_workers_than_units_are_told():
    chain = linears(4, 5, 6)
    with pytest.raises(ArgumentError, match="workers: expected at most 2, as the network has 2 units .*, got 3; take"):
        planned(chain, chain_policy(chain, clcalib.Bits(4, 4)), AMOUNTS, 3)


class Tied(nn.Module):
    """One layer is called twice, with another one between."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 2)

    def forward(self, x):
        return self.c(self.a(self.b(self.a(x).relu()).relu()).relu())


def test_units_that_share_a_layer_stay_together():
    chain = capture(Tied().eval(), torch.randn(2, 6), unit="layer")
    policy = chain_policy(chain, clcalib.Bits(4, 4))
    first, second = planned(chain, policy, AMOUNTS, 2)
    assert (first.last, second.first) == (2, 3)
    with pytest.raises(ArgumentError, match="workers: expected at most 2, as the network has 4 units"):
        planned(chain, policy, AMOUNTS, 3)


def test_the_table_has_a_row_for_each_worker():
    chain = linears(4, 5, 6, 7)
    table = memory_table(planned(chain, chain_policy(chain, clcalib.Bits(4, 4)), AMOUNTS, 2))
    assert table.row_count == 2
    assert [str(column.header) for column in table.columns][-1] == "total"
