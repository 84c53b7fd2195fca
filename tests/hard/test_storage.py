"""Disks that are full or refuse, and a kill at every system call of a save."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import re
import shutil
import signal
import subprocess
import tempfile
import warnings
from pathlib import Path

import pytest

from clcalib.calibrate.observer import SilentObserver
from clcalib.durable.state import RunState, newest_manifest
from clcalib.errors import DamagedStateWarning, StorageError
from tests.hard.figures import record, size
from tests.hard.full_disk import can_mount, leave_free, mounted, read_only
from tests.hard.save_once import END, IDENTITY, payload, save_when_told
from tests.hard.small_run import FORKS, digest, often, quantize

CALLS = "openat,write,fsync,rename,renameat,renameat2,unlink,unlinkat,chmod,fchmod,fchmodat,mkdir,close"


@pytest.fixture
def two_generations(tmp_path: Path) -> Path:
    folder = tmp_path / "state"
    state = RunState.begin(folder, IDENTITY)
    state.put("unit", payload(1))
    return folder


def traced(folder: Path, *options: str) -> int | None:
    """Save in a child that strace is attached to just before; the child's exit code, or less its signal."""
    own, other = FORKS.Pipe()
    process = FORKS.Process(target=save_when_told, args=(folder, other))
    process.start()
    assert own.recv() == "ready"
    command = ["strace", "-f", "-e", f"trace={CALLS}", *options, "-p", str(process.pid)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as tracer:
        assert "attached" in tracer.stderr.readline()
        own.send("save")
        process.join()
        tracer.communicate()
    return process.exitcode


def value_in(folder: Path) -> int:
    """What the state says after a crash, which must be whole."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DamagedStateWarning)  # a newer payload whose manifest the kill came before
        found = RunState.resume(folder, IDENTITY).get("unit")
    assert found is not None
    value = int(found.values["value"])
    assert (found.tensors["codes"] == value).all(), "old and new are mixed"
    return value


@pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace")
def test_a_kill_at_every_system_call_of_a_save_leaves_the_old_or_the_new_state(two_generations, tmp_path):
    """D2, with the kernel's own calls: each of them, from the first of the save to the last."""
    copy = tmp_path / "copy"
    shutil.copytree(two_generations, copy)
    assert traced(copy, "-o", str(tmp_path / "trace")) == 0
    lines = (tmp_path / "trace").read_text().splitlines()
    begun = [match for line in lines if (match := re.match(r"(\d+) +(\w+)\((.*)", line))]
    assert len({match[1] for match in begun}) == 1, "one thread makes the save"
    calls = [match[2] for match in itertools.takewhile(lambda match: END.decode() not in match[3], begun)]
    outcomes = {1: 0, 2: 0}
    for place, name in enumerate(calls):
        folder = tmp_path / "killed"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(two_generations, folder)
        when = calls[: place + 1].count(name)  # each kind of call is counted by itself
        code = traced(folder, "-o", os.devnull, "-e", f"inject={name}:signal=KILL:when={when}")
        assert code == -signal.SIGKILL
        outcomes[value_in(folder)] += 1
    record("D2", calls=len(calls), old_state=outcomes[1], new_state=outcomes[2], mixed=0)
    assert outcomes[1] > 0
    assert outcomes[2] > 0


class Killed(BaseException):
    """Ends the process as far as the save is concerned."""


CALLS_OF_A_SAVE = {tempfile: ("mkstemp",), os: ("fdopen", "fsync", "chmod", "replace", "open", "close")}


class Countdown:
    """Stands for the calls of a save: at the n-th of them, the process ends, before or after the call."""

    def __init__(self, number: int, *, is_after: bool) -> None:
        self.left, self.is_after = number, is_after

    def wrapped(self, function):
        def call(*arguments, **named):
            self.left -= 1
            is_now = self.left == -1
            if is_now and not self.is_after:
                raise Killed
            result = function(*arguments, **named)
            if is_now:
                raise Killed
            return result

        return call

    def install(self, patch) -> None:
        for module, names in CALLS_OF_A_SAVE.items():
            for name in names:
                patch.setattr(module, name, self.wrapped(getattr(module, name)))
        patch.setattr(Path, "unlink", lambda *arguments, **named: None)  # what is dead does not tidy up


# A process that is dead closes no file.
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("is_after", [False, True])
def test_an_end_at_every_step_of_a_save_leaves_the_old_or_the_new_state(
    two_generations, tmp_path, monkeypatch, is_after
):
    """D2, as far as Python goes: before and after each call that the save makes, with no tidying up afterwards."""
    outcomes, number = {1: 0, 2: 0}, 0
    while True:
        folder = tmp_path / f"killed-{number}"
        shutil.copytree(two_generations, folder)
        state = RunState.resume(folder, IDENTITY)
        with monkeypatch.context() as patch:
            Countdown(number, is_after=is_after).install(patch)
            try:
                state.put("unit", payload(2))
                is_killed = False
            except Killed:
                is_killed = True
        outcomes[value_in(folder)] += 1
        if not is_killed:
            break
        number += 1
    assert number > 10
    assert outcomes[1] > 0
    assert outcomes[2] > 1 or not is_after
    assert value_in(folder) == 2


class FillsDisk(SilentObserver):
    """When the first unit begins, leaves so many bytes free."""

    def __init__(self, folder: Path, free: int) -> None:
        self.folder, self.free, self.ballast = folder, free, None

    def unit_started(self, index, count, name, kind, steps):
        if self.ballast is None:
            self.ballast = leave_free(self.folder, self.free)


@pytest.mark.skipif(not can_mount(), reason="no file system can be mounted here (needs root)")
def test_a_disk_that_fills_up_loses_nothing(tmp_path, monkeypatch):
    """D5: at 20 levels of what is still free, a clear message, and what was saved before can be gone on with."""
    often(monkeypatch)
    expected = digest(quantize(None), tmp_path / "whole")
    levels, told, equal, enough = size(4, 20), 0, 0, 0
    for level in range(levels):
        with mounted(tmp_path / "disk", 4 << 20) as disk:
            observer = FillsDisk(disk, 4096 * size(3, 1) * level)
            try:
                result = quantize(disk / "state", observer=observer)
                enough += 1
            except StorageError as error:
                told += error.errno == errno.ENOSPC and "make room" in str(error)
                newest_manifest(disk / "state")
                observer.ballast.unlink()
                result = quantize(disk / "state", is_resumed=True)
            equal += digest(result, tmp_path / "out") == expected
    record("D5", levels=levels, told=told, enough_room=enough, equal_results=equal)
    assert told > 0
    assert told + enough == equal == levels


@pytest.mark.skipif(not can_mount(), reason="no file system can be mounted here (needs root)")
def test_a_disk_that_is_too_small_is_told_before_the_start(tmp_path):
    with mounted(tmp_path / "disk", 16 << 10) as disk, pytest.raises(StorageError, match=r"needs up to .* are free"):
        quantize(disk / "state")


@pytest.mark.skipif(not can_mount(), reason="no file system can be mounted here (needs root)")
def test_a_disk_that_becomes_read_only_is_told_and_gone_on_with_later(tmp_path, monkeypatch):
    """D5, the kernel's own EROFS: after the first unit that is saved, nothing can be written."""
    often(monkeypatch, 60)
    expected = digest(quantize(None), tmp_path / "whole")

    class Freezes(SilentObserver):
        def unit_started(self, index, count, name, kind, steps):
            if index == 1:
                frozen.enter_context(read_only(disk))

    with mounted(tmp_path / "disk", 4 << 20) as disk:
        with contextlib.ExitStack() as frozen, pytest.raises(StorageError, match=os.strerror(errno.EROFS)) as error:
            quantize(disk / "state", observer=Freezes())
        assert error.value.errno == errno.EROFS
        assert set(newest_manifest(disk / "state").entries) >= {"unit-00000"}
        assert digest(quantize(disk / "state", is_resumed=True), tmp_path / "out") == expected


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS, errno.EIO, errno.ENOSPC])
@pytest.mark.parametrize("call", ["tempfile.mkstemp", "os.fsync", "os.replace"])
def test_each_refusal_of_the_disk_is_told_and_costs_nothing_saved(number, call, two_generations, monkeypatch):
    state = RunState.resume(two_generations, IDENTITY)

    def refuse(*arguments, **named):
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(f"clcalib.files.{call}", refuse)
        with pytest.raises(StorageError, match=os.strerror(number)) as error:
            state.put("unit", payload(2))
    assert error.value.errno == number
    assert value_in(two_generations) == 1
    state.put("unit", payload(3))
    assert value_in(two_generations) == 3
