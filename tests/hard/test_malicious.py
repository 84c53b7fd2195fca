"""Files made to harm are refused: no code runs, no memory fills, nothing hangs, and the error names the file."""

from __future__ import annotations

import os
import sys
import tempfile
import time
from pathlib import Path

import pytest
from torch import nn

from clcalib.data.decode import open_image
from clcalib.errors import ClcalibError
from clcalib.model_source import load_weights
from clcalib.reading.state_dict import most_weight_bytes
from tests.fuzz.targets import TARGETS
from tests.hard.figures import record
from tests.hard.malicious import CORPUS

MOST_SECONDS = 5.0
MOST_MEMORY = 2 * most_weight_bytes(0)  # twice the longest file of weights of a small network: 128 MiB


def memory(field: str) -> int | None:
    """Bytes: VmRSS, or VmHWM since ``forget_peak``; None where the system does not tell."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith(field))
    except (OSError, StopIteration):
        return None


def forget_peak() -> None:
    if sys.platform == "linux":
        Path("/proc/self/clear_refs").write_text("5")


@pytest.fixture(scope="module", autouse=True)
def _warm() -> None:
    """Read a sound file of every kind once, so that what the libraries allocate at first is not counted."""
    for target in TARGETS.values():
        with tempfile.TemporaryDirectory() as folder:
            target.folder(Path(folder))
            target.attack(target.seeds()[0], Path(folder))


def test_the_corpus_is_large_and_of_every_kind() -> None:
    assert len(CORPUS) >= 30
    assert {kind for kind, _ in CORPUS.values()} >= set(TARGETS) - {"model_tensors", "onnx_openvino"}


@pytest.mark.parametrize("name", CORPUS)
def test_a_malicious_file_is_refused(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kind, make = CORPUS[name]
    target, canary, folder = TARGETS[kind], tmp_path / "canary", tmp_path / "files"
    folder.mkdir()
    target.folder(folder)
    data = make(canary)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    forget_peak()
    before, start = memory("VmRSS"), time.process_time()
    answer = target.attack(data, folder)  # anything but an error of clcalib that names the folder fails here
    seconds, peak = time.process_time() - start, memory("VmHWM")  # of the processor: the machine may be busy
    used = None if before is None or peak is None else peak - before
    record("malicious", file=name, kind=kind, bytes=len(data), seconds=round(seconds, 3), memory=used)
    assert answer != "read"
    assert folder.name in answer
    assert not canary.exists()
    assert seconds < MOST_SECONDS
    assert used is None or used < MOST_MEMORY


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes")
@pytest.mark.parametrize("name", ["net.pt", "net.safetensors", "a.png"])
def test_what_is_no_plain_file_is_not_waited_for(name: str, tmp_path: Path) -> None:
    def read(path: Path) -> object:
        return open_image(path) if path.suffix == ".png" else load_weights(nn.Linear(1, 1), path)

    os.mkfifo(tmp_path / name)
    with pytest.raises(ClcalibError, match=rf"{name}.*is no plain file"):
        read(tmp_path / name)
    (tmp_path / name).unlink()
    (tmp_path / name).mkdir()
    with pytest.raises(ClcalibError, match=rf"{name}.*is no plain file"):
        read(tmp_path / name)
