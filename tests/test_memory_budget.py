"""A memory budget changes where things are kept and nothing else; nonsense is told."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest
import torch

import clcalib
from clcalib.calibrate.observer import SilentObserver
from clcalib.calibrate.space import FileBlock, StoreSpace
from clcalib.errors import ArgumentError
from tests.tiny import images, tiny

BITS = clcalib.Bits(2, 4)
RECIPES = {
    "qdrop": clcalib.with_contrastive(clcalib.recipes.qdrop(steps=6)),
    "adaround": clcalib.recipes.adaround(steps=4),  # cuts of two tensors
    "brecq": clcalib.recipes.brecq(steps=6, activation_steps=4, is_fisher_weighted=True),
}


def state(recipe, **options):
    calibration = clcalib.CalibrationSet.from_tensor(images(100))
    held_out = clcalib.CalibrationSet.from_tensor(images(20, seed=4))
    result = clcalib.quantize(tiny(), calibration, recipe=recipe, bits=BITS, held_out=held_out, **options)
    return result.model.state_dict()


def open_files(folder: Path) -> list[str]:
    links = Path("/proc/self/fd")
    targets = [os.readlink(link) for link in links.iterdir() if link.exists()] if links.is_dir() else []
    return [target for target in targets if target.startswith(str(folder))]


def prefetchers():
    return [thread for thread in threading.enumerate() if thread.name.startswith("clcalib-prefetch")]


@pytest.mark.parametrize("budget", [1, 300_000, "1GB"])
@pytest.mark.parametrize("name", RECIPES)
def test_the_result_is_the_same_bit_for_bit(name, budget, tmp_path):
    plain = state(RECIPES[name])
    bounded = state(RECIPES[name], memory_budget=budget, spill_folder=tmp_path)
    assert plain.keys() == bounded.keys()
    assert all(torch.equal(plain[key], bounded[key]) for key in plain)
    assert (list(tmp_path.iterdir()), open_files(tmp_path), prefetchers()) == ([], [], [])


@pytest.mark.parametrize("budget", [1, 200_000])
@pytest.mark.parametrize("name", ["qdrop", "pd_quant"])
def test_nor_does_it_change_what_bfloat16_caches_give(name, budget):
    recipe = {**RECIPES, "pd_quant": clcalib.recipes.pd_quant(steps=4, correction_steps=3)}[name]
    exact, plain, bounded = (
        state(recipe, precision="float32", **options)
        for options in (
            {},
            {"cache_precision": "bfloat16"},
            {"cache_precision": "bfloat16", "memory_budget": budget},
        )
    )
    assert all(torch.equal(plain[key], bounded[key]) for key in plain)
    assert not all(torch.equal(plain[key], exact[key]) for key in plain)


def test_bfloat16_caches_halve_what_the_float_network_takes(monkeypatch):
    """One store of each unit, its target and the next one's input; the quantized network's stay as they are."""
    taken = []
    allocate = StoreSpace.allocate

    def watched(self, shape, dtype, device, **options):
        if not options.get("is_passing"):
            taken.append((dtype, shape[0] * shape[1] * dtype.itemsize))
        return allocate(self, shape, dtype, device, **options)

    monkeypatch.setattr(StoreSpace, "allocate", watched)
    calibration = clcalib.CalibrationSet.from_tensor(images(100))

    def sizes(name):
        taken.clear()
        options = {"recipe": clcalib.recipes.nearest(), "bits": BITS, "cache_precision": name}
        result = clcalib.quantize(tiny(), calibration, **options)
        assert result.record.cache_precision == name
        return list(taken), len(result.record.units)

    (exact, units), (halved, _) = sizes("float32"), sizes("bfloat16")
    changed = [(before, after) for before, after in zip(exact, halved, strict=True) if before != after]
    assert len(changed) == units
    for (dtype, size), (smaller, half) in changed:
        assert (dtype, smaller, half) == (torch.float32, torch.bfloat16, size // 2)


def test_no_more_is_in_memory_than_the_budget(monkeypatch):
    seen, files = [], []
    allocate = StoreSpace.allocate

    def watched(self, *arguments, **options):
        block = allocate(self, *arguments, **options)
        seen.append(self.used)
        files.append(block.storage is None)
        return block

    monkeypatch.setattr(StoreSpace, "allocate", watched)
    state(RECIPES["qdrop"], memory_budget=300_000)
    assert 0 < max(seen) <= 300_000
    assert any(files)
    assert not all(files)


def test_an_exception_leaves_nothing_behind(tmp_path):
    class Stopping(SilentObserver):
        def step(self, step, losses):
            assert open_files(tmp_path) or not Path("/proc/self/fd").is_dir()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        state(RECIPES["qdrop"], memory_budget=1, spill_folder=tmp_path, observer=Stopping())
    assert (list(tmp_path.iterdir()), open_files(tmp_path), prefetchers()) == ([], [], [])


@pytest.mark.parametrize("budget", [0, -5, 2.5, True, "", "12 parsecs", "-1GB", "0MB", "GB", "1e9", "1 000"])
def test_a_nonsense_budget_is_told(budget):
    with pytest.raises(ArgumentError, match=r'memory_budget: expected a number of bytes above 0, or .*"2GB".*, got'):
        state(RECIPES["qdrop"], memory_budget=budget)


def test_a_folder_that_is_not_there_is_told(tmp_path):
    with pytest.raises(ArgumentError, match=r"spill_folder: expected a folder that exists"):
        state(RECIPES["qdrop"], memory_budget=1, spill_folder=tmp_path / "nowhere")


def test_no_read_is_under_way_behind_the_last_step(monkeypatch):
    """It would keep a store alive, so that the disk that a run needs depended on how fast the disk is."""
    asked, gathered = [], []
    prefetch, gather = FileBlock.prefetch, FileBlock.gather
    monkeypatch.setattr(FileBlock, "prefetch", lambda block, index: asked.append(id(block)) or prefetch(block, index))
    monkeypatch.setattr(FileBlock, "gather", lambda block, index: gathered.append(block._ahead) or gather(block, index))
    state(clcalib.recipes.qdrop(steps=6), memory_budget=1)
    assert asked
    assert len(asked) == sum(ahead is not None for ahead in gathered)
