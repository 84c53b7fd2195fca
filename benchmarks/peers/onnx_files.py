"""ONNX files that libraries wrote of the same network, ours among them, in one table of ``clcalib evaluate``.

    python benchmarks/peers/make_venv.py onnxruntime aimet --venvs VENVS
    python benchmarks/peers/onnx_files.py --data DATA --venvs VENVS --folder FILES   # results/peers_onnx.json
    python benchmarks/peers/page.py

Peers quantize in their own venvs, as in ``run.py``, and leave their file; ours comes from ``clcalib quantize``.  All
see the same calibration images, and ONNX Runtime computes all files.  Needs the public weights, which are no part of
the project.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from common import NETWORKS, ROOT, provenance, write_result
from peers.adapter import Job
from peers.grid import PEERS, VENVS, Widths
from peers.make_venv import python_of
from peers.page import TEST_IMAGES
from peers.run import CALIBRATION_IMAGES, hand_over

SEED = 0
OURS: tuple[tuple[str, Widths], ...] = (("nearest", (8, 8)), ("fast", (4, 4)))
THEIRS: tuple[tuple[str, str, Widths], ...] = (
    ("onnxruntime", "default", (8, 8)),
    ("onnxruntime", "minmax", (8, 8)),
    ("aimet", "seqmse", (8, 8)),
    ("onnxruntime", "minmax", (4, 4)),
)
RESULT = "peers_onnx"


def label(peer: str, method: str, widths: Widths) -> str:
    return f"{peer}-{method}-w{widths[0]}a{widths[1]}"


def clcalib(folder: Path, *arguments: str) -> str:
    """What a command prints; it runs in the folder, on one thread."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "src")}
    command = [sys.executable, "-m", "clcalib", *arguments]
    return subprocess.run(command, cwd=folder, env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout


def images(folder: Path, data: Path) -> None:
    """The images and weights of the hand-over as ``clcalib`` reads them."""
    arrays = {name: torch.from_numpy(np.load(data / f"{name}.npy")) for name in ("calibration", "test", "labels")}
    save_file({"images": arrays["calibration"]}, folder / "calibration.safetensors")
    save_file({"images": arrays["test"], "labels": arrays["labels"]}, folder / "test.safetensors")
    weights = np.load(data / "weights.npz")
    save_file({name: torch.from_numpy(weights[name]) for name in weights.files}, folder / "weights.safetensors")


def ours(folder: Path, method: str, widths: Widths) -> None:
    inputs = ("--model", f"{ROOT / 'examples' / 'demo_network.py'}:resnet20", "--weights", "weights.safetensors")
    inputs += ("--calibration", "calibration.safetensors", "--evaluation", "test.safetensors")
    settings = ("--bits", f"W{widths[0]}A{widths[1]}", "--recipe", method, "--target", "onnxruntime", "--quiet")
    few = ("--set", "data.evaluation_count=512")  # as many as codes are compared on; all are counted below
    clcalib(folder, "quantize", *inputs, *settings, *few, "--out", label("clcalib", method, widths), "--threads", "1")


def theirs(folder: Path, data: Path, venvs: Path, peer: str, method: str, widths: Widths) -> None:
    """Let a peer write its file."""
    with tempfile.TemporaryDirectory() as out:
        job = Job(peer, method, *widths, SEED, str(data), out, str(folder / f"{label(peer, method, widths)}.onnx"))
        path = Path(out) / "job.json"
        path.write_text(json.dumps(dataclasses.asdict(job)))
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": ""}
        command = [python_of(venvs / peer), "-m", f"peers.{peer}", path]
        subprocess.run(command, cwd=ROOT / "benchmarks", env=environment, check=True)


def versions(python: Path, peer: str) -> dict[str, str]:
    """Of the packages that a peer's venv was made for."""
    names = [requirement.partition("==")[0] for requirement in PEERS[peer].requirements]
    code = f"import importlib.metadata, json; print(json.dumps({{n: importlib.metadata.version(n) for n in {names}}}))"
    found: dict[str, str] = json.loads(subprocess.run([python, "-c", code], check=True, stdout=subprocess.PIPE).stdout)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with CIFAR-10 (clcalib data cifar10)")
    parser.add_argument("--venvs", type=Path, default=VENVS, help="where make_venv.py put the venvs")
    parser.add_argument("--folder", type=Path, required=True, help="where files go; those that are there are kept")
    arguments = parser.parse_args()
    if not NETWORKS["resnet20"].weights.is_file():
        sys.exit("skipped: the public weights of ResNet-20 are not there")
    venvs, folder = arguments.venvs.resolve(), arguments.folder.resolve()
    data = venvs / f"handover-seed{SEED}"
    hand_over(data, arguments.data, SEED)
    folder.mkdir(parents=True, exist_ok=True)
    images(folder, data)
    for method, widths in OURS:
        if not (folder / label("clcalib", method, widths) / "model.onnx").exists():
            ours(folder, method, widths)
    for peer, method, widths in THEIRS:
        if not (folder / f"{label(peer, method, widths)}.onnx").exists():
            theirs(folder, data, venvs, peer, method, widths)
    first = label("clcalib", *OURS[0])
    files = [f"{label('clcalib', *each)}/model.onnx" for each in OURS]
    files += [f"{label(*each)}.onnx" for each in THEIRS]
    every = ("--set", f"data.evaluation_count={TEST_IMAGES}")
    rows = json.loads(clcalib(folder, "evaluate", first, *files, *every, "--threads", "1", "--json"))
    found = {"seed": SEED, "calibration_images": CALIBRATION_IMAGES, "rows": rows}
    found["versions"] = {peer: versions(python_of(venvs / peer), peer) for peer, _, _ in THEIRS}
    print(write_result(RESULT, {**found, **provenance()}))


if __name__ == "__main__":
    main()
