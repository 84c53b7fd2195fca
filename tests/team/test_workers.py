"""The same bits from 1, 2 and 4 workers, which are real processes; and what each of them holds."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest
import torch

import clcalib
from clcalib import job, pipeline
from clcalib.calibrate.journal import Journal
from clcalib.calibrate.observer import SilentObserver
from clcalib.calibrate.space import StoreSpace
from clcalib.calibrate.walk import Walk
from clcalib.capture.chain import capture
from clcalib.errors import ArgumentError
from clcalib.quant.insert import chain_policy, insert_quantizers
from clcalib.quant.ranges import RANGE_RULES
from clcalib.team.team import Team
from tests.team.workers import RECIPES, Echo, Stopping, alone, digest, quantized, runs_of, together
from tests.tiny import images, tiny

pytestmark = pytest.mark.filterwarnings("ignore::clcalib.errors.WorseThanNearestWarning")
FAST = ("contrastive", "brecq")


@functools.cache
def by_one_worker(*names: str) -> list[dict[str, Any]]:
    return alone(runs_of(*names))


def same(found: list[list[dict[str, Any]]], expected: list[dict[str, Any]]) -> bool:
    """Whether all workers have the bits that are expected."""
    return [[one["digest"] for one in worker] for worker in found] == [[one["digest"] for one in expected]] * len(found)


def test_two_workers_give_the_bits_of_one():
    assert same(together(2, runs_of(*FAST)), by_one_worker(*FAST))


@pytest.mark.slow
def test_four_workers_give_the_bits_of_one():
    assert same(together(4, runs_of(FAST[0])), by_one_worker(*FAST)[:1])


@pytest.mark.slow
@pytest.mark.parametrize("workers", [2, 4])
def test_every_recipe_gives_the_same_bits(workers):
    names = tuple(RECIPES)
    assert same(together(workers, runs_of(*names)), by_one_worker(*names))


@pytest.mark.slow
def test_stores_in_files_change_nothing():
    found = together(2, runs_of("contrastive", memory_budget=20_000))
    assert same(found, by_one_worker(*FAST)[:1])


def test_the_result_depends_on_the_shards():
    two, four = (digest(quantized(Team(shards=shards))) for shards in (2, 4))
    assert two != four


def test_a_run_goes_on_with_another_number_of_workers(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(pipeline, "Journal", lambda state: Journal(state, snapshot_seconds=0.0))
    whole = alone(runs_of("qdrop"))
    with pytest.raises(KeyboardInterrupt):
        quantized(Team(shards=4), "qdrop", state_folder=tmp_path / "state", observer=Stopping())
    found = together(2, runs_of("qdrop", state_folder=tmp_path / "state", is_resumed=True))
    assert same(found, whole)
    assert [one["resumptions"] for (one,) in found] == [1, 0]


def test_workers_with_different_runs_are_told():
    with pytest.raises(AssertionError, match="ArgumentError: team: expected the same run"):
        together(2, _of_its_own)


def test_worker_0_chooses_what_is_chosen_by_time():
    assert together(2, _told_a_type) == ["bfloat16"] * 2


def _told_a_type(team: Team) -> str:
    job.convolution_dtype = lambda precision, device: (torch.bfloat16, torch.float32)[team.rank]
    return quantized(team, "nearest", precision="auto").record.precision


def _of_its_own(team: Team) -> None:
    quantized(team, "nearest", seed=team.rank)


def test_a_worker_holds_the_stores_of_its_own_shards():
    """4,096 images on four workers: a quarter each."""
    count, bits = 4096, clcalib.Bits(4, 4)
    chain = capture(tiny(), images(2), unit="block")
    used = []
    for workers in (1, 4):
        base = insert_quantizers(chain, chain_policy(chain, bits), RANGE_RULES["minmax"], None)
        team = Team(4, workers, 0, Echo(workers))
        with StoreSpace() as space:
            walk = Walk(
                chain, base, clcalib.recipes.nearest(), RANGE_RULES["minmax"], {}, 0, SilentObserver(), space=space,
                team=team,
            )  # fmt: skip
            list(walk.run(images(count), None))
            used.append(space.most_used)
    assert used[0] == 4 * used[1] > count * 8 * 8 * 8


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"count": 7}, "shards: expected at most 3, with 7 calibration images, got 4"),
        ({"held_out": 3}, "shards: expected at most 3, with 3 held-out images, got 4"),
        ({"recipe": 6}, "shards: expected at most 3, with 6 images a step in phase .*, got 4"),
    ],
)
@pytest.mark.filterwarnings("ignore::clcalib.errors.SmallCalibrationWarning")
def test_too_many_shards_are_told(changes, told):
    if "held_out" in changes:
        changes = {"held_out": clcalib.CalibrationSet.from_tensor(images(changes["held_out"]))}
    if "recipe" in changes:
        changes = {"recipe": clcalib.recipes.qdrop(steps=4, batch_size=changes["recipe"])}
    with pytest.raises(ArgumentError, match=told):
        quantized(Team(shards=4), **changes)


def test_the_record_tells_shards_and_workers():
    record = quantized(Team(shards=2), "nearest").record
    assert (record.shards, record.workers) == (2, 1)
    assert torch.get_num_threads() == record.threads
