"""Write docs/results.md from ``benchmarks/results/study*.json`` and nothing else: a section for each number of steps.

python benchmarks/study/page.py            # writes
python benchmarks/study/page.py --check    # fails where the page says something else
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
RESULTS = ROOT / "benchmarks" / "results"
RESULT = RESULTS / "study.json"  # of the default number of steps
PAGE = ROOT / "docs" / "results.md"
IMAGES = ROOT / "docs" / "images"
Row = dict[str, Any]

SHORT = {"float32": "f32", "bfloat16": "bf16"}
PLOTS = {
    "study_differences.svg": "Contrastive less plain: the mean over seeds and its 95 % interval.",
    "study_bounds.svg": "The bound on the mutual information behind each unit, in nats, on held-out images.",
    "study_bound_accuracy.svg": "The bound, mean over units, against the accuracy of the same run.",
    "study_features.svg": "Penultimate features of test images on the two main axes of the float ones, by class.",
}
ABOUT = """\
# What the contrastive term does: the study

Written by `benchmarks/study/page.py` from `benchmarks/results/study*.json`; the runs are made by
`benchmarks/study/run.py` and the grid is declared in `benchmarks/study/grid.py`.

CIFAR-10, QDrop setting, the same steps for each unit (and each phase) inside a section; 1,024 training images to
calibrate, another choice for each seed; top-1 in % on all 10,000 test images, mean ± standard deviation over seeds
(their number).  The term is computed at every fourth step on the whole batch; all else is the default of
`with_contrastive`.  Behind the
number of seeds stands in which type convolutions computed, `bf16` (bfloat16) or `f32` (float32), as the machines
differ in it; a difference is made only of pairs with the same one.  *Difference* is contrastive less plain, seed by
seed, with the 95 % interval of a bootstrap over seeds; with so few seeds, that one is too narrow (with five it covers
the mean in 83 % of the cases), and the t interval stands beside it.  Where the t interval of three or more pairs
leaves out zero, the difference is in bold; of twenty that are none, one is bold by chance.  PD-Quant's correction has
20 steps of its 500, and MobileNetV2 the settings that the papers have for it (`NETWORK_OPTIONS`).  Settings are to be
chosen by *selection*, the accuracy on 2,000 training images that are not calibrated on: the float networks were
trained on them, so that its level is too high, and its order is what counts.

Networks for ImageNet, with 1,000 classes: [imagenet.md](imagenet.md).
"""


def accuracy(cell: Row | None, which: str = "test") -> str:
    """Mean, deviation, and of how many seeds at which precision; nearest rounding has none."""
    if cell is None:
        return "-"
    return mean_of(cell[which], " + ".join(f"{count} {SHORT[name]}" for name, count in cell["precisions"].items()))


def mean_of(spread: Row | None, seeds: str = "") -> str:
    """Mean and deviation; then the seeds, as they are named or else their number."""
    if spread is None:
        return "-"
    deviation = "" if spread["deviation"] is None else f" ± {spread['deviation']:.2f}"
    return f"{spread['mean']:.2f}{deviation} ({seeds or spread['n']})"


def difference(row: Row | None) -> str:
    """Mean and intervals; bold where the interval that is to be trusted, t's if it is there, leaves out zero.

    Not of two pairs: accuracies are rounded, so that two differences may be equal and their interval have no width.
    """
    if row is None:
        return "-"
    text = f"{row['mean']:+.2f}"
    if "bootstrap" not in row:
        return f"{text} ({row['n']})"
    low, high = row.get("t_interval", row["bootstrap"])
    text = f"**{text}**" if row["n"] > 2 and (low > 0 or high < 0) else text
    text += " [{:+.2f}, {:+.2f}]".format(*row["bootstrap"])
    return text + (" t [{:+.2f}, {:+.2f}]".format(*row["t_interval"]) if "t_interval" in row else "")


def table(header: list[str], rows: list[list[str]]) -> list[str]:
    return [f"| {' | '.join(line)} |" for line in (header, ["---"] * len(header), *rows)]


def pair_cells(result: Row, row: Row) -> list[str]:
    return [accuracy(result["cells"].get(row[name])) for name in ("plain", "contrastive")]


def host_tables(result: Row) -> list[str]:
    lines = ["### Hosts"]
    for network in dict.fromkeys(row["network"] for row in result["hosts"]):
        own = [row for row in result["hosts"] if row["network"] == network]
        rows = [
            [row["widths"], row["host"], *pair_cells(result, row), difference(row["difference"]), *bounds(result, row)]
            for row in own
        ]
        lines += ["", f"#### {network}", "", base_line(result, network), ""]
        lines += table(["widths", "host", "plain", "contrastive", "difference", "bound", "overfitting"], rows)
    about = (
        "*Bound*: on held-out images, mean over units, in nats, plain to contrastive.  *Overfitting*: the units' error"
    )
    return [
        *lines,
        "",
        f"{about}\non held-out images over that on the calibration images, mean over units, the same way.",
    ]


def base_line(result: Row, network: str) -> str:
    """The accuracy in float, and of nearest rounding at each pair of widths."""
    prefix, suffix = f"hosts/{network}/", "-nearest"
    cells = {key: cell for key, cell in result["cells"].items() if key.split("/")[1] == network}
    nearest = {
        key.removeprefix(prefix).removesuffix(suffix).upper(): accuracy(cell)
        for key, cell in cells.items()
        if key.startswith(prefix) and key.endswith(suffix)
    }
    rounded = ", ".join(f"{widths} {value}" for widths, value in nearest.items()) or "not run"
    return f"Float {next(iter(cells.values()))['float_top1']:.2f}; nearest rounding: {rounded}."


def bounds(result: Row, row: Row) -> list[str]:
    """Plain to contrastive: the bound, and the overfitting."""
    both = [result["cells"].get(row[name]) for name in ("plain", "contrastive")]
    return [
        " to ".join("-" if cell is None or cell[name] is None else f"{cell[name]:.3f}" for cell in both)
        for name in ("bound_after", "overfitting")
    ]


def rate_tables(result: Row) -> list[str]:
    if not has_runs(result, "rates"):
        return []
    rows = [
        [row["network"], row["host"], factor(row["factor"]), *pair_cells(result, row), difference(row["difference"])]
        for row in result["rates"]
    ]
    about = "W2A2, the rounding rate of each host times a factor.  *Best*: each side at the rate of its best selection."
    return ["### Rates", "", about, "", *table(["network", "host", "rate", "plain", "contrastive", "difference"], rows)]


def factor(value: float | str) -> str:
    return value if isinstance(value, str) else f"x {value:g}"


def ablation_tables(result: Row) -> list[str]:
    if not has_runs(result, "ablations"):
        return []
    about = "One setting at a time, on QDrop, ResNet-20, W2A2."
    lines = ["### Ablations", "", about]
    for name, own in result["ablations"].items():
        rows = []
        for row in own:
            cell = result["cells"].get(row["contrastive"])
            rows.append([row["level"], accuracy(cell), difference(row["difference"]), accuracy(cell, "selection")])
        lines += ["", f"#### {name.capitalize()}", ""]
        lines += table([name, "test", "difference from plain", "selection"], rows)
    return lines


def addition_rows(result: Row, part: str, told: str) -> list[list[str]]:
    """Rows of hosts with an addition and without; ``told`` is what each says of the addition."""
    rows = []
    for row in result[part]:
        cells = [result["cells"].get(row[name]) for name in ("plain", part)]
        numbers = [*(accuracy(cell) for cell in cells), difference(row["difference"])]
        chosen = difference(row["selection_difference"])
        seconds = " / ".join("-" if cell is None else f"{cell['cpu_seconds']:.0f}" for cell in cells)
        own = row[told] if isinstance(row[told], str) else f"{row[told]:g}"
        both = [difference(row["both_difference"])] if "both_difference" in row else []
        rows.append([row["network"], row["widths"], row["host"], own, *numbers, chosen, *both, seconds])
    return rows


def tuning_tables(result: Row) -> list[str]:
    if not has_runs(result, "tuning"):
        return []
    about = (
        "The whole network's scales and biases tuned when all units are done (`with_tuning`, 200 steps on images that\n"
        "are flipped, shifted and mixed anew in each; *as they are*: not changed), behind hosts with trained biases,\n"
        "and the same without; no contrastive term.  *Both*: with biases and tuning less the host alone."
    )
    header = ["network", "widths", "host", "kind", "without", "with", "difference", "on selection", "both"]
    return ["### Tuning", "", about, "", *table([*header, "CPU seconds"], addition_rows(result, "tuning", "kind"))]


def bias_tables(result: Row) -> list[str]:
    if not has_runs(result, "biases"):
        return []
    about = (
        "Biases trained beside all else (`with_biases`), and the same host without; no contrastive term.\n"
        "*Difference*: with them less without; *on selection* is the same on the images that settings are chosen by."
    )
    header = ["network", "widths", "host", "rate", "without", "with", "difference", "on selection", "CPU seconds"]
    return ["### Trained biases", "", about, "", *table(header, addition_rows(result, "biases", "rate"))]


def correlation_table(result: Row) -> list[str]:
    rows = []
    for aggregate, groups in result["correlations"].items():
        for over, own in groups.items():
            values = ["-" if own[name] is None else f"{own[name]:+.2f}" for name in ("pearson", "spearman")]
            rows.append([aggregate, over, *values, str(own["n"])])
    about = "Of the units' bounds (held-out images, after calibration) with the test accuracy, over single runs."
    return ["### Bound and accuracy", "", about, "", *table(["bound", "over", "Pearson", "Spearman", "runs"], rows)]


def has_runs(result: Row, part: str) -> bool:
    """Whether a part of the grid has a run of its own with these steps."""
    steps = result["steps"]
    return any(key.split("/")[0] in (part, f"{part}-steps-{steps}") for key in result["cells"])


def coverage(result: Row, *, names_cells: bool) -> list[str]:
    lines = ["### Not run", ""]
    for part, own in result["coverage"].items():
        lines.append(f"* {part}: {own['run']} of {own['declared']} declared runs")
        if not names_cells:
            continue
        groups: dict[tuple[str, str], list[str]] = {}
        for key, why in own["cells_not_run"].items():
            _, network, name = key.split("/")
            groups.setdefault((network, why or "not yet"), []).append(f"`{name}`")
        for (network, why), names in groups.items():
            lines.append(f"    * without any on {network} ({why}): {', '.join(names)}")
    return lines


def section(result: Row, *, is_default: bool) -> list[str]:
    """The blocks of one number of steps; plots, and names of cells without a run, are those of the default one's."""
    blocks = [f"## {result['steps']:,} steps for each unit"]
    if is_default:
        blocks += [f"![{about}](images/{name})\n\n{about}" for name, about in PLOTS.items() if (IMAGES / name).exists()]
    tables = [
        part(result)
        for part in (host_tables, rate_tables, ablation_tables, bias_tables, tuning_tables, correlation_table)
    ]
    return [*blocks, *("\n".join(lines) for lines in (*tables, coverage(result, names_cells=is_default)) if lines)]


def page(result: Row, *others: Row) -> str:
    """Of the result with the default number of steps, and of those with others."""
    cells = [cell for own in (result, *others) for cell in own["cells"].values()]
    commits, machines = (sorted({word for cell in cells for word in cell[name]}) for name in ("commits", "machines"))
    where = f"{'; '.join(machines)}.  Commits of the runs: {', '.join(commits) or 'none'}."
    sections = [*section(result, is_default=True)]
    for other in sorted(others, key=lambda own: own["steps"]):
        sections += section(other, is_default=False)
    return "\n\n".join([ABOUT.rstrip(), *sections, where]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing; fail where the page differs")
    parser.add_argument("--result", type=Path, default=RESULT)
    parser.add_argument("--out", type=Path, default=PAGE)
    arguments = parser.parse_args()
    if not arguments.result.exists():
        sys.exit(0 if arguments.check else f"{arguments.result} is not there; run python benchmarks/study/summary.py")
    others = sorted(arguments.result.parent.glob(f"{arguments.result.stem}-steps-*.json"))
    wanted = page(*(json.loads(path.read_text()) for path in (arguments.result, *others)))
    if not arguments.check:
        arguments.out.write_text(wanted)
    elif not arguments.out.exists() or arguments.out.read_text() != wanted:
        sys.exit(f"{arguments.out.name} differs from {arguments.result.name}; run python benchmarks/study/page.py")


if __name__ == "__main__":
    main()
