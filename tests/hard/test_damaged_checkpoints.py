"""A tensor that is missing, too many or of another shape, type or value is an error; nothing is filled with zeros."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save
from torch import Tensor

import clcalib
from clcalib.errors import CheckpointError
from tests.hard.figures import IS_FULL, record
from tests.tiny import images, tiny

pytestmark = pytest.mark.usefixtures("exported_once")
Tensors = dict[str, Tensor]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("saved")
    calibration = clcalib.CalibrationSet.from_tensor(images(40))
    bits = clcalib.Bits(3, 4)
    clcalib.quantize(tiny(), calibration, recipe=clcalib.recipes.nearest(), bits=bits).save(path, overwrite=True)
    return path


def rewritten(folder: Path, target: Path, tensors: Tensors, description: dict[str, Any]) -> Path:
    """The same folder with other content, and a checksum that is right: what is left to be found is the content."""
    payload = save({name: tensor.contiguous() for name, tensor in tensors.items()})
    description["sha256"] = hashlib.sha256(payload).hexdigest()
    (target / "model.safetensors").write_bytes(payload)
    (target / "model.json").write_text(json.dumps(description))
    return target


CHANGES: dict[str, Callable[[Tensor], Tensor | None]] = {
    "missing": lambda t: None,
    "one row more": lambda t: torch.cat((t.flatten(), t.flatten()[:1])),
    "empty": lambda t: t.flatten()[:0],
    "one axis more": lambda t: t[None],
    "another type": lambda t: t.double() if t.is_floating_point() else t.to(torch.int32),
    "nan": lambda t: torch.full_like(t, float("nan")) if t.is_floating_point() else None,
    "inf": lambda t: torch.full_like(t, float("inf")) if t.is_floating_point() else None,
}


def names(folder: Path) -> list[str]:
    return sorted(load_file(folder / "model.safetensors"))


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_tensor_is_told(change: str, folder: Path, tmp_path: Path) -> None:
    sound, description = load_file(folder / "model.safetensors"), json.loads((folder / "model.json").read_text())
    tried = names(folder) if IS_FULL else names(folder)[::3]
    for name in tried:
        tensors = dict(sound)
        value = CHANGES[change](tensors.pop(name))
        if value is not None:
            tensors[name] = value
        path = rewritten(folder, tmp_path, tensors, copy.deepcopy(description))
        with pytest.raises(CheckpointError) as caught:
            clcalib.load(path, tiny())
        assert name.partition("/")[2] in str(caught.value), (change, name)
    record("damaged checkpoints", change=change, tried=len(tried), loaded=0)


@pytest.mark.parametrize("extra", ["float/ghost.weight", "codes/ghost", "input_scale/ghost", "ghost"])
def test_a_tensor_too_many_is_told(extra: str, folder: Path, tmp_path: Path) -> None:
    tensors, description = load_file(folder / "model.safetensors"), json.loads((folder / "model.json").read_text())
    tensors[extra] = torch.ones(3)
    with pytest.raises(CheckpointError, match="ghost"):
        clcalib.load(rewritten(folder, tmp_path, tensors, description), tiny())


DESCRIPTIONS: dict[str, Callable[[dict[str, Any]], object]] = {
    "no policy": lambda d: d.pop("policy"),
    "a row too few": lambda d: d["policy"].pop(),
    "a row too many": lambda d: d["policy"].append({**d["policy"][0], "layer": "ghost"}),
    "a row twice": lambda d: d["policy"].append(d["policy"][0]),
    "another layer": lambda d: d["policy"][1].update(layer="ghost"),
    "other bits": lambda d: d["policy"][1]["weight"].update(bits=5),
    "no bits": lambda d: d["policy"][1]["weight"].pop("bits"),
    "bits of text": lambda d: d["policy"][1]["weight"].update(bits="4"),
    "another axis": lambda d: d["policy"][1]["weight"].update(axis=7),
    "an axis more": lambda d: d["code_shapes"].update(ghost=[3]),
    "no shapes": lambda d: d.pop("code_shapes"),
    "a shape too few": lambda d: d["code_shapes"].popitem(),
    "another shape": lambda d: d["code_shapes"].update({"block.conv1": [8, 8, 3, 2]}),
    "a negative shape": lambda d: d["code_shapes"].update({"block.conv1": [-8, -8, 3, 3]}),
    "a shape of text": lambda d: d["code_shapes"].update({"block.conv1": "8833"}),
    "another input": lambda d: d.update(input_shape=[4, 8, 8]),
    "an input of text": lambda d: d.update(input_shape="3, 8, 8"),
    "another unit": lambda d: d.update(unit="forest"),
    "another submodule": lambda d: d.update(submodule="ghost"),
    "another target": lambda d: d.update(target="abacus"),
    "patterns of nothing": lambda d: d.update(patterns=["ghost.*"]),
    "a list": lambda d: d.update(policy=3),
}


@pytest.mark.parametrize("change", DESCRIPTIONS)
def test_a_changed_description_is_told(change: str, folder: Path, tmp_path: Path) -> None:
    tensors, description = load_file(folder / "model.safetensors"), json.loads((folder / "model.json").read_text())
    DESCRIPTIONS[change](description)
    with pytest.raises(CheckpointError):
        clcalib.load(rewritten(folder, tmp_path, tensors, description), tiny())


def test_codes_beyond_their_width_are_told_or_cannot_be_written(folder: Path) -> None:
    """Packed codes have no bits for more; what is loaded is within its bounds."""
    loaded = clcalib.load(folder, tiny())
    checked = 0
    for module in loaded.modules():
        if isinstance(module, clcalib.quant.modules.IntegerWeight):
            assert int(module.codes.min()) >= module.spec.q_min
            assert int(module.codes.max()) <= module.spec.q_max
            checked += 1
    assert checked == 4
