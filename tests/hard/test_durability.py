"""Runs that are killed, whose files are damaged, whose disk is full: nothing finished is lost, nothing is wrong."""

from __future__ import annotations

import dataclasses
import os
import random
import shutil
import signal
import time
import warnings
from multiprocessing.process import BaseProcess
from multiprocessing.synchronize import Barrier
from pathlib import Path

import pytest
import torch

import clcalib
from clcalib.calibrate.observer import SilentObserver
from clcalib.calibrate.recipe import Term
from clcalib.durable.lock import LOCK_FILE, folder_lock
from clcalib.durable.manifest import generation_of, read_manifest
from clcalib.durable.state import RunState, newest_manifest
from clcalib.errors import (
    DamagedStateWarning,
    FolderInUseError,
    NonFiniteLossWarning,
    OutputExistsError,
    ResumeError,
    StorageError,
)
from clcalib.objectives.batch import Need, UnitBatch
from tests.hard.figures import IS_FULL, record, size
from tests.hard.small_run import FORKS, Task, code_of, digest, digest_in, often, quantize, recipe, started
from tests.tiny import images, tiny

# The others are tried where everything is asked for: a recipe is data, and all go through the same walk and loop.
COMMON = ("nearest", "qdrop")
RECIPES = (
    COMMON
    if not IS_FULL
    else ("nearest", "adaround", "brecq", "qdrop", "pd_quant", "fast", "genie_m", "straight_through", "glf_q")
)


class Stops(SilentObserver):
    """Ends the run by an error at its n-th report of losses."""

    def __init__(self, after: int) -> None:
        self.after = after

    def step(self, step, losses):
        self.after -= 1
        if self.after < 0:
            raise RuntimeError("the run ends here")


def unfinished(folder: Path, monkeypatch, after: int = 6) -> Path:
    """The state of a run that ended inside a unit, with finished units and saved steps."""
    often(monkeypatch)
    with pytest.raises(RuntimeError, match="ends here"):
        quantize(folder, observer=Stops(after))
    return folder


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("is_contrastive", [False, True])
def test_a_run_in_many_pieces_gives_the_same_bytes(name, is_contrastive, tmp_path, monkeypatch):
    if (name == "glf_q" and is_contrastive) or (name == "nearest" and is_contrastive):
        pytest.skip("the recipe takes no contrastive term")
    own = recipe(name, is_contrastive=is_contrastive, steps=30) if name != "nearest" else clcalib.recipes.nearest()
    expected = digest(quantize(None, recipe=own), tmp_path / "whole")
    often(monkeypatch)
    pieces, is_resumed = 0, False
    while True:
        try:
            result = quantize(tmp_path / "state", is_resumed=is_resumed, recipe=own, observer=Stops(1))
        except RuntimeError:
            pieces, is_resumed = pieces + 1, True
            assert pieces < 50, "the run makes no progress"
            continue
        break
    assert digest(result, tmp_path / "pieces") == expected
    assert result.record.resumptions == pieces
    record("resumed_equal", recipe=name, contrastive=is_contrastive, pieces=pieces)


def test_a_run_that_trains_biases_goes_on_with_them(tmp_path, monkeypatch):
    own = clcalib.with_biases(clcalib.recipes.brecq(steps=30, activation_steps=30))
    expected = digest(quantize(None, recipe=own), tmp_path / "whole")
    often(monkeypatch)
    for number, is_resumed in enumerate((False, True, True)):
        with pytest.raises(RuntimeError, match="ends here"):
            quantize(tmp_path / "state", is_resumed=is_resumed, recipe=own, observer=Stops(2 + number))
    assert digest(quantize(tmp_path / "state", is_resumed=True, recipe=own), tmp_path / "pieces") == expected


@pytest.mark.parametrize("addition", [clcalib.with_last_phase, clcalib.with_tuning])
def test_the_last_phase_over_the_whole_network_goes_on_too(tmp_path, monkeypatch, addition):
    own = addition(recipe(steps=10), steps=60)
    expected = digest(quantize(None, recipe=own), tmp_path / "whole")
    often(monkeypatch)
    with pytest.raises(RuntimeError, match="ends here"):
        quantize(tmp_path / "state", recipe=own, observer=Stops(8))
    assert "network-00000-part" in newest_manifest(tmp_path / "state").entries
    result = quantize(tmp_path / "state", is_resumed=True, recipe=own)
    assert digest(result, tmp_path / "pieces") == expected
    again = quantize(tmp_path / "state", is_resumed=True, recipe=own)
    assert digest(again, tmp_path / "again") == expected
    assert again.record.last_phase == result.record.last_phase
    assert again.record.units == result.record.units


@dataclasses.dataclass(frozen=True)
class BreaksHalfway:
    """A loss that is not finite from the middle of the phase on, or, where it is mended, only at full speed."""

    is_mended: bool
    needs = frozenset({Need.ROUNDING})

    def __call__(self, batch: UnitBatch) -> torch.Tensor:
        fastest = max(float(own.detach().abs().max()) for own in batch.rounding)
        is_broken = float(batch.progress) >= 0.5 and not (self.is_mended and fastest < 90.0)
        return batch.output.sum() * (float("nan") if is_broken else 0.0)


@pytest.mark.usefixtures("exported_once")
@pytest.mark.parametrize("is_mended", [True, False])
def test_a_run_whose_loss_breaks_goes_on_from_before_and_behind_that(is_mended, tmp_path, monkeypatch):
    """Stopped again and again: in the attempt that breaks, in the search for the place, and in the second attempt."""
    (phase,) = recipe(steps=30).phases
    rate = 100.0 if is_mended else phase.rounding_rate
    phase = dataclasses.replace(phase, rounding_rate=rate, terms=(*phase.terms, Term(BreaksHalfway(is_mended))))
    own = dataclasses.replace(recipe(steps=30), phases=(phase,))
    monkeypatch.setattr(warnings, "showwarning", lambda *told, **more: None)
    warnings.simplefilter("always", NonFiniteLossWarning)
    whole = quantize(None, recipe=own)
    expected = digest(whole, tmp_path / "whole")
    messages = [message for message in whole.record.warnings if "BreaksHalfway is nan" in message]
    assert len(messages) == len(whole.record.units)
    assert all(("was done again in float32" in message) is is_mended for message in messages)
    often(monkeypatch)
    for pieces in range(50):
        try:
            result = quantize(tmp_path / "state", is_resumed=pieces > 0, recipe=own, observer=Stops(2 * pieces))
        except RuntimeError:
            continue
        break
    assert pieces >= 2
    assert digest(result, tmp_path / "pieces") == expected
    assert [message for message in result.record.warnings if message in messages] == messages


class Reported(Stops):
    """Remembers the steps of the unit that were reported."""

    def __init__(self, after: int) -> None:
        super().__init__(after)
        self.steps: list[int] = []

    def step(self, step, losses):
        self.steps.append(step)
        super().step(step, losses)


@pytest.mark.usefixtures("exported_once")
@pytest.mark.parametrize(
    ("is_mended", "place", "next_step"),
    [
        (True, {"phase": 0, "attempt": 1}, 0),  # found again from the beginning: it was saved before the first step
        (True, {"phase": 0, "attempt": 2}, 25),
        (False, {"phase": 1, "attempt": 0}, 30 + 25),
    ],
)
def test_the_attempt_that_was_under_way_goes_on_at_the_step_that_was_next(
    is_mended, place, next_step, tmp_path, monkeypatch
):
    """Attempts at the first phase break at step 15, reports are of steps 0, 25 and 29 of each phase."""
    (plain,) = recipe(steps=30).phases
    rate = 100.0 if is_mended else plain.rounding_rate
    phase = dataclasses.replace(plain, rounding_rate=rate, terms=(*plain.terms, Term(BreaksHalfway(is_mended))))
    own = dataclasses.replace(recipe(steps=30), phases=(phase, plain))
    monkeypatch.setattr(warnings, "showwarning", lambda *told, **more: None)
    warnings.simplefilter("always", NonFiniteLossWarning)
    whole = quantize(None, recipe=own)
    reports = {(0, 1): 1, (0, 2): 3, (1, 0): 4}[place["phase"], place["attempt"]]
    often(monkeypatch)
    with pytest.raises(RuntimeError, match="ends here"):
        quantize(tmp_path / "state", recipe=own, observer=Stops(reports))
    identity = newest_manifest(tmp_path / "state").identity
    saved = RunState.resume(tmp_path / "state", identity).get("unit-00000-part")
    assert saved is not None
    assert saved.values["place"].items() >= place.items()
    assert len(saved.values["warnings"]) == (place["phase"] == 1)
    rest = Reported(1000)
    result = quantize(tmp_path / "state", is_resumed=True, recipe=own, observer=rest)
    assert rest.steps[0] == next_step
    assert digest(result, tmp_path / "pieces") == digest(whole, tmp_path / "whole")
    assert [text for text in result.record.warnings if "BreaksHalfway" in text] == [
        text for text in whole.record.warnings if "BreaksHalfway" in text
    ]


@pytest.mark.parametrize("missing", ["place", "curves", "step"])
def test_steps_that_do_not_say_where_they_are_are_done_again(missing, tmp_path, monkeypatch):
    """As those that another version saved, with a hash that fits."""
    unfinished(tmp_path / "state", monkeypatch, after=1)
    state = RunState.resume(tmp_path / "state", newest_manifest(tmp_path / "state").identity)
    (part,) = (name for name in state.names if name.endswith("-part"))
    saved = state.get(part)
    state.put(part, dataclasses.replace(saved, values={k: v for k, v in saved.values.items() if k != missing}))
    with pytest.warns(DamagedStateWarning, match=rf"{part}.*does not fit the network"):
        result = quantize(tmp_path / "state", is_resumed=True)
    assert digest(result, tmp_path / "pieces") == digest(quantize(None), tmp_path / "whole")


def has_manifest(state: Path) -> bool:
    return state.is_dir() and any(generation_of(path) is not None for path in state.iterdir())


def saved_parts(state: Path) -> set[str]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DamagedStateWarning)  # a payload whose manifest the kill came before
        return set(newest_manifest(state).entries) if has_manifest(state) else set()


def newest(state: Path) -> int:
    """The number of the newest manifest, or -1."""
    numbers = [generation_of(path) for path in state.iterdir()] if state.is_dir() else []
    return max((number for number in numbers if number is not None), default=-1)


def wait_for_a_save(process: BaseProcess, state: Path) -> None:
    """Until the process has saved something, or ended."""
    before = newest(state)
    while process.is_alive() and newest(state) == before:
        time.sleep(0.001)


def test_killed_at_random_times(tmp_path):
    """D1: no finished unit is lost, and the result is that of a run without a kill.

    Half of the kills come at any time of the run, the others when it has begun to save.
    """
    state, chance, often_saved = tmp_path / "state", random.Random(1), {"snapshot_seconds": 0.02}
    assert code_of(started(Task(state, tmp_path / "whole", **often_saved))) == 0
    expected, _ = digest_in(tmp_path / "whole"), shutil.rmtree(state)
    start = time.monotonic()
    process = started(Task(state, **often_saved))
    wait_for_a_save(process, state)
    saving = time.monotonic()
    assert code_of(process) == 0
    end = time.monotonic()
    kills, tries, inside, lost, wrong, wanted = 0, 0, 0, 0, 0, size(3, 200)
    while kills < wanted and tries < 10 * wanted:
        tries += 1
        shutil.rmtree(state)
        done = set[str]()
        for is_last in (*(False for _ in range(chance.choice((1, 2)))), True):
            process = started(Task(state, tmp_path / "out", is_resumed=has_manifest(state), **often_saved))
            if not is_last:
                is_saving = chance.random() < 0.5
                if is_saving:
                    wait_for_a_save(process, state)
                process.join(chance.uniform(0, end - (saving if is_saving else start)))
                process.kill()
            code = code_of(process)
            now = saved_parts(state)
            lost += len({name for name in done if not name.endswith("-part")} - now)
            done = now
            assert code in (0, -signal.SIGKILL)
            if code == 0:
                break
            kills, inside = kills + 1, inside + any(name.endswith("-part") for name in now)
        wrong += digest_in(tmp_path / "out") != expected
        shutil.rmtree(tmp_path / "out")
    record("D1", tries=tries, kills=kills, kills_inside_a_unit=inside, units_lost=lost, wrong_results=wrong)
    assert kills >= wanted
    assert (lost, wrong) == (0, 0)


def damage(folder: Path, chance: random.Random) -> tuple[Path, str]:
    """Flip a byte of one of the state's files, cut it off, or delete it."""
    path = chance.choice(sorted(path for path in folder.iterdir() if path.name != LOCK_FILE))
    kind = chance.choice(("flip", "truncate", "delete"))
    content = bytearray(path.read_bytes())
    if kind == "flip":
        content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
        path.write_bytes(content)
    elif kind == "truncate":
        path.write_bytes(content[: chance.randrange(len(content))])
    else:
        path.unlink()
    return path, kind


def test_damaged_files_are_named_and_their_content_is_computed_again(tmp_path, monkeypatch):
    """D3: every damage is found by its hash; the run goes on with the same result, or says why it cannot."""
    original = unfinished(tmp_path / "original", monkeypatch)
    expected = digest(quantize(None), tmp_path / "whole")
    often(monkeypatch, 60)
    chance, tries, found, equal, stopped = random.Random(2), size(8, 500), 0, 0, 0
    for _ in range(tries):
        state = tmp_path / "state"
        shutil.rmtree(state, ignore_errors=True)
        shutil.copytree(original, state)
        path, _ = damage(state, chance)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                equal += digest(quantize(state, is_resumed=True), tmp_path / "out") == expected
                told = [str(entry.message) for entry in caught if entry.category is DamagedStateWarning]
            except ResumeError as error:
                stopped, told = stopped + 1, [str(error)]
        found += any(path.name in text for text in told)
    record("D3", damages=tries, named=found, continued_to_equal_results=equal, stopped=stopped)
    assert found == tries
    assert equal + stopped == tries


def test_both_manifests_damaged_stop_the_run(tmp_path, monkeypatch):
    state = unfinished(tmp_path / "state", monkeypatch)
    manifests = [path for path in state.iterdir() if generation_of(path) is not None]
    assert len(manifests) == 2
    for path in manifests:
        path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(ResumeError) as error:
        quantize(state, is_resumed=True)
    assert all(path.name in str(error.value) for path in manifests)


def changed_weight():
    model = tiny()
    with torch.no_grad():
        model.block.conv1.weight[0, 0, 0, 0] += 1e-6
    return model


def changed_image():
    values = images()
    values[7, 1, 2, 3] += 1e-6
    return clcalib.CalibrationSet.from_tensor(values)


CHANGES = {
    "model's weights": lambda: {"model": changed_weight()},
    "calibration images": lambda: {"calibration": changed_image()},
    "seed": lambda: {"seed": 1},
    "widths of block.conv1": lambda: {"overrides": {"block.conv1": "W3A4"}},
    "widths of fc": lambda: {"first_last_bits": 6},
    "widths of block.conv1 was": lambda: {"setting": "brecq"},
    "recipe.phases.0.rounding_rate": lambda: {"recipe": clcalib.recipes.qdrop(steps=40, rounding_rate=0.02)},
    "recipe.phases.0.steps": lambda: {"recipe": recipe(steps=41)},
    "recipe.name": lambda: {"recipe": recipe("fast")},
    "recipe.contrastive": lambda: {"recipe": recipe(is_contrastive=True)},
    "weight_range": lambda: {"weight_range": "minmax"},
    "activation_range": lambda: {"activation_range": "minmax"},
    "target": lambda: {"target": "onnxruntime"},
    "guard_tolerance": lambda: {"is_guarded": False},
    "precision": lambda: {"precision": "bfloat16"},
    "cache_precision": lambda: {"cache_precision": "bfloat16"},
    "held-out images": lambda: {"held_out": clcalib.CalibrationSet.from_tensor(images(20, 5)), "measured_images": 20},
    "units": lambda: {"unit_patterns": ("block.conv1",)},
}
MACHINE = {
    "torch version": ("clcalib.identity.versions", lambda: {"clcalib": "0", "torch": "1.0"}),
    "threads": ("torch.get_num_threads", lambda: 7),
    "kernels": ("clcalib.identity.kernels_on", lambda device: "other"),
    "device": ("platform.machine", lambda: "abacus"),
}


def test_other_settings_are_refused_by_name(tmp_path, monkeypatch):
    """D4: a run goes on only as what it began as."""
    state = unfinished(tmp_path / "state", monkeypatch)
    refused = 0
    for field, changes in CHANGES.items():
        with pytest.raises(ResumeError, match=field):
            quantize(state, is_resumed=True, **changes())
        refused += 1
    for field, (place, value) in MACHINE.items():
        with monkeypatch.context() as patch:
            patch.setattr(place, value)
            with pytest.raises(ResumeError, match=field):
                quantize(state, is_resumed=True)
        refused += 1
    record("D4", fields=len(CHANGES) + len(MACHINE), refused=refused)
    free = {"memory_budget": "20KB", "measured_images": 4}
    assert quantize(state, is_resumed=True, **free).record.resumptions == 1


def test_a_state_is_not_overwritten_and_nothing_is_resumed_from_nothing(tmp_path, monkeypatch):
    state = unfinished(tmp_path / "state", monkeypatch)
    with pytest.raises(OutputExistsError, match="state"):
        quantize(state)
    with pytest.raises(ResumeError, match="holds no saved state"):
        quantize(tmp_path / "empty", is_resumed=True)
    with pytest.raises(clcalib.errors.ArgumentError, match="state_folder"):
        quantize(None, is_resumed=True)


def compete(folder: Path, results: Path, gate: Barrier, names: tuple[str, str], is_killed: bool) -> None:
    """Try to hold the folder when both are there; who has it holds it until the other one has said how it went."""
    name, other = names
    gate.wait(60)
    start = time.monotonic()
    try:
        with folder_lock(folder):
            (results / name).write_text("won")
            while not (results / other).exists() and time.monotonic() - start < 60:
                time.sleep(0.01)
            if is_killed:
                os.kill(os.getpid(), signal.SIGKILL)
    except FolderInUseError as error:
        (results / name).write_text(f"{time.monotonic() - start} {error}")


def test_of_two_processes_in_a_folder_one_wins(tmp_path):
    """D6: the loser says who has it, at once; a lock that a killed process left is no obstacle."""
    folder, tries, single, slowest = tmp_path / "folder", size(6, 100), 0, 0.0
    for number in range(tries):
        results = tmp_path / f"results-{number}"
        results.mkdir()
        gate, names = FORKS.Barrier(2), ("first", "second")
        processes = [
            FORKS.Process(target=compete, args=(folder, results, gate, each, number % 2 == 1))
            for each in (names, names[::-1])
        ]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
        texts = [(results / name).read_text() for name in names]
        losers = [text for text in texts if text != "won"]
        single += len(losers) == 1
        for text in losers:
            seconds, _, message = text.partition(" ")
            slowest = max(slowest, float(seconds))
            assert str(processes[1 - texts.index(text)].pid) in message
    record("D6", tries=tries, one_winner=single, slowest_refusal_seconds=round(slowest, 4))
    assert single == tries
    assert slowest < 2


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_what_there_is_and_ends_the_run(number, tmp_path):
    """D7: within 10 seconds, and the steps that were done are not done again."""
    state = tmp_path / "state"
    process = started(Task(state, steps=100_000, snapshot_seconds=3600, is_polite=True))
    start = time.monotonic()
    while not any(name.startswith("start") for name in saved_parts(state)):
        assert time.monotonic() - start < 60
        time.sleep(0.05)
    time.sleep(1.0)
    asked = time.monotonic()
    os.kill(process.pid or 0, number)
    assert code_of(process) == 130
    seconds = time.monotonic() - asked
    assert seconds < 10
    assert [name for name in saved_parts(state) if name.endswith("-part")], "the steps under way were not saved"
    record("D7", signal=signal.Signals(number).name, seconds=round(seconds, 3))


def test_a_manifest_says_what_it_is_of(tmp_path, monkeypatch):
    state = unfinished(tmp_path / "state", monkeypatch)
    newest = max((path for path in state.iterdir() if generation_of(path)), key=lambda path: generation_of(path) or 0)
    manifest = read_manifest(newest)
    assert {"seed", "threads", "torch version", "model's weights", "calibration images"} <= set(manifest.identity)
    assert manifest.seconds > 0
    for entry in manifest.entries.values():
        assert (state / entry.file).stat().st_size == entry.size


def test_storage_errors_leave_the_last_good_state(tmp_path, monkeypatch):
    """What is told where the disk refuses; the battery with real disks is beside this one."""
    state = unfinished(tmp_path / "state", monkeypatch)
    before = newest_manifest(state)

    def refuse(*arguments, **named):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("clcalib.files.os.fsync", refuse)
        with pytest.raises(StorageError, match=r"No space left on device; make room"):
            quantize(state, is_resumed=True)
    assert newest_manifest(state) == before
    assert not list(state.glob(".*safetensors*")), "a temporary file stayed behind"
