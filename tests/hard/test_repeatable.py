"""The same command gives the same bytes: twice, for any number of threads that it pins, wherever values are stored."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import clcalib
from clcalib.calibrate.recipes import RECIPES
from clcalib.data.sources import load_calibration
from clcalib.data.transform import Transform
from clcalib.deployment import deploy
from clcalib.errors import ClcalibWarning
from tests.hard.figures import IS_FULL, record
from tests.tiny import images, tiny

BITS = clcalib.Bits(4, 4)
FILES = ("model.safetensors", "model.json", "model.onnx")
STEPS = 3
ROOT = Path(__file__).parents[2]


def recipe(name: str, *, is_contrastive: bool) -> clcalib.Recipe:
    settings = {"steps": STEPS} if name not in ("nearest", "gptq") else {}
    settings |= {"correction_steps": 1} if name == "pd_quant" else {}
    made = RECIPES[name](**settings)
    return clcalib.with_contrastive(made, interval=1) if is_contrastive else made


CASES = [(name, False) for name in RECIPES] + [
    (name, True) for name in RECIPES if name not in ("nearest", "gptq", "cl_calib")
]


def written(folder: Path, made: clcalib.Recipe, target: str | None = None, **settings: Any) -> dict[str, bytes]:
    """The files of a run, by name."""
    calibration = clcalib.CalibrationSet.from_tensor(images(40))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ClcalibWarning)
        result = clcalib.quantize(
            tiny(),
            calibration,
            recipe=made,
            bits=BITS if target is None else clcalib.Bits(8, 8),
            target=target,
            measured_images=0,
            precision="float32",
            **settings,
        )
        result.save(folder)
        deploy(result, folder / "model.onnx")
    return {name: (folder / name).read_bytes() for name in FILES}


@pytest.mark.parametrize(("name", "is_contrastive"), CASES if IS_FULL else [("nearest", False), ("fast", True)])
def test_twice_the_same_bytes(name: str, is_contrastive: bool, tmp_path: Path) -> None:
    made = recipe(name, is_contrastive=is_contrastive)
    first = written(tmp_path / "first", made)
    torch.manual_seed(99)  # what went before plays no part
    random.seed(99)
    assert first == written(tmp_path / "second", recipe(name, is_contrastive=is_contrastive))
    record("same bytes", recipe=name, is_contrastive=is_contrastive, files=len(first), different=0)


@pytest.mark.parametrize("target", ["onnxruntime", "openvino"] if IS_FULL else [])
def test_twice_the_same_file_for_a_runtime(target: str, tmp_path: Path) -> None:
    made = recipe("fast", is_contrastive=True)
    assert written(tmp_path / "a", made, target) == written(tmp_path / "b", made, target)
    record("same bytes", recipe="fast", is_contrastive=True, target=target, files=len(FILES), different=0)


@pytest.mark.parametrize("name", ["qdrop", "pd_quant", "fast"] if IS_FULL else ["fast"])
def test_where_values_are_stored_plays_no_part(name: str, tmp_path: Path) -> None:
    made = recipe(name, is_contrastive=True)
    expected = written(tmp_path / "memory", made)
    spill = tmp_path / "spill"
    spill.mkdir()
    for budget in (1, 20_000, "1MB") if IS_FULL else (1,):
        assert written(tmp_path / f"disk {budget}", made, memory_budget=budget, spill_folder=spill) == expected
        record("stored", recipe=name, budget=budget, different=0)
    assert not list(spill.iterdir())


SCRIPT = """
import sys, pathlib, torch
torch.set_num_threads(int(sys.argv[2]))
sys.path[:0] = {paths!r}
from tests.hard.test_repeatable import recipe, written
written(pathlib.Path(sys.argv[1]), recipe("fast", is_contrastive=True))
"""


# What a user's shell may have set; None is not set at all.
SHELLS = [
    {"OMP_NUM_THREADS": threads, **rest}
    for threads in (None, "1", "2", "4")
    for rest in (
        {"PYTHONHASHSEED": "7"},
        {"MKL_NUM_THREADS": "2", "OMP_WAIT_POLICY": "passive"},
        {"OMP_PROC_BIND": "close"},
    )
]


def environment(variables: dict[str, str | None]) -> dict[str, str]:
    rest = {name: value for name, value in os.environ.items() if name not in variables}
    return rest | {name: value for name, value in variables.items() if value is not None}


@pytest.mark.parametrize("threads", [1, 2] if IS_FULL else [1])
def test_the_environment_plays_no_part_where_threads_are_pinned(threads: int, tmp_path: Path) -> None:
    script = SCRIPT.format(paths=[str(ROOT), str(ROOT / "src"), str(ROOT / "examples")])
    found = []
    for number, variables in enumerate(SHELLS if IS_FULL else SHELLS[:: len(SHELLS) - 1]):
        folder = tmp_path / str(number)
        command = [sys.executable, "-c", script, str(folder), str(threads)]
        own = environment(variables)
        subprocess.run(command, check=True, env=own, cwd=tmp_path, capture_output=True, timeout=1800)
        found.append({name: (folder / name).read_bytes() for name in FILES})
    different = sum(files != found[0] for files in found)
    record("environment", threads=threads, variants=len(found), different=different)
    assert different == 0


@pytest.mark.parametrize("has_classes", [False, True])
def test_the_order_in_which_a_folder_is_listed_plays_no_part(
    has_classes: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [
        f"{label}/{number}.png" if has_classes else f"{label}{number}.png" for label in "bca" for number in (2, 10, 1)
    ]
    for place, name in enumerate(names):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (8, 8), (place * 20, 255 - place * 20, 7)).save(tmp_path / name)
    transform = Transform(mean=(0.5,) * 3, standard_deviation=(0.5,) * 3)
    found = []
    listed, walked = Path.iterdir, os.listdir
    for order in (lambda x: x, lambda x: x[::-1], lambda x: x[3:] + x[:3]):
        with monkeypatch.context() as patch:
            patch.setattr(Path, "iterdir", lambda self, order=order: iter(order(sorted(listed(self)))))
            patch.setattr(os, "listdir", lambda path=".", order=order: order(sorted(walked(path))))
            for seed, count in ((0, 5), (3, 9)):
                found.append((seed, count, load_calibration(tmp_path, transform=transform, count=count, seed=seed)))
    for seed, count in ((0, 5), (3, 9)):
        own = [each for s, c, each in found if (s, c) == (seed, count)]
        assert all(torch.equal(own[0].images, each.images) for each in own)
        assert len({each.provenance.digest for each in own}) == 1
        assert len({each.provenance.indices for each in own}) == 1
    record("listing", orders=3, has_classes=has_classes, different=0)
