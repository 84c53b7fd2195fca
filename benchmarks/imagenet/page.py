"""Write docs/imagenet.md from ``benchmarks/results/imagenet.json`` and nothing else.

python benchmarks/imagenet/page.py            # writes
python benchmarks/imagenet/page.py --check    # fails where the page says something else
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from study.page import ROOT, mean_of, table

RESULT = ROOT / "benchmarks" / "results" / "imagenet.json"
PAGE = ROOT / "docs" / "imagenet.md"
Row = dict[str, Any]

ABOUT = """\
# ImageNet networks, and what the contrastive term does on 1,000 classes

Written by `benchmarks/imagenet/page.py` from `benchmarks/results/imagenet.json`; the runs are made by
`benchmarks/imagenet/run.py`.  How the tables of the papers are made, with all of ImageNet:
[benchmarks/imagenet.md](../benchmarks/imagenet.md).

**These are no ImageNet accuracies.**  The networks have public ImageNet weights and are calibrated on training images
of ImageNet, another choice for each seed.  They are judged on 1,000 labelled photographs from elsewhere (the
development set of the NIPS 2017 adversarial competition, 299 x 299 pixels, made smaller and not cropped), which are
curated and easier.  What counts is the *drop* against the float network on the same images, in points, and the
*agreement*: on how many images both name the same class, in %, told for the calibration images, for *held out* ones,
which are the others of 1,000 training images, one of each class, and for the evaluation images.  QDrop setting.

Numbers are means ± standard deviation over seeds (their number).  *Difference* is contrastive less plain, seed by seed:
the t interval over seeds (what another choice of calibration images and random numbers would give on these very
images), then the interval of a bootstrap over seeds and images at once (what other images would give).  Both are at 95
%; where neither holds zero, the difference is bold.  Held-out images differ between seeds, so that only the first is
told of them.  Rates of QDrop and PD-Quant are raised below 400 steps (`DECISIVE_STEPS`).  The term is computed at every
fourth step on the whole batch; all else is the default of `with_contrastive`.
"""
DROPS = ["widths", "method", "drop", "drop with the term", "difference of top-1", "CPU s"]
AGREEMENTS = ["widths", "method", "calibration", "held out", "evaluation"]


def difference(row: Row | None) -> str:
    if row is None:
        return "-"
    intervals = [row[name] for name in ("t_interval", "seeds_and_images") if name in row]
    is_bold = len(intervals) == 2 and (all(low > 0 for low, _ in intervals) or all(high < 0 for _, high in intervals))
    text = f"**{row['mean']:+.2f}**" if is_bold else f"{row['mean']:+.2f}"
    spans = [f"[{low:+.2f}, {high:+.2f}]" for low, high in intervals]
    return " ".join([text, *(["t"] if "t_interval" in row else []), *spans, f"({row['n']})"])


def tables(result: Row) -> list[str]:
    """One for each network, number of images and number of steps; nearest rounding takes none and is in all."""
    cells, lines = result["cells"], []
    groups = dict.fromkeys(
        (cell["network"], cell["calibration_images"], cell["steps"]) for cell in cells.values() if cell["steps"]
    )
    for network, images, steps in sorted(groups):
        own = {
            key: cell
            for key, cell in cells.items()
            if (cell["network"], cell["calibration_images"]) == (network, images) and cell["steps"] in (0, steps)
        }
        any_cell = next(iter(own.values()))
        about = f"Float: {any_cell['float_top1']:.1f} % of {any_cell['evaluation_images']} images."
        lines += ["", f"## {network}: {images} images, {steps} steps for each unit", "", about, ""]
        lines += table(DROPS, [drops(*line, result) for line in methods(own)])
        lines += ["", "Agreement, plain, with the term, and the difference:", ""]
        lines += table(AGREEMENTS, [agreements(*line, result) for line in methods(own)])
    return lines


def methods(cells: Row) -> list[tuple[str, Row, Row | None]]:
    """Key and cell of each plain method, the widest first, and its cell with the term."""
    plain = {key: cell for key, cell in cells.items() if not key.endswith("-contrastive")}
    order = sorted(plain, key=lambda key: (_widths(plain[key]), plain[key]["steps"] > 0, key))
    return [(key, plain[key], cells.get(f"{key}-contrastive")) for key in order]


def drops(key: str, cell: Row, term: Row | None, result: Row) -> list[str]:
    seconds = " / ".join(f"{own['cpu_seconds']:.0f}" for own in (cell, term) if own is not None)
    values = mean_of(cell["drop"]), mean_of(None if term is None else term["drop"])
    return [*_named(cell), *values, difference(_pair(result, key, "top1")), seconds]


def agreements(key: str, cell: Row, term: Row | None, result: Row) -> list[str]:
    texts = []
    for share in ("calibration_agreement", "held_out_agreement", "agreement"):
        both = [mean_of(own.get(share)) for own in (cell, term) if own is not None]
        own_difference = [] if term is None else [difference(_pair(result, key, share))]
        texts.append(", ".join([*both, *own_difference]))
    return [*_named(cell), *texts]


def _pair(result: Row, key: str, share: str) -> Row | None:
    return next((pair[share] for pair in result["pairs"] if pair["plain"] == key), None)


def _named(cell: Row) -> tuple[str, str]:
    return f"W{cell['weights']}A{cell['activations']}", cell["host"]


def _widths(cell: Row) -> tuple[int, int]:  # the widest first
    return -cell["weights"] - cell["activations"], -cell["weights"]


def page(result: Row) -> str:
    commits = sorted({commit for cell in result["cells"].values() for commit in cell["commits"]})
    where = f"torch {result['torch']}, {result['machine']}; commits of the runs: {', '.join(commits) or 'none'}."
    return "\n".join([ABOUT.rstrip(), *tables(result), "", where]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing; fail where the page differs")
    arguments = parser.parse_args()
    if not RESULT.exists():
        sys.exit(0 if arguments.check else f"{RESULT.name} is not there; run python benchmarks/imagenet/summary.py")
    wanted = page(json.loads(RESULT.read_text()))
    if not arguments.check:
        PAGE.write_text(wanted)
    elif not PAGE.exists() or PAGE.read_text() != wanted:
        sys.exit(f"{PAGE.name} differs from {RESULT.name}; run python benchmarks/imagenet/page.py")


if __name__ == "__main__":
    main()
