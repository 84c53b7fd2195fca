"""Damaged files of every kind: each is read or refused with an error that names it; none kills, hangs or surprises."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.fuzz.targets import TARGETS
from tests.hard.figures import IS_FULL, record, size
from tests.hard.worker import MOST_SECONDS, MOST_WAITED, outcomes

ROOT = Path(__file__).parents[2]
# 1,000 of each kind of file, and 250 of each file of a saved network.
COUNTS = {
    **dict.fromkeys(("pt_zip", "pt_legacy", "safetensors", "jpg", "png", "webp", "bmp"), (30, 1000)),
    **dict.fromkeys(("onnx", "toml", "manifest"), (30, 1000)),
    **dict.fromkeys(("model_json", "model_tensors", "run_json", "config_json", "trace_json", "report_json"), (8, 250)),
    # Beyond these: images as tensors, as arrays, by a list and as tile sheets, and the other runtime.
    **dict.fromkeys(("image_tensors", "npz", "file_list", "sheet_json", "onnx_openvino"), (15, 250)),
}


def from_outside(kind: str, count: int) -> list[dict[str, object]]:
    """The outcomes of a process of its own, started again behind each mutant that ended it."""
    found: list[dict[str, object]] = []
    first = 0
    while first < count:
        command = [sys.executable, "-m", "tests.hard.worker", kind, str(first), str(count)]
        try:
            finished = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=3600, check=False)
            output, how = finished.stdout, f"exit code {finished.returncode}"
        except subprocess.TimeoutExpired as error:
            output, how = (error.stdout or b"").decode(), "a hang"
        lines = [json.loads(line) for line in output.splitlines() if line.endswith("}")]
        found += [line for line in lines if "outcome" in line]
        begun = [line["begins"] for line in lines if "begins" in line]
        first = (begun[-1] if begun else first) + 1
        if len(found) < first:  # the last one that began never ended
            found.append({"number": first - 1, "outcome": "death", "traceback": how, "seconds": 0.0, "waited": 0.0})
    return found


@pytest.mark.parametrize("kind", TARGETS)
def test_sound_files_are_read(kind: str, tmp_path: Path) -> None:
    target = TARGETS[kind]
    target.folder(tmp_path)
    assert [target.attack(seed, tmp_path) for seed in target.seeds()] == ["read"] * len(target.seeds())


@pytest.mark.parametrize("kind", COUNTS)
def test_damaged_files_are_read_or_refused(kind: str) -> None:
    count = size(*COUNTS[kind])
    found = (
        from_outside(kind, count) if IS_FULL else [line for line in outcomes(kind, range(count)) if "number" in line]
    )
    counts = Counter(str(line["outcome"]) for line in found)
    slowest = max(float(str(line["seconds"])) for line in found)
    record("mutants", kind=kind, mutants=len(found), slowest_seconds=round(slowest, 3), **counts)
    bad = [line for line in found if line["outcome"] not in ("read", "refused")]
    assert not bad, f"{len(bad)} of {len(found)}, such as {bad[0]['number']}: {bad[0]['traceback']}"
    assert len(found) == count
    assert counts["refused"] > count // 20, "the damage is too small to test anything"
    assert slowest < MOST_SECONDS
    assert max(float(str(line["waited"])) for line in found) < MOST_WAITED
