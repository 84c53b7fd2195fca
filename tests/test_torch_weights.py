"""Checkpoints of ``torch.save`` as they come from training scripts, in both its formats."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from clcalib.errors import CheckpointError, CheckpointLayoutWarning
from clcalib.model_source import load_weights
from clcalib.reading.state_dict import read_state_dict
from tests.tiny import images, tiny


def save(content: Any, path: Path, *, is_legacy: bool = False) -> Path:
    torch.save(content, path, _use_new_zipfile_serialization=not is_legacy)
    return path


@pytest.mark.parametrize("is_legacy", [False, True])
@pytest.mark.parametrize("suffix", [".pt", ".pth", ".bin", ".ckpt", ".pth.tar"])
def test_a_state_dict_is_loaded(tmp_path: Path, suffix: str, is_legacy: bool) -> None:
    model = tiny(1)
    load_weights(model, save(tiny(2).state_dict(), tmp_path / f"net{suffix}", is_legacy=is_legacy))
    assert torch.equal(model(images(4)), tiny(2)(images(4)))


@pytest.mark.parametrize("is_legacy", [False, True])
@pytest.mark.parametrize("wrapper", ["state_dict", "model_state_dict", "model", "net"])
def test_a_training_checkpoint_is_opened_and_its_layout_is_told(tmp_path: Path, wrapper: str, is_legacy: bool) -> None:
    source, model = tiny(2).train(), tiny(1)
    optimizer = torch.optim.Adam(source.parameters())
    source(images(4)).sum().backward()
    optimizer.step()
    names = {f"module.{name}": tensor for name, tensor in source.state_dict().items()}
    content = {"epoch": 3, "arch": "tiny", wrapper: names, "best": 0.5, "optimizer": optimizer.state_dict()}
    with pytest.warns(CheckpointLayoutWarning, match=rf"net.pt: .* under '{wrapper}', and 'module.' was taken from"):
        load_weights(model, save(content, tmp_path / "net.pt", is_legacy=is_legacy))
    assert torch.equal(model(images(4)), source.eval()(images(4)))


def test_a_prefix_that_the_model_has_too_is_left(tmp_path: Path) -> None:
    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = nn.Linear(2, 2)

    model, source = Outer(), Outer()
    load_weights(model, save(source.state_dict(), tmp_path / "net.pt"))
    assert torch.equal(model.module.weight, source.module.weight)
    prefixed = {f"_orig_mod.module.{name}": tensor for name, tensor in source.state_dict().items()}
    with pytest.warns(CheckpointLayoutWarning, match=r"'_orig_mod.module.' was taken"):
        load_weights(Outer(), save(prefixed, tmp_path / "net.pt"))


@pytest.mark.parametrize("is_legacy", [False, True])
def test_all_types_of_tensors_and_views_come_through(tmp_path: Path, is_legacy: bool) -> None:
    base = torch.randn(4, 6)
    content = {
        "view": base.t()[1:3],
        "parameter": nn.Parameter(base),
        **{str(dtype): torch.ones(3).to(dtype) for dtype in (torch.float16, torch.bfloat16, torch.int64, torch.bool)},
        "scalar": torch.tensor(3),
    }
    found, wrapper = read_state_dict(save(content, tmp_path / "a.pt", is_legacy=is_legacy))
    assert wrapper is None
    assert list(found) == list(content)
    assert all(
        torch.equal(found[name], tensor) and found[name].dtype == tensor.dtype for name, tensor in content.items()
    )
    assert not any(tensor.requires_grad for tensor in found.values())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (torch.zeros(3), "holds a Tensor, expected a state dict"),
        ({"a": 1}, "holds a int 'a', expected a state dict"),
        ({"state_dict": {"a": [torch.zeros(1)]}}, "holds a list 'a' under 'state_dict'"),
        ({1: torch.zeros(1)}, "holds a Tensor '1', expected a state dict"),
    ],
)
def test_other_content_is_named(tmp_path: Path, content: Any, message: str) -> None:
    with pytest.raises(CheckpointError, match=f"a.pt: {message}"):
        read_state_dict(save(content, tmp_path / "a.pt"))


def test_a_whole_model_is_refused_with_what_to_do(tmp_path: Path) -> None:
    for is_legacy in (False, True):
        path = save(nn.Linear(2, 2), tmp_path / "a.pt", is_legacy=is_legacy)
        with pytest.raises(CheckpointError, match=r"object of torch.nn.modules.linear.Linear.*model.state_dict\(\)"):
            read_state_dict(path)


def test_a_file_far_larger_than_the_network_is_not_opened(tmp_path: Path) -> None:
    with (tmp_path / "a.pt").open("wb") as stream:
        stream.truncate(1 << 30)  # a hole, which takes no space on the disk
    with pytest.raises(CheckpointError, match="a.pt: has 1073741824 bytes; at most 67[0-9]* are read"):
        load_weights(nn.Linear(2, 2), tmp_path / "a.pt")
