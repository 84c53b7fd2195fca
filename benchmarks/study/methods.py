"""Write docs/methods.md: every method, one row, with what the study measured of it.

python benchmarks/study/methods.py            # writes
python benchmarks/study/methods.py --check    # fails where the page says something else
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from statistics import fmean
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from plots import from_summary, points_of
from study.page import RESULT, ROOT, accuracy, difference, table

PAGE = ROOT / "docs" / "methods.md"
NETWORK, WIDTHS = "resnet20", "w2a2"
Row = dict[str, Any]

# By the study's name: recipe, source, what is trained, on what, and the loss.
METHODS: dict[str, tuple[str, str, str, str, str]] = {
    "nearest": ("`nearest`", "-", "nothing", "-", "-"),
    "scale_only": ("`scale_only`", "BRECQ, 2nd phase", "activation scales", "block, float input", "error, p = 2.4"),
    "adaround": ("`adaround`", "Nagel et al. 2020", "rounding", "layer, activations float", "squared error"),
    "brecq": ("`brecq`", "Li et al. 2021", "rounding, then activation scales", "block", "squared error, then p = 2.4"),
    "brecq_fisher": (
        "`brecq(is_fisher_weighted=True)`",
        "Li et al. 2021, eq. 10",
        "rounding, then activation scales",
        "block",
        "squared error times squared gradient",
    ),
    "qdrop": ("`qdrop`", "Wei et al. 2022", "rounding and activation scales", "block, half dropped", "squared error"),
    "pd_quant": (
        "`pd_quant`",
        "Liu et al. 2023",
        "rounding and activation scales",
        "block, half dropped, corrected float input",
        "squared error, prediction difference",
    ),
    "genie_m": (
        "`genie_m`",
        "Jeon et al. 2023",
        "rounding, weight and activation scales",
        "block, half dropped",
        "squared error",
    ),
    "straight_through": (
        "`straight_through`",
        "Bengio et al. 2013, Esser et al. 2020",
        "offset before rounding, weight and activation scales",
        "block, half dropped",
        "squared error",
    ),
    "glf_q": (
        "`glf_q`",
        "GLF-Q, from descriptions",
        "offset before rounding, weight and activation scales",
        "block",
        "squared error, error of the penultimate feature",
    ),
    "cl_calib": (
        "`cl_calib`",
        "Shang et al. 2024",
        "rounding and activation scales",
        "block, half dropped, corrected float input",
        "squared error, prediction difference, contrastive term",
    ),
    "fast": (
        "`fast`",
        "ours, after QDrop and GPTQ",
        "rounding and activation scales, from error feedback on",
        "block, half dropped",
        "squared error",
    ),
}
ABOUT = """\
# Methods

Written by `benchmarks/study/methods.py` from `benchmarks/results/study.json`.  A method is a recipe of
`clcalib.recipes`; `with_contrastive` adds the contrastive term to each that trains something, `with_biases` trains the
biases of each too, `with_tuning` and `with_last_phase` add a phase over the whole network, `augmented` changed copies
of the calibration images.  `gptq` (error feedback without steps) is measured in [speed.md](speed.md).  **The paper's
method is `cl_calib`**: `pd_quant` with the term in every step and on whole batches, 20,000 steps for each block; it is
not measured here, where the rows `pd_quant` and *with the term* are its short run.

ResNet-20 with public weights, CIFAR-10, {widths}, {steps} steps for each unit (of each phase), 1,024 images; top-1 in %
on all 10,000 test images, mean ± standard deviation (seeds, type of convolutions).  PD-Quant's correction
has 20 steps of its 500.  *With the term*: paired difference, see [results.md](results.md).
"""
PAPER_STEPS = 20_000
ORDER = """\
The published order at W2A2 (ImageNet, 20,000 steps) is nearest < AdaRound < BRECQ < QDrop < PD-Quant.  {verdict}
{long}
How this project departs from each method is in [deviations.md](deviations.md).
"""


def cell_of(result: Row, host: str) -> Row | None:
    found: Row | None = result["cells"].get(f"hosts/{NETWORK}/{WIDTHS}-{host}")
    return found


def rows(result: Row) -> list[list[str]]:
    differences = {
        row["host"]: row["difference"]
        for row in result["hosts"]
        if (row["network"], row["widths"].lower()) == (NETWORK, WIDTHS)
    }
    lines = []
    for host, words in METHODS.items():
        cell = cell_of(result, host)
        lines.append([*words, accuracy(cell), difference(differences.get(host))])
    return lines


def verdict(result: Row) -> str:
    """Which neighbours of the published order stand the same way here, and which do not."""
    names = ("nearest", "adaround", "brecq", "qdrop", "pd_quant")
    cells = {name: cell_of(result, name) for name in names}
    means = {name: cell["test"]["mean"] for name, cell in cells.items() if cell is not None and cell["test"]}
    told = [name for name in names if name in means]
    here = " < ".join(f"`{name}` ({means[name]:.2f})" for name in sorted(told, key=means.__getitem__))
    same = sorted(told, key=means.__getitem__) == told
    if same:
        return f"Here: {here}: the same."
    return (
        f"Here: {here}.  It is not the same at so few steps: the rates of short runs are raised, and a method whose "
        "gain comes late, or whose second loss competes with the first, has not come to it.  The prediction "
        "difference has the weight that its authors chose for 20,000 steps and 1,000 classes."
    )


def long_runs() -> str:
    """The order at the steps of the papers, from the runs of ``fewer_steps.py``."""
    points = points_of(from_summary(RESULT.parent / "fewer_steps.json"))
    found = {name: point for name, row in points.items() for point in row if point.steps == PAPER_STEPS}
    told = [name for name in ("adaround", "brecq", "qdrop", "pd_quant") if name in found]
    if len(told) < 2:
        return ""
    order = sorted(told, key=lambda name: fmean(found[name].top1))
    here = " < ".join(f"`{name}` ({fmean(found[name].top1):.2f}, {_seeds(len(found[name].top1))})" for name in order)
    same = "the published order." if order == told else "not the published order."
    return f"\nWith {PAPER_STEPS:,} steps for each unit ([speed.md](speed.md)): {here}; {same}"


def _seeds(count: int) -> str:
    return "1 seed" if count == 1 else f"{count} seeds"


def page(result: Row) -> str:
    header = ["recipe", "source", "trained", "unit and input", "loss", "top-1", "with the term"]
    about = ABOUT.format(widths=WIDTHS.upper(), steps=result["steps"])
    order = ORDER.format(verdict=verdict(result), long=long_runs()).rstrip()
    return "\n".join([about, *table(header, rows(result)), "", order]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing; fail where the page differs")
    arguments = parser.parse_args()
    if not RESULT.exists():
        sys.exit(0 if arguments.check else f"{RESULT.name} is not there; run python benchmarks/study/summary.py")
    wanted = page(json.loads(RESULT.read_text()))
    if not arguments.check:
        PAGE.write_text(wanted)
    elif not PAGE.exists() or PAGE.read_text() != wanted:
        sys.exit(f"{PAGE.name} differs from {RESULT.name}; run python benchmarks/study/methods.py")


if __name__ == "__main__":
    main()
