"""Run the comparison, or what is missing of it: one JSON a run in ``benchmarks/results/peers/``.

    python benchmarks/peers/make_venv.py --venvs VENVS
    python benchmarks/peers/run.py --data DATA --venvs VENVS
    python benchmarks/peers/page.py

Runs one after the other, each in a process of its own with one thread.  A run that fails is written down with its last
line of error; delete its file to try again.  Needs the public weights, which are no part of the project.
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
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from clcalib.evaluate.accuracy import agreement, top1
from clcalib.files import write_atomically
from common import NETWORKS, ROOT, cifar10, provenance, shuffled
from peers.adapter import Job
from peers.grid import PEERS, RESULTS, VENVS, Widths, name_of
from peers.make_venv import python_of

CALIBRATION_IMAGES = 1024


def hand_over(folder: Path, data: Path, seed: int) -> None:
    """Weights, images and labels as NumPy files; labels and the float network's logits are for the harness only."""
    if (folder / "float_logits.npy").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    model = NETWORKS["resnet20"].load()
    np.savez(folder / "weights.npz", **{name: tensor.numpy() for name, tensor in model.state_dict().items()})
    images, _ = cifar10(data, "train", shuffled(seed)[:CALIBRATION_IMAGES])
    np.save(folder / "calibration.npy", images.numpy())
    test, labels = cifar10(data, "test")
    np.save(folder / "test.npy", test.numpy())
    np.save(folder / "labels.npy", labels.numpy())
    with torch.no_grad():
        np.save(folder / "float_logits.npy", torch.cat([model(batch) for batch in test.split(500)]).numpy())


def run_one(job: Job, python: Path) -> dict[str, Any]:
    """The adapter's result with the accuracy, or why there is none."""
    path = Path(job.out) / "job.json"
    path.write_text(json.dumps(dataclasses.asdict(job)))
    own = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    environment = {**os.environ, **own, "PYTHONPATH": "" if PEERS[job.peer].requirements else str(ROOT / "src")}
    command = [python, "-m", f"peers.{job.peer}", path]
    folder = ROOT / "benchmarks"
    run = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    if run.returncode:
        print(run.stderr[-3000:], file=sys.stderr)
        lines = run.stderr.strip().splitlines() or [f"exit status {run.returncode}"]
        return {"failed": lines[-1][:300]}
    outputs, reference, labels = (
        torch.from_numpy(np.load(file))
        for file in (Path(job.out) / "logits.npy", *(Path(job.data) / f"{n}.npy" for n in ("float_logits", "labels")))
    )
    return {
        **json.loads((Path(job.out) / "result.json").read_text()),
        "top1": round(100 * top1(outputs, labels), 2),
        "float_top1": round(100 * top1(reference, labels), 2),
        "agreement": round(100 * agreement(outputs, reference), 2),
    }


def jobs(arguments: argparse.Namespace) -> list[tuple[str, str, Widths]]:
    found = [
        (name, method, widths)
        for name in arguments.peers
        if not PEERS[name].did_not_run
        for method, settings in PEERS[name].methods.items()
        for widths in settings.widths
    ]
    return [one for one in found if any(part in name_of(*one, arguments.seed) for part in arguments.only)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with CIFAR-10 (clcalib data cifar10)")
    parser.add_argument("--venvs", type=Path, default=VENVS, help="where make_venv.py put the venvs")
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=list(PEERS))
    parser.add_argument("--only", nargs="+", default=[""], help="run only those whose name holds one of these")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    if not NETWORKS["resnet20"].weights.is_file():
        sys.exit("skipped: the public weights of ResNet-20 are not there")
    data = (arguments.venvs / f"handover-seed{arguments.seed}").resolve()
    hand_over(data, arguments.data, arguments.seed)
    for peer, method, widths in jobs(arguments):
        name = name_of(peer, method, widths, arguments.seed)
        python = python_of(arguments.venvs.resolve() / peer) if PEERS[peer].requirements else Path(sys.executable)
        if (RESULTS / f"{name}.json").exists():
            continue
        if not python.exists():
            print(f"skipped: {name}: there is no venv, see make_venv.py", flush=True)
            continue
        with tempfile.TemporaryDirectory() as out:
            job = Job(peer, method, *widths, arguments.seed, str(data), out)
            result = run_one(job, python)
        own = {"peer": peer, "method": method, "weights": widths[0], "activations": widths[1], "seed": arguments.seed}
        where = {key: value for key, value in provenance().items() if key in ("machine", "commit")}
        write_atomically(RESULTS / f"{name}.json", (json.dumps({**own, **result, **where}, indent=1) + "\n").encode())
        print(f"{name}: {result.get('top1', result.get('failed'))} ({result.get('cpu_seconds')} CPU s)", flush=True)


if __name__ == "__main__":
    main()
