"""The user's model: imported from a module or a file, its weights checked name by name."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from clcalib.config_sections import ModelSection
from clcalib.errors import ArgumentError, CheckpointError
from clcalib.model_source import load_model, load_weights

CODE = """
import neighbour
from torch import nn

def build(width=2):
    return nn.Sequential(nn.Linear(3, width), nn.BatchNorm1d(width))

def fail():
    raise RuntimeError("first line\\nsecond line")

def other():
    return 3

class Holder:
    build = staticmethod(build)

number = 3
"""


@pytest.fixture
def file(tmp_path: Path) -> Iterator[Path]:
    (tmp_path / "neighbour.py").write_text("")
    path = tmp_path / "net.py"
    path.write_text(CODE)
    yield path
    sys.modules.pop("neighbour", None)


def test_a_file_is_imported_with_its_neighbours_and_the_path_is_left_alone(file: Path) -> None:
    before = list(sys.path)
    model = load_model(ModelSection(entry=f"{file}:build", arguments={"width": 5}))
    assert isinstance(model, nn.Sequential)
    assert model[0].weight.shape == (5, 3)
    assert not model.training
    assert sys.path == before
    assert isinstance(load_model(ModelSection(entry=f"{file}:Holder.build")), nn.Sequential)


def test_a_module_is_imported() -> None:
    model = load_model(ModelSection(entry="torch.nn:Linear", arguments={"in_features": 2, "out_features": 3}))
    assert isinstance(model, nn.Linear)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("biuld", "expected a name in .*net.py, got biuld; it has build, fail, other"),
        ("number", "a callable"),
        ("other", r"return a torch.nn.Module, got int"),
        ("fail", "got RuntimeError: first line$"),
    ],
)
def test_an_entry_that_gives_no_module_is_one_line(file: Path, name: str, message: str) -> None:
    with pytest.raises(ArgumentError, match=message) as caught:
        load_model(ModelSection(entry=f"{file}:{name}"))
    assert "\n" not in str(caught.value)


def test_wrong_arguments_are_told(file: Path) -> None:
    with pytest.raises(ArgumentError, match="unexpected keyword argument 'depth'"):
        load_model(ModelSection(entry=f"{file}:build", arguments={"depth": 5}))


def test_what_cannot_be_imported_is_told(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="ModuleNotFoundError"):
        load_model(ModelSection(entry="no_such_package_anywhere.module:build"))
    (tmp_path / "broken.py").write_text("def build(:\n")
    modules = set(sys.modules)
    with pytest.raises(ArgumentError, match="SyntaxError"):
        load_model(ModelSection(entry=f"{tmp_path / 'broken.py'}:build"))
    assert {name for name in set(sys.modules) - modules if name.startswith("_clcalib")} == set()


def test_weights_are_loaded_and_counters_may_be_missing(tmp_path: Path) -> None:
    source, target = (nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)) for _ in range(2))
    weights = {name: tensor for name, tensor in source.state_dict().items() if "num_batches" not in name}
    save_file(weights, tmp_path / "net.safetensors")
    load_weights(target, tmp_path / "net.safetensors")
    assert torch.equal(target[0].weight, source[0].weight)


def test_weights_that_do_not_fit_are_named_and_nothing_is_loaded(tmp_path: Path) -> None:
    model = nn.Linear(3, 2)
    before = model.weight.detach().clone()
    extra = {f"extra{index}": torch.zeros(1) for index in range(5)}
    save_file({"weight": torch.zeros(4, 3), **extra}, tmp_path / "net.safetensors")
    with pytest.raises(CheckpointError) as caught:
        load_weights(model, tmp_path / "net.safetensors")
    assert str(caught.value).endswith(
        "does not fit Linear: the file lacks bias; the model has no extra0, extra1, extra2 and 2 more; "
        "other shapes: weight is (4, 3), expected (2, 3)"
    )
    assert torch.equal(model.weight, before)


def test_a_damaged_file_is_one_error(tmp_path: Path) -> None:
    (tmp_path / "net.safetensors").write_bytes(b"damaged")
    with pytest.raises(CheckpointError, match="not a readable"):
        load_weights(nn.Linear(3, 2), tmp_path / "net.safetensors")


@pytest.mark.parametrize(
    ("entry", "arguments"),
    [
        ("os:system", {"command": "touch canary"}),
        ("posix:system", {"command": "touch canary"}),
        ("subprocess:getoutput", {"cmd": "touch canary"}),
        ("builtins:exec", {"source": "open('canary', 'w')"}),
        ("net.py:neighbour.__builtins__", {}),
        ("torch:load", {"f": "evil.pt", "weights_only": False}),
        ("torch:jit.load", {"f": "evil.pt"}),
        ("torch.hub:load", {"repo_or_dir": ".", "model": "evil", "source": "local"}),
        ("torch:export.load", {"f": "evil.pt2"}),
        ("torch.nn.functional:torch.hub.load", {"repo_or_dir": ".", "model": "evil", "source": "local"}),
    ],
)
def test_an_entry_that_builds_nothing_is_not_called(
    entry: str, arguments: dict[str, object], file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(file.parent)
    (file.parent / "hubconf.py").write_text("open('canary', 'w')")
    with pytest.raises(ArgumentError, match=r"model.entry: expected a (callable|name)"):
        load_model(ModelSection(entry=entry, arguments=arguments))
    assert not (file.parent / "canary").exists()
