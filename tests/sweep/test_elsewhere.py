"""A sweep is planned in a process of its own, so that its driver does without torch, and tells what is wrong."""

from __future__ import annotations

import inspect
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

import clcalib
from clcalib import errors
from clcalib.errors import ArgumentError, ConfigError, MissingPackageError, StoppedError, StorageError

NETWORK = "from torch import nn\n\n\ndef build():\n    return nn.Linear(2, 2)\n"
SWEEP = """
[sweep]
out = "runs"

[common.data]
calibration = "images.npz"
count = 4

[networks.net.model]
entry = "net.py:build"

[recipes.nearest]
name = "nearest"

[[grids]]
widths = ["W8A8"]
seeds = [0, 1]
"""
DRIVE = """
import sys
from clcalib.cli import main
if __name__ == "__main__":
    print(main(["sweep", "sweep.toml", "--dry-run", "--json"]), "torch" in sys.modules)
"""


@pytest.mark.parametrize(
    "error",
    [
        ArgumentError("bits", "a whole number", 9, "take 8"),
        ConfigError("sweep.toml", ["one", "two"]),
        StoppedError("asked to end", 143),
        StorageError(28, "no room"),
        MissingPackageError("it is not there"),
    ],
)
def test_errors_are_the_same_in_another_process(error: Exception) -> None:
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error)
    assert (str(again), again.args, vars(again)) == (str(error), error.args, vars(error))
    if isinstance(again, ArgumentError):
        assert "--bits: expected a whole number, got 9; take 8" in str(again.under("--bits"))


def test_every_kind_of_error_can_be_sent() -> None:
    kinds = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, errors.ClcalibError)]
    assert len(kinds) > 10
    for kind in kinds:
        error = kind.__new__(kind, "told")
        assert str(pickle.loads(pickle.dumps(error))) == str(error)


@pytest.mark.parametrize(
    ("widths", "code", "told"),
    [("W8A8", 0, ""), pytest.param("W9A9", 2, "error: sweep.toml", marks=pytest.mark.slow)],
)
def test_the_driver_does_without_torch_and_tells_what_is_wrong(
    tmp_path: Path, widths: str, code: int, told: str
) -> None:
    pytest.importorskip("sqlalchemy", reason="SQLAlchemy is not installed")
    (tmp_path / "net.py").write_text(NETWORK)
    (tmp_path / "images.npz").write_bytes(b"looked at when a run begins")
    (tmp_path / "sweep.toml").write_text(SWEEP.replace("W8A8", widths))
    (tmp_path / "drive.py").write_text(DRIVE)
    finished = subprocess.run(
        [sys.executable, "-W", "error", "drive.py"],
        capture_output=True, text=True, check=False, timeout=300, cwd=tmp_path,
        env={"PYTHONPATH": str(Path(clcalib.__file__).parent.parent), "PATH": ""},
    )  # fmt: skip
    assert finished.returncode == 0, finished.stderr
    *runs, last = finished.stdout.splitlines()
    assert last == f"{code} False", finished.stderr
    assert len(runs) == (2 if code == 0 else 0)
    assert told in finished.stderr
    assert "Traceback" not in finished.stderr
