"""The bits of one worker from several that have the network's units, which are real processes; and what each has."""

from __future__ import annotations

import functools
import gc
import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import clcalib
from clcalib import pipeline
from clcalib.calibrate.journal import Journal
from clcalib.calibrate.observer import SilentObserver
from clcalib.errors import ArgumentError
from clcalib.line_job import Holder
from clcalib.team.line import Line
from clcalib.team.team import Team
from tests.team.lines import facts, in_line, run_of, settings_of
from tests.team.workers import RECIPES, Stopping
from tests.test_pipeline_networks import Tokens
from tests.tiny import tiny

PLACED = tuple(name for name in RECIPES if name not in ("last_phase", "tuning"))


@functools.cache
def by_one(name: str, **changes: Any) -> dict[str, Any]:
    return facts(None, name, **changes)


def test_two_workers_give_the_bits_of_one():
    assert in_line(2, run_of("contrastive"))[0] == by_one("contrastive")


@pytest.mark.slow
@pytest.mark.parametrize("name", PLACED)
@pytest.mark.parametrize("workers", [1, 2, 3])
def test_every_recipe_gives_the_same_bits(name, workers):
    assert in_line(workers, run_of(name))[0] == by_one(name)


def whole_batch() -> clcalib.Recipe:
    """A term on all images of a batch at each step; its gradient meets that of the host's loss at the unit's output."""
    host = clcalib.recipes.qdrop(steps=6)
    return clcalib.with_contrastive(host, interval=1, images="all", read="logits")


def fisher() -> clcalib.Recipe:
    return clcalib.recipes.brecq(steps=4, activation_steps=2, is_fisher_weighted=True)


@pytest.mark.slow
@pytest.mark.parametrize("recipe", [whole_batch, fisher])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_what_looks_behind_the_unit_gives_the_same_bits(recipe, precision):
    changes = {"recipe": recipe(), "precision": precision, "cache_precision": precision}
    assert in_line(3, run_of("qdrop", **changes))[0] == facts(None, "qdrop", **changes)


def tokens() -> nn.Module:
    torch.manual_seed(0)
    return Tokens().eval()


@pytest.mark.slow
def test_attention_whose_weight_has_another_name_gives_the_same_bits():
    assert in_line(2, functools.partial(facts, name="contrastive", model=tokens))[0] == by_one(
        "contrastive", model=tokens
    )


@pytest.mark.slow
def test_stores_in_files_change_nothing():
    assert in_line(3, run_of("contrastive", memory_budget=20_000))[0] == by_one("contrastive")


@pytest.mark.slow
def test_a_run_of_one_worker_goes_on_with_several_and_the_other_way_round(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(pipeline, "Journal", lambda state: Journal(state, snapshot_seconds=0.0))
    with pytest.raises(KeyboardInterrupt):
        facts(None, "qdrop", state_folder=tmp_path / "one", observer=Stopping())
    (found, *_) = in_line(2, run_of("qdrop", state_folder=tmp_path / "one", is_resumed=True))
    assert found["record"].pop("resumptions") == 1
    expected = by_one("qdrop")
    assert found | {"record": found["record"] | {"resumptions": 0}} == expected
    with pytest.raises(AssertionError, match="KeyboardInterrupt|WorkerLostError"):
        in_line(3, functools.partial(_stopped, folder=tmp_path / "several"))
    again = facts(None, "qdrop", state_folder=tmp_path / "several", is_resumed=True)
    assert again["tensors"] == expected["tensors"]
    assert again["trace"] == expected["trace"]


def _stopped(line: Line, folder: Path) -> None:
    """The second worker's unit is stopped, by worker 0, which alone hears of its steps."""
    facts(line, "qdrop", state_folder=folder, observer=Stopping())


def test_workers_with_different_runs_are_told():
    with pytest.raises(AssertionError, match="line: expected the same run, .* on worker 1 seed 1, and 0"):
        in_line(2, _of_its_own)


def _of_its_own(line: Line) -> None:
    facts(line, "nearest", seed=line.rank)


SIZES = (192, 128, 160, 160, 96, 64)


def perceptron() -> nn.Module:
    torch.manual_seed(0)
    pairs = itertools.pairwise(SIZES)
    layers = [layer for sizes in pairs for layer in (nn.Linear(*sizes), nn.ReLU())]
    return nn.Sequential(nn.Flatten(), *layers, nn.Linear(SIZES[-1], 4)).eval()


def test_a_worker_holds_the_weights_of_its_own_units_alone():
    """Counted in the processes, over everything that is alive, when the result is about to be written."""
    found = in_line(3, _weights_held)
    plan = found[0]["plan"]
    numbers = [sum(rows) for rows in found[0]["by_unit"]]
    for rank, row in enumerate(plan):
        own = sum(numbers[row.first : row.last + 1])
        assert found[rank]["float"] == 4 * own
        assert found[rank]["codes"] == 2 * 2 * own  # of nearest rounding and of the result
        assert own < 0.6 * sum(numbers)
    assert len(plan) == 3


def _weights_held(line: Line) -> dict[str, Any]:
    told, plans = dict[str, Any](), Plans()
    collected, answer = Holder.collected, Holder._answer

    def look(self: Holder, *arguments: Any) -> Any:
        if not arguments or arguments[0].word == "saved":
            told.update(_alive())
        return answer(self, *arguments) if arguments else collected(self)

    Holder.collected, Holder._answer = (lambda self: look(self)), look  # type: ignore[method-assign]
    facts(line, "contrastive", perceptron, observer=plans)
    layers = [layer for layer in perceptron() if isinstance(layer, nn.Linear)]
    return told | {"plan": plans.plan, "by_unit": [[layer.weight.numel()] for layer in layers]}


def _alive() -> dict[str, int]:
    """Bytes of all matrices in this process that have the shape of a layer's weight, each memory once."""
    gc.collect()
    shapes = {(4, SIZES[-1]), *((b, a) for a, b in itertools.pairwise(SIZES))}
    sizes = {"float": dict[int, int](), "codes": dict[int, int]()}
    for thing in gc.get_objects():
        if type(thing) in (torch.Tensor, nn.Parameter) and not thing.is_meta and tuple(thing.shape) in shapes:
            kind = "float" if thing.is_floating_point() else "codes"
            sizes[kind][thing.untyped_storage().data_ptr()] = thing.nbytes
    return {kind: sum(found.values()) for kind, found in sizes.items()}


class Plans(SilentObserver):
    """Remembers the plan; worker 0's alone is told."""

    plan: Any = ()

    def placed(self, plan: Any) -> None:
        self.plan = plan


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"recipe": clcalib.with_last_phase(clcalib.recipes.qdrop(steps=4))}, "last_phase: expected no last phase"),
        ({"recipe": clcalib.with_tuning(clcalib.recipes.nearest())}, "last_phase: expected no last phase"),
        ({"team": Team(shards=2)}, "team: expected the default with --split units"),
        ({"target": "onnxruntime"}, "target: expected the default with --split units"),
        ({"submodule": "block"}, "submodule: expected the default with --split units"),
        ({"is_layer_norm_reparameterized": True}, "is_layer_norm_reparameterized: expected the default"),
        ({"line": Line(4)}, "workers: expected at most 3, as the network has 3 units"),
    ],
)
def test_what_needs_the_whole_network_is_refused(changes, told):
    settings = settings_of("qdrop") | {"evaluation": None, "line": Line(2)} | changes
    with pytest.raises(ArgumentError, match=told):
        clcalib.quantize(tiny(), **settings)
