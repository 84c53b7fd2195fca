"""The tables of docs/speed.md, from ``benchmarks/results``; ``readme.py`` puts them there."""

from __future__ import annotations

from collections import Counter
from statistics import fmean
from typing import Any

from page_parts import RESULTS, ROOT, load, not_measured, signed, spread
from plots import IMAGE, from_summary, points_of

SECONDS = "seconds are of more than one machine and of engines of different age, each named in its run's JSON:"


def step_speed() -> str:
    if not (RESULTS / "step_speed.json").exists():
        return not_measured("step_speed.py")
    result = load("step_speed")
    kind, run, share = result["fraction_of_floor_rate"], result["whole_run"], result["fraction_of_floor"]
    lines = ["| unit | reference, ms | clcalib, ms | times as fast | floor, ms |", "|---|---|---|---|---|"]
    for unit, row in result["units"].items():
        floor = f"{row[f'floor_{kind}_ms']:.2f}" if row["convolution_gflop"] else "-"
        lines.append(f"| {unit} | {row['reference_ms']:.1f} | {row['ours_ms']:.1f} | {row['speedup']:.2f} | {floor} |")
    longer = ", ".join(f"{int(steps):,} steps {ratio:.1f}" for steps, ratio in run["speedup_extrapolated"].items())
    overhead = "; ".join(f"{name} {ratio:.2f}" for name, ratio in result["contrastive_overhead"].items())
    return "\n".join(
        [
            *lines,
            "",
            f"A step is {result['geomean_speedup']:.2f} times as fast as the reference's (geometric mean over units). "
            f"Its convolutions alone, at the rate of a large {kind} matrix product (the floor), would take "
            f"{100 * share:.0f} % of its time. A whole run, {run['images']:,} images and {run['steps']:,} steps for "
            f"each unit, is {run['whole_run_speedup']:.1f} times as fast (extrapolated: {longer}).",
            "",
            f"With the contrastive term a step takes this many times as long, mean over units: {overhead}.",
            "",
            *without_passes(result),
            f"Batch {result['batch']}, {result['device']}, rounds of which the least counts: {result['rounds']}; "
            f"torch {result['torch']}, {result['machine']}.",
        ]
    )


def without_passes(result: dict[str, Any]) -> list[str]:
    ratio = result.get("times_as_fast_as_without_compiled_passes")
    return [] if ratio is None else [f"Without a C++ compiler a step takes {ratio:.1f} times as long.", ""]


def fewer_steps() -> str:
    data = load("fewer_steps")
    grid = data["grids"].get("final", {})
    if not grid:
        return not_measured("fewer_steps.py run --grid final")
    lines = ["| recipe | steps | W2A4 | W2A2 | CPU seconds, W2A2 |", "|---|---|---|---|---|"]
    rows = {name: row for name, row in grid.items() if not name.endswith("-w2a4")}
    for name, row in sorted(rows.items(), key=lambda item: (item[1]["settings"]["recipe"], steps_of(item[1]))):
        wider = spread(grid.get(f"{name}-w2a4", {}).get("test"))
        seconds = f"{row['cpu_seconds']:,.0f}"
        recipe = row["settings"]["recipe"]
        lines.append(f"| `{recipe}` | {steps_of(row):,} | {wider} | {spread(row['test'])} | {seconds} |")
    about = (
        "Top-1 in % on 10,000 test images, mean ± standard deviation (number of seeds), seeds that selected nothing; "
    )
    lines += ["", f"{about}one thread; {SECONDS} {'; '.join(machines_of(grid))}."]
    lines += ["", plain_engine(grid)]
    share = load("step_speed")["whole_run"].get("fast_as_share_of_2000_reference_steps")
    if share is not None:
        about = "steps as the reference implementations write them, in one process (extrapolated)"
        lines += [
            "",
            f"A run of `fast`, 200 steps, takes {100 * share:.1f} % of the CPU time of a run of 2,000 {about}.",
        ]
    return "\n".join(lines)


def plain_engine(grid: dict[str, Any]) -> str:
    """QDrop before there were compiled passes, bfloat16 and caches as codes, and now."""
    then, parts = load("accuracy")["grids"]["hosts"], []
    for widths, name in (("w2a2", "qdrop-2000"), ("w2a4", "qdrop-2000-w2a4")):
        now = spread(grid.get(name, {}).get("test"))
        parts.append(f"{widths.upper()} {spread(then[f'{widths}-qdrop'])} then and {now} now")
    return (
        "Accuracy before and after all this, QDrop at 2,000 steps: the first engine (float32, PyTorch's own passes; "
        f"other seeds) and this one: {'; '.join(parts)}."
    )


def curve() -> str:
    """Every recipe at every number of steps, seeds of both grids together, and the plot."""
    if not load("fewer_steps")["grids"].get("curve"):
        return not_measured("fewer_steps.py run --grid curve")
    points = points_of(from_summary(RESULTS / "fewer_steps.json"))
    ran = Counter(point.steps for row in points.values() for point in row)
    counts = sorted(steps for steps, recipes in ran.items() if recipes > 1)
    about = f"Recipes that take a number of steps, at {counts[0]:,} to {counts[-1]:,} for each unit:"
    lines = [about, ""]
    lines += ["| recipe | " + " | ".join(f"{steps:,}" for steps in counts) + " |", "|---" * (len(counts) + 1) + "|"]
    for name, row in points.items():
        by_steps = {point.steps: _point(point.top1, point.seconds) for point in row}
        lines.append(f"| `{name}` | " + " | ".join(by_steps.get(steps, "-") for steps in counts) + " |")
    about = (
        "W2A2; top-1 in % on 10,000 test images, mean over the seeds whose number stands behind it, and below it the"
    )
    machines = "; ".join(machines_of(load("fewer_steps")["grids"]["curve"]))
    lines += ["", f"{about} CPU seconds of a whole run on one thread. The rates of short runs are raised."]
    lines += ["", f"The {SECONDS} {machines}."]
    if IMAGE.exists():
        lines += ["", f"![Accuracy against steps and against CPU time]({IMAGE.relative_to(ROOT / 'docs').as_posix()})"]
    return "\n".join(lines)


def reference_accuracy() -> str:
    """The reference code and ours at the same number of steps, and what share of the gap to float ours closes."""
    if not (RESULTS / "reference_accuracy.json").exists():
        return not_measured("reference_accuracy.py")
    result = load("reference_accuracy")
    rows, names = result["methods"], {"fast": "`fast`", "fast-biases-tuning": "`fast` with biases and tuning"}
    lines = ["| steps for each unit | method | top-1 (seeds) | CPU seconds | closes |", "|---|---|---|---|---|"]
    for name, row in rows.items():
        raised, own = row["raised"], name.removesuffix(f"-{row['steps']}")
        told = names.get(own) or f"reference, its rates{'' if raised == 1 else f' x {raised}'}"
        shares = [(rows[other]["raised"], share) for other, share in row.get("gap_closed", {}).items()]
        closes = "; ".join(f"{100 * share:.0f} % of rates x {raised}" for raised, share in shares) or "-"
        top1 = f"{row['top1']:.2f} ± {row['deviation']:.2f} ({len(row['seeds'])})"
        lines.append(f"| {row['steps']:,} | {told} | {top1} | {row['cpu_seconds']} | {closes} |")
    about = (
        f"ResNet-20, W2A2, all 10,000 test images; float {result['float_top1']:.2f}. *Closes*: the share of the gap "
        "between the reference at those rates and the float network. All convolutions in float32; "
        f"torch {result['torch']}, {result['machine']}."
    )
    return "\n".join([*lines, "", about])


def _point(top1: tuple[float, ...], seconds: float) -> str:
    return f"{fmean(top1):.2f} ({len(top1)})<br>{seconds:,.0f} s"


def machines_of(grid: dict[str, Any]) -> list[str]:
    return sorted({machine for row in grid.values() for machine in row["machines"]})


def steps_of(row: dict[str, Any]) -> int:
    return int(row["settings"]["options"].get("steps", 0))


def contrastive_cost() -> str:
    data = load("fewer_steps")
    grid = data["grids"].get("contrastive", {})
    if not grid:
        return not_measured("fewer_steps.py run --grid contrastive")
    lines = ["| contrastive term | top-1 | CPU seconds |", "|---|---|---|"]
    for row in grid.values():
        term = row["settings"]["contrastive"]
        name = "none" if term is None else ", ".join(f"`{key}={value}`" for key, value in term.items() if value)
        lines.append(f"| {name} | {spread(row['selection'])} | {row['cpu_seconds']:,.0f} |")
    about = "`fast`, 200 steps, W2A2; top-1 in % on 5,000 training images outside the calibration set, mean ± standard "
    return "\n".join([*lines, "", f"{about}deviation (number of seeds)."])


def memory() -> str:
    if not (RESULTS / "memory.json").exists():
        return not_measured("memory.py")
    result = load("memory")
    budget = f"budget of {result['budget'] / 1e6:.0f} MB"
    lines = [f"| images | before the run | no budget | {budget} | same result |", "|---|---|---|---|---|"]
    for run in result["runs"]:
        plain, bounded = run["no_budget"], run["budget"]
        cells = [f"{size / 1e6:,.0f} MB" for size in (plain["before"], plain["peak"], bounded["peak"])]
        same = "yes" if run["is_identical"] else "no"
        lines.append(f"| {run['images']:,} | {' | '.join(cells)} | {same} |")
    about = f"Largest resident set of the process, ResNet-20, W2A4, {result['steps']} steps for each unit"
    return "\n".join([*lines, "", f"{about}; torch {result['torch']}, {result['machine']}."])


def cache_bytes() -> str:
    result, steps = load("cache_bytes"), load("fewer_steps")["grids"].get("cache_precision", {})
    lines = ["| network | widths | float32 caches | bfloat16 caches |", "|---|---|---|---|"]
    for row in result["rows"]:
        sizes = " | ".join(f"{row[kind] / 1024:.0f} KiB" for kind in ("float32", "bfloat16"))
        lines.append(f"| {row['network']} | W{row['weights']}A{row['activations']} | {sizes} |")
    lines += ["", "Stored inputs and targets of one calibration image of 32 x 32 pixels, where most are alive.", ""]
    for widths in ("w2a2", "w2a4"):
        lines += _in_both(steps, f"fast-200-{widths}", f"`fast`, 200 steps, {widths.upper()}", "caches")
    about = "Top-1 in % on 5,000 training images outside the calibration set; convolutions in float32"
    return "\n".join([*lines, "", f"{about}; {'; '.join(machines_of(steps))}."])


def precision() -> str:
    """Convolutions in both types, with the term, whose pass through the rest of the network is in the same type."""
    grid = load("fewer_steps")["grids"].get("precision", {})
    lines = []
    for term, words in (("", ""), ("-contrastive", " with the contrastive term in every step on whole batches")):
        for widths in ("w2a2", "w2a4"):
            name = f"`fast`, 200 steps{words}, {widths.upper()}"
            lines += _in_both(grid, f"fast-200-{widths}{term}", name, "convolutions")
    if not lines:
        return not_measured("fewer_steps.py run --grid precision")
    about = "Top-1 in % on 5,000 training images outside the calibration set"
    return "\n".join([*lines, "", f"{about}; {'; '.join(machines_of(grid))}."])


def _in_both(grid: dict[str, Any], cell: str, name: str, what: str) -> list[str]:
    """A line on a cell in float32 and in bfloat16, paired by seed; none where one was not run."""
    exact, low = (grid.get(f"{cell}-{kind}") for kind in ("float32", "bfloat16"))
    if not (exact and low):
        return []
    both = sorted(set(exact["seeds"]) & set(low["seeds"]))
    values = [dict(zip(row["seeds"], row["selection_top1"], strict=True)) for row in (exact, low)]
    gains = signed([round(values[1][seed] - values[0][seed], 2) for seed in both])
    means = f"{spread(exact['selection'])} with float32 {what} and {spread(low['selection'])} with bfloat16 ones"
    return [f"* {name}: {means}; by seed {gains}."]
