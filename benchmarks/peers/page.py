"""Write ``docs/peers.md`` from the JSON in ``benchmarks/results/peers/`` and nowhere else.

python benchmarks/peers/page.py            # writes
python benchmarks/peers/page.py --check    # fails where the page says something else
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from peers.grid import PEERS, RESULTS, WIDTHS, Widths, name_of, title_of

PAGE = Path(__file__).resolve().parents[2] / "docs" / "peers.md"
TEST_IMAGES = 10_000
SEED = 0

ONNX_FILES = RESULTS.parent / "peers_onnx.json"

Runs = dict[str, dict[str, Any]]  # by name_of

INTRODUCTION = """\
# Side by side with other libraries

ResNet-20 with public weights on CIFAR-10: each library quantizes the same network with the same 1,024 calibration
images (seed {seed}), and all 10,000 test images are counted by the same harness. First and last layer have 8 bits
everywhere. Each library runs in an environment of its own, on one thread.

This page is written by `benchmarks/peers/page.py`; the runs are in
[benchmarks/results/peers](../benchmarks/results/peers), one JSON each. To repeat them:

```sh
python benchmarks/peers/make_venv.py
python benchmarks/peers/run.py --data DATA    # goes on where it was stopped
python benchmarks/peers/page.py
```
"""

LIMITS = """\
## What these numbers do not say

* **One seed each**, and one small network. Two accuracies that differ by less than about {noise:.1f} points are the
  same for 10,000 test images (two standard errors of a difference at {typical:.0f} %).
* **Placement is not the same everywhere** (table below). Where a library puts quantizers on more tensors than ours,
  as its hardware needs it, it solves a harder problem; compare those rows with float and with each other.
* **Long methods were shortened** where their defaults would take hours on this machine; the table says which. Theirs
  may gain more from longer runs. Ours are shortened too: QDrop's paper takes 20,000 steps for each unit.
* **Settings were chosen once**, from each library's documentation, and not tuned on this network. Those of `fast`
  were selected on this same network at W2A2, on training images outside the calibration set ([decision
  6](decisions/0006-fewer-steps.md)): an advantage for it.
* **CPU seconds** are process time on one thread of a busy machine, without imports and without testing. They say what
  is cheap and what is not, no more.
* Several of these libraries aim at 8 bits and at export to hardware, where they do what clcalib does not."""


ONNX_INTRODUCTION = """\
Files that libraries wrote of the same network from the same {calibration_images:,} images, all computed by one runtime
on all test images: `clcalib evaluate RUN FILE.onnx ...`, called by `benchmarks/peers/onnx_files.py`
([peers_onnx.json](../benchmarks/results/peers_onnx.json)). Ours are calibrated for the target `onnxruntime`, so that
integer kernels compute all layers; `onnxruntime-default` is ONNX Runtime's own static quantization as its
documentation begins with, per channel; `onnxruntime-minmax` and `aimet-seqmse` are those of the first table, whose
placement leaves results in float, and with them layers that an integer kernel would else compute. A simulation
computes in float what its file says."""


def load(folder: Path = RESULTS) -> Runs:
    return {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}


def standard_error(top1: float, images: int = TEST_IMAGES) -> float:
    """Of an accuracy in %, as a share of so many independent images: 100 sqrt(p (1 - p) / n)."""
    share = top1 / 100
    return 100 * math.sqrt(share * (1 - share) / images)


def noise(top1: float) -> float:
    """Two standard errors of the difference of two accuracies, in points."""
    return 2 * math.sqrt(2) * standard_error(top1)


def rows() -> list[tuple[str, str]]:
    return [(peer, method) for peer, about in PEERS.items() for method in about.methods]


def title(peer: str, method: str) -> str:
    return f"{PEERS[peer].title}, {PEERS[peer].methods[method].title}"


def cell(runs: Runs, peer: str, method: str, widths: Widths) -> str:
    if PEERS[peer].did_not_run:
        return "did not run"
    if widths not in PEERS[peer].methods[method].widths:
        return "unsupported"
    run = runs.get(name_of(peer, method, widths, SEED))
    if run is None:
        return "not run yet"
    return "failed" if "failed" in run else f"{run['top1']:.2f} ({run['cpu_seconds']:.0f} s)"


def progress(runs: Runs) -> str:
    """How much of the grid there is: an empty cell is no verdict on a peer."""
    names = [
        name_of(peer, method, widths, SEED)
        for peer, method in rows()
        if not PEERS[peer].did_not_run
        for widths in PEERS[peer].methods[method].widths
    ]
    done = sum(name in runs for name in names)
    return f"{done} of {len(names)} runs are done; the others say `not run yet`, which is no verdict on the library."


def table(runs: Runs) -> list[str]:
    lines = ["| | " + " | ".join(title_of(widths) for widths in WIDTHS) + " |", "|---" * (len(WIDTHS) + 1) + "|"]
    for peer, method in rows():
        cells = " | ".join(cell(runs, peer, method, widths) for widths in WIDTHS)
        lines.append(f"| {title(peer, method)} | {cells} |")
    return lines


def ranking(runs: Runs, widths: Widths) -> list[tuple[float, str, str]]:
    """Accuracy, peer and method of what ran at the widths, the best first."""
    found = ((runs.get(name_of(peer, method, widths, SEED), {}), peer, method) for peer, method in rows())
    return sorted(((run["top1"], peer, method) for run, peer, method in found if "top1" in run), reverse=True)


def verdict(runs: Runs, widths: Widths) -> str:
    """Who is first, how far the best of ours is from the best peer, and whether that is more than noise.

    None of one library alone: it says nothing of the others.
    """
    order = ranking(runs, widths)
    if len({one[1] for one in order} - {"ours"}) == 1:
        return f"* **{title_of(widths)}**: one library has run, which is too few for a verdict."
    ours = next((one for one in order if one[1] == "ours"), None)
    theirs = next((one for one in order if one[1] != "ours"), None)
    if ours is None or theirs is None:
        return f"* **{title_of(widths)}**: nothing to compare yet."
    gap = ours[0] - theirs[0]
    limit = noise(max(ours[0], theirs[0]))
    others = sum(one[1] != "ours" for one in order)
    word = "no difference beyond noise" if abs(gap) < limit else "ours is better" if gap > 0 else "the peer is better"
    return (
        f"* **{title_of(widths)}**: best of ours {ours[0]:.2f} ({ours[2]}), best of {others} that ran {theirs[0]:.2f} "
        f"({title(*theirs[1:])}; placement: {PEERS[theirs[1]].placement}): {gap:+.2f} points, {word} ({limit:.1f})."
    )


def versions(runs: Runs, peer: str) -> str:
    for run in runs.values():
        if run["peer"] == peer and "versions" in run:
            return ", ".join(f"{name} {number}" for name, number in run["versions"].items())
    return ", ".join(PEERS[peer].requirements) or "-"


def placements(runs: Runs) -> list[str]:
    lines = ["| library | quantized activations | versions |", "|---|---|---|"]
    return lines + [
        f"| {about.title} | **{about.placement}**: {about.where} | {versions(runs, peer)} |"
        for peer, about in PEERS.items()
    ]


def settings() -> list[str]:
    lines = ["| method | settings | widths |", "|---|---|---|"]
    for peer, method in rows():
        about = PEERS[peer].methods[method]
        widths = "all" if about.widths == WIDTHS else ", ".join(map(title_of, about.widths)) + f": {about.otherwise}"
        lines.append(f"| {title(peer, method)} | {about.settings} | {widths} |")
    return lines


def failures(runs: Runs) -> list[str]:
    lines = [f"* {about.title}: {about.did_not_run}" for about in PEERS.values() if about.did_not_run]
    failed = [f"* `{name}`: {run['failed']}" for name, run in runs.items() if "failed" in run]
    return ["", "## What did not run", "", *lines, *failed] if lines or failed else []


def onnx_files() -> list[str]:
    """What ``onnx_files.py`` found: everyone's files in one runtime."""
    if not ONNX_FILES.is_file():
        return []
    found = json.loads(ONNX_FILES.read_text())
    lines = ["", "## As ONNX files, in one table", "", ONNX_INTRODUCTION.format(**found), ""]
    heads = ["model", "computed by", "top-1 [%]", "agreement with float [%]", "file [kB]", "layers in integers"]
    lines += [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for row in found["rows"]:
        agreement = "-" if row["agreement"] is None else f"{100 * row['agreement']:.2f}"
        size = "-" if row["file_bytes"] is None else f"{row['file_bytes'] / 1000:.0f}"
        counts = (row["integer_layers"], row["float_layers"])
        layers = "-" if None in counts else f"{counts[0]} of {sum(counts)}"
        top1 = f"{100 * row['top1']:.2f}"
        lines.append(f"| {row['model']} | {row['computed_by']} | {top1} | {agreement} | {size} | {layers} |")
    return lines


def page(runs: Runs) -> str:
    done = [run for run in runs.values() if "top1" in run]
    typical = 90.0
    machines = sorted({run["machine"] for run in runs.values()})
    return "\n".join(
        [
            INTRODUCTION.format(seed=SEED),
            f"Float: {done[0]['float_top1']:.2f} %. Top-1 in % (CPU seconds to quantize), {'; '.join(machines)}:",
            "",
            *table(runs),
            "",
            progress(runs),
            "",
            "## Who is ahead",
            "",
            *(verdict(runs, widths) for widths in WIDTHS),
            "",
            LIMITS.format(noise=noise(typical), typical=typical),
            *onnx_files(),
            *failures(runs),
            "",
            "## What is quantized where",
            "",
            "Ours and the academic placement: the input of each convolution and of the classifier, and nothing else.",
            "",
            *placements(runs),
            "",
            "## Settings",
            "",
            *settings(),
            "",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; fail where the page differs")
    arguments = parser.parse_args()
    text = page(load())
    if not arguments.check:
        PAGE.write_text(text)
        print(PAGE)
    elif PAGE.read_text() != text:
        sys.exit(f"{PAGE.name} is not what the results say: python benchmarks/peers/page.py")


if __name__ == "__main__":
    main()
