"""How images are dealt to shards, and shards to workers."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from clcalib.errors import ArgumentError
from clcalib.team.team import Team


@given(shards=st.integers(1, 9), count=st.integers(0, 50))
def test_shards_share_all_images_evenly(shards: int, count: int) -> None:
    spans = Team(shards=shards).spans(count)
    images = [image for first, end in spans for image in range(first, end)]
    sizes = {end - first for first, end in spans}
    assert images == list(range(count))
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_workers_have_neighbouring_shards(workers: int) -> None:
    teams = [Team(shards=4, workers=workers, rank=rank) for rank in range(workers)]
    assert [number for team in teams for number in team.own] == [0, 1, 2, 3]
    ends = [team.own_span(10) for team in teams]
    assert ends[0][0] == 0
    assert ends[-1][1] == 10
    assert all(before[1] == after[0] for before, after in itertools.pairwise(ends))


@pytest.mark.parametrize(
    ("arguments", "name"),
    [({"shards": 0}, "shards"), ({"shards": 4, "workers": 3}, "workers"), ({"shards": 4, "rank": 1}, "rank")],
)
def test_what_cannot_be_dealt_is_named(arguments: dict[str, int], name: str) -> None:
    with pytest.raises(ArgumentError, match=f"^{name}: expected"):
        Team(**arguments)


def test_a_total_is_added_up_in_the_order_of_the_shards() -> None:
    values = [torch.tensor([value]) for value in (1e8, 1.0, -1e8, 1.0)]
    assert torch.equal(Team(shards=4).total(values), ((values[0] + values[1]) + values[2]) + values[3])
