"""Sweep files: what they stand for, what is wrong with them, and what a run's key depends on."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from clcalib.calibrate.recipes import ADDITIONS
from clcalib.config import make_recipe
from clcalib.config_sections import ModelSection, RecipeSection
from clcalib.errors import ConfigError
from clcalib.sweep import key
from clcalib.sweep.jobs import Plan
from clcalib.sweep.plan import SweepFile, cells
from clcalib.sweep.planning import plan_of, read_sweep

ROOT = Path(__file__).parent.parent.parent
NETWORK = "from torch import nn\n\ndef build():\n    return nn.Sequential(nn.Flatten(), nn.Linear(12, 3))\n"
SWEEP = """
[sweep]
out = "out"

[common.data]
calibration = "images.safetensors"

[networks.net.model]
entry = "net.py:build"

[recipes]
nearest = { name = "nearest" }
qdrop = { name = "qdrop", steps = 4 }

[contrastive.term]
weight = 0.5

[[grids]]
widths = ["W4A4", "w2a2"]
recipes = ["qdrop"]
seeds = [0, 1]

[[grids]]
widths = ["W2A2"]
recipes = ["nearest", "qdrop"]
contrastive = ["none"]
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "net.py").write_text(NETWORK)
    (tmp_path / "sweep.toml").write_text(SWEEP)
    save_file({"images": torch.arange(96.0).reshape(8, 3, 2, 2)}, tmp_path / "images.safetensors")
    return tmp_path


def plan(folder: Path, **more: Any) -> Plan:
    path = folder / "sweep.toml"
    return plan_of(read_sweep(path), str(path), **more)


def changed(folder: Path, old: str, new: str) -> Plan:
    text = (folder / "sweep.toml").read_text()
    assert old in text
    (folder / "sweep.toml").write_text(text.replace(old, new))
    return plan(folder)


def keys(plan: Plan) -> dict[str, str]:
    return {entry.label: entry.key for entry in plan.entries}


def test_a_plan_has_every_run_once_seed_by_seed(folder: Path) -> None:
    found = plan(folder)
    assert [entry.label for entry in found.entries] == [
        "net/W4A4/qdrop/none/seed0",
        "net/W4A4/qdrop/term/seed0",
        "net/W2A2/qdrop/none/seed0",
        "net/W2A2/qdrop/term/seed0",
        "net/W2A2/nearest/none/seed0",
        "net/W4A4/qdrop/none/seed1",
        "net/W4A4/qdrop/term/seed1",
        "net/W2A2/qdrop/none/seed1",
        "net/W2A2/qdrop/term/seed1",
    ]
    assert found.database == str(folder / "out" / "sweep.db")
    assert len(set(keys(found).values())) == 9
    cell_sizes = Counter(entry.cell for entry in found.entries)
    assert sorted(cell_sizes.values()) == [1, 2, 2, 2, 2]
    pairs = Counter(entry.pair for entry in found.entries)
    assert sorted(pairs.values()) == [1, 2, 2, 2, 2]  # each run with the term and the same one without


def test_a_plan_can_be_cut_down_and_changed(folder: Path) -> None:
    assert list(keys(plan(folder, only=["W2A2/qdrop/term"]))) == [f"net/W2A2/qdrop/term/seed{seed}" for seed in (0, 1)]
    assert list(keys(plan(folder, only=["nearest", "W4A4/qdrop/none/seed1"]))) == [
        "net/W2A2/nearest/none/seed0",
        "net/W4A4/qdrop/none/seed1",
    ]
    moved = plan(folder, settings=[{"data": {"count": 4}}], out=folder / "other", database="postgresql://h/n")
    assert moved.database == "postgresql://h/n"
    assert '"count":4' in moved.entries[0].configuration
    assert str(folder / "other") in moved.entries[0].configuration
    with pytest.raises(ConfigError, match="no run has any of these in its label: W3A3"):
        plan(folder, only=["W3A3"])


def test_a_key_is_the_hash_of_configuration_code_and_data_and_of_no_path(
    folder: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = keys(plan(folder))
    other = tmp_path_factory.mktemp("other")
    for name in ("net.py", "sweep.toml", "images.safetensors"):
        (other / name).write_bytes((folder / name).read_bytes())
    assert keys(plan(other, out=other / "elsewhere")) == before
    with monkeypatch.context() as patch:
        patch.setattr("clcalib.sweep.planning.code_version", lambda: "another code")
        assert not set(keys(plan(folder)).values()) & set(before.values())
    (folder / "net.py").write_text(NETWORK + "# changed\n")
    assert not set(keys(plan(folder)).values()) & set(before.values())
    (folder / "net.py").write_text(NETWORK)
    save_file({"images": torch.arange(96.0).reshape(8, 3, 2, 2) + 1}, folder / "images.safetensors")
    assert not set(keys(plan(folder)).values()) & set(before.values())
    save_file({"images": torch.arange(96.0).reshape(8, 3, 2, 2)}, folder / "images.safetensors")
    assert keys(plan(folder)) == before
    steps = keys(changed(folder, "steps = 4", "steps = 5"))
    assert {label for label in before if steps[label] == before[label]} == {"net/W2A2/nearest/none/seed0"}


def test_tile_sheets_and_folders_are_digested_whole(tmp_path: Path) -> None:
    for name in ("a.json", "a.png", "b.png"):
        (tmp_path / name).write_text(name)
    sheet, whole = key.images_digest(tmp_path / "a.png"), key.images_digest(tmp_path)
    assert key.images_digest(tmp_path / "a.json") == sheet
    (tmp_path / "b.png").write_text("another")
    os.utime(tmp_path / "b.png", (0, 0))
    assert key.images_digest(tmp_path / "a.png") == sheet
    assert key.images_digest(tmp_path) != whole
    (tmp_path / "a.png").write_text("other")
    os.utime(tmp_path / "a.png", (0, 0))
    assert key.images_digest(tmp_path / "a.json") != sheet


def test_a_list_is_digested_with_its_files_and_a_hub_by_its_name(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("a")
    (tmp_path / "list.txt").write_text("a.png\ngone.png\n")
    before = key.images_digest(tmp_path / "list.txt")
    (tmp_path / "a.png").write_text("another")
    assert key.images_digest(tmp_path / "list.txt") != before
    assert key.images_digest(Path("hf:cifar10")) != key.images_digest(Path("hf:cifar100"))


def test_who_watches_a_run_is_no_part_of_its_key(folder: Path) -> None:
    before = keys(plan(folder))
    assert keys(plan(folder, settings=[{"tracking": {"tensorboard": str(folder / "events")}}])) == before


def test_published_weights_are_known_by_their_name() -> None:
    named = ModelSection(entry="torchvision:resnet18", weights=Path("pretrained"))
    assert key.model_digest(named) != key.model_digest(named.model_copy(update={"weights": None}))


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("[[grids]]", "[[grid]]", "grid: unknown key; did you mean 'grids'?"),
        ('out = "out"', "lease = 9.0", "sweep.out: missing; give the path of the folder of all runs"),
        ("seeds = [0, 1]", "seed = 0", "grids.0.seed: unknown key; did you mean 'seeds'?"),
        ("seeds = [0, 1]", "seeds = [-1]", "grids.0.seeds.0: expected"),
        ('recipes = ["qdrop"]', 'recipes = ["qdrp"]', "grids.0.recipes: expected one of nearest, qdrop, got 'qdrp'"),
        ('"w2a2"', '"2/2"', "grids.0.widths: expected widths such as W2A4, got '2/2'"),
        ("[contrastive.term]", "[contrastive.none]", "contrastive.none: expected another name"),
        ("[common.data]", "[common.run]\nseed = 1\n[common.data]", "common.run.seed: belongs to an axis"),
        ("[networks.net.model]", "[networks.net.recipe]\n[networks.net.model]", "networks.net.recipe: belongs to an"),
        ("[networks.net.model]", '[networks."a/b".model]', "networks.a/b"),
        ("[common.data]", "[common.dta]", "dta: unknown key; did you mean 'data'? (in net/W4A4/qdrop/none and 5 more)"),
        ("steps = 4", "steps = 4, stps = 5", "recipe.stps: unknown key"),
        ("weight = 0.5", "weigth = 0.5", "contrastive.weigth: unknown key; did you mean 'weight'? (in net/W4A4"),
        ("W4A4", "W1A4", "quantization.weights: expected a whole number from 2 to 8"),
        ('"net.py:build"', '"nt.py:build"', "model.entry: there is no file"),
    ],
)
def test_all_that_is_wrong_is_told(folder: Path, old: str, new: str, told: str) -> None:
    with pytest.raises(ConfigError) as error:
        changed(folder, old, new)
    assert told in str(error.value)


def test_problems_of_several_cells_come_together(folder: Path) -> None:
    with pytest.raises(ConfigError) as error:
        changed(folder, 'name = "qdrop", steps = 4', 'name = "qdrp", steps = 0')
    assert "recipe.name: expected one of" in str(error.value)
    assert len(error.value.problems) == 1  # of six cells the same
    with pytest.raises(ConfigError) as error:
        changed(folder, '"W4A4", "w2a2"', '"W1A4", "w2a9"')
    assert len(error.value.problems) >= 3


def test_the_study_as_a_sweep_is_the_same_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = ROOT / "benchmarks"
    if not folder.exists():
        pytest.skip("the benchmarks are not part of this copy")
    monkeypatch.syspath_prepend(str(folder))
    import study.grid as grid
    from study.one import HELD_OUT_IMAGES

    wanted = {
        (cell.network, cell.weights, cell.activations, repr(cell.make()), cell.calibration_images, seed)
        for part, make in grid.PARTS.items()
        for cell in make()
        for seed in grid.SEEDS[part]
    }
    file = read_sweep(folder / "study.toml")
    assert isinstance(file, SweepFile)
    found = Counter()
    for cell in cells(file):
        table = cell.table
        recipe = make_recipe(RecipeSection(**table["recipe"]), {name: table.get(name) for name in ADDITIONS})
        bits, data = table["quantization"], table["data"]
        assert table["guard"] == {"enabled": False}
        assert table["run"] == {"precision": "bfloat16", "threads": 1}
        assert data["held_out_count"] == HELD_OUT_IMAGES
        for seed in cell.seeds:
            found[cell.network, bits["weights"], bits["activations"], repr(recipe), data["count"], seed] += 1
    assert set(found) == wanted
    assert len(wanted) > 2000
