"""The saved state beside what is not its own, and the polite end."""

from __future__ import annotations

import os
import signal
import warnings
from pathlib import Path

import pytest
import torch

from clcalib.durable import stop
from clcalib.durable.lock import LOCK_FILE, folder_lock
from clcalib.durable.payload import Payload
from clcalib.durable.state import RunState
from clcalib.errors import DamagedStateWarning, OutputExistsError


def payload(value: int) -> Payload:
    return Payload({"codes": torch.full((4,), value)}, {"value": value})


@pytest.mark.parametrize("name", ["weights.safetensors", "notes.txt", "folder"])
def test_a_folder_with_anything_of_the_users_is_refused_and_stays_as_it_is(tmp_path, name):
    if name == "folder":
        (tmp_path / name).mkdir()
    else:
        (tmp_path / name).write_text("mine")
    with pytest.raises(OutputExistsError, match="a folder of its own"):
        RunState.begin(tmp_path, {"seed": "0"})
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_begin_keeps_the_lock_that_is_held(tmp_path):
    folder = tmp_path / "state"
    with folder_lock(folder):
        RunState.begin(folder, {"seed": "0"})
        assert (folder / LOCK_FILE).exists()


def test_tidying_removes_old_payloads_and_nothing_else(tmp_path):
    folder = tmp_path / "state"
    state = RunState.begin(folder, {"seed": "0"})
    others = [folder / name for name in ("mine.safetensors", "a.b.safetensors", "notes.txt")]
    for path in others:
        path.write_text("mine")
    for value in range(5):
        state.put("unit", payload(value))
    assert all(path.read_text() == "mine" for path in others)
    own = {path.name for path in folder.iterdir()} - {path.name for path in others}
    assert own == {"unit.000004.safetensors", "unit.000005.safetensors", "manifest-000004.json", "manifest-000005.json"}
    again = RunState.resume(folder, {"seed": "0"}).get("unit")
    assert again is not None
    assert again.values == {"value": 4}


NAMES = [f"{name}.{number:06}.safetensors" for name, number in (("unit", 2), ("unit", 3), ("other", 1))]


def saved(folder: Path) -> Path:
    """Two parts, one of them also as it was a generation before."""
    state = RunState.begin(folder, {"seed": "0"})
    for name, value in (("other", 1), ("unit", 2), ("unit", 3)):
        state.put(name, payload(value))
    assert {path.name for path in folder.iterdir()} == {*NAMES, "manifest-000002.json", "manifest-000003.json"}
    return folder


@pytest.mark.parametrize("damage", ["flip", "truncate", "delete"])
@pytest.mark.parametrize("name", [*NAMES, "manifest-000002.json", "manifest-000003.json"])
def test_each_damage_to_each_file_is_named(damage, name, tmp_path):
    path = saved(tmp_path / "state") / name
    content = path.read_bytes()
    if damage == "delete":
        path.unlink()
    else:
        path.write_bytes(
            content[:-5] if damage == "truncate" else content[:-5] + bytes([content[-5] ^ 1]) + content[-4:]
        )
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        state = RunState.resume(tmp_path / "state", {"seed": "0"})
        found = {part: state.get(part) for part in ("unit", "other")}
    assert [entry.category for entry in told] == [DamagedStateWarning]
    assert name in str(told[0].message)
    values = {part: None if each is None else each.values["value"] for part, each in found.items()}
    unit = {NAMES[1]: None, "manifest-000003.json": 2}.get(name, 3)
    assert values == {"unit": unit, "other": None if name == NAMES[2] else 1}


def test_an_end_within_the_tidying_is_no_damage(tmp_path):
    folder = saved(tmp_path / "state")
    old = (folder / "manifest-000002.json").read_bytes()
    RunState.resume(folder, {"seed": "0"}).put("unit", payload(4))
    (folder / "manifest-000002.json").write_bytes(old)  # its unit has gone already
    state = RunState.resume(folder, {"seed": "0"})
    assert state.get("unit").values == {"value": 4}


def test_a_request_to_stop_ends_with_its_block():
    with stop.stopping_politely() as request:
        assert not stop.is_asked()
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.is_asked()
    assert request.signal == signal.SIGTERM
    assert not stop.is_asked()


def twice() -> None:
    with stop.stopping_politely():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)


def impatient() -> None:
    with stop.stopping_politely(patience=0.05):
        os.kill(os.getpid(), signal.SIGINT)
        signal.pause()


@pytest.mark.parametrize("block", [twice, impatient])
def test_a_second_signal_or_the_end_of_patience_interrupts(block):
    with pytest.raises(KeyboardInterrupt):
        block()
    assert not stop.is_asked()
