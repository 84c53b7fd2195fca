"""The tables of docs/choosing.md and docs/scaling.md, from ``benchmarks/results``; ``readme.py`` puts them there."""

from __future__ import annotations

import json
from collections.abc import Iterable
from math import sqrt
from pathlib import Path
from typing import Any, NamedTuple

RESULTS = Path(__file__).resolve().parent / "results"
WIDTHS = ("w8a8", "w4a8", "w4a4", "w3a3", "w2a4", "w4a2", "w2a2")
TEST_IMAGES = 10_000
# Parts of the study with an addition: the end of a cell's name, and what to call it.
ADDED = (("biases", "-biases", "biases"), ("tuning", "-biases-tuning", "biases + tuning"))
LEAST_SEEDS = 3  # of a mean that others are measured by
Row = dict[str, Any]


class Measured(NamedTuple):
    """A recipe at a width: what was measured, and where it stands."""

    recipe: str
    top1: float
    deviation: float | None
    seeds: int
    seconds: float
    source: str


def load(name: str) -> Row:
    data: Row = json.loads((RESULTS / f"{name}.json").read_text())
    return data


def measurements(widths: str) -> list[Measured]:
    """Every run of ResNet-20 at these widths on all test images, the cheapest recipe first."""
    found = [*_peers(widths), *_fewer_steps(widths), *_study(widths), *_accuracy(widths)]
    return sorted(_richest(found), key=lambda row: row.seconds)


def by_width() -> str:
    lines = ["| widths | nearest | `fast`, 200 steps | the best measured | CPU seconds of the three | take |"]
    lines.append("|---|---|---|---|---|---|")
    for widths in WIDTHS:
        rows = measurements(widths)
        nearest = next(row for row in rows if row.recipe == "`nearest`")
        fast = next((row for row in rows if row.recipe == "`fast`, 200 steps"), None)
        best = best_of(rows)
        seconds = ", ".join("-" if row is None else f"{row.seconds:.0f}" for row in (nearest, fast, best))
        cells = [widths.upper(), cell(nearest), "not run" if fast is None else cell(fast)]
        cells += [f"{cell(best)} {best.recipe}", seconds, cheapest(rows).recipe]
        lines.append(f"| {' | '.join(cells)} |")
    top1 = load("study")["cells"]["hosts/resnet20/w2a2-qdrop"]["float_top1"]
    about = (
        f"ResNet-20 with public weights (float {top1:.2f}), "
        "CIFAR-10, 1,024 calibration images; top-1 in % on all 10,000 test images, mean ± standard deviation (seeds). "
        "The best is one of three seeds or more where there is one. *Take*: the cheapest that is no further below the "
        "best than chance, two standard errors of a difference. The columns come from several batteries of runs with "
        "other seeds and on three machines, so that CPU seconds are no more than an order"
    )
    return "\n".join([*lines, "", f"{about}; {files('peers', 'fewer_steps', 'study', 'accuracy')}."])


def by_recipe() -> str:
    rows = [row for row in measurements("w2a2") if row.source != "peers"]
    lines = ["| recipe | top-1 | CPU seconds | measured in |", "|---|---|---|---|"]
    lines += [f"| {row.recipe} | {cell(row)} | {row.seconds:.0f} | {files(row.source)} |" for row in rows]
    return "\n".join([*lines, "", "ResNet-20, W2A2, the rest as above; the cheapest first."])


def harder() -> str:
    lines = ["| network | widths | recipe | points lost | CPU seconds |", "|---|---|---|---|---|"]
    rows = imagenet_runs()
    for name, row in rows:
        lost = {**row["top1"], "mean": row["float_top1"] - row["top1"]["mean"]}
        lines.append(f"| {row['network']} | {widths_of(row)} | {name} | {spread(lost)} | {row['cpu_seconds']:.0f} |")
    images = ", ".join(sorted({f"{row['calibration_images']} calibration images" for _, row in rows}))
    about = f"{images}, top-1 against the float network on 1,000 photographs ([imagenet.md](imagenet.md))"
    return "\n".join([*lines, "", f"{about}; {files('imagenet')}."])


def imagenet_runs() -> list[tuple[str, Row]]:
    """The runs of the networks for ImageNet with the name of their recipe; the widest first."""
    rows = []
    for place, row in load("imagenet")["cells"].items():
        has_term = place.endswith("-contrastive")
        name = f"`{row['host']}`" + (f", {row['steps']} steps" if row["steps"] else "") + " + term" * has_term
        rows.append((name, row))
    return sorted(rows, key=lambda each: (each[1]["network"], -each[1]["weights"], -each[1]["activations"], each[0]))


def widths_of(row: Row) -> str:
    return f"W{row['weights']}A{row['activations']}"


def term() -> str:
    rows = [(row["network"], row["widths"], row["host"], row["difference"]) for row in load("study")["hosts"]]
    imagenet = load("imagenet")
    for pair in imagenet["pairs"]:
        plain = imagenet["cells"][pair["plain"]]
        rows.append((f"{plain['network']}, ImageNet", widths_of(plain), plain["host"], pair["top1"]))
    lines = ["| network | widths | recipe | with the term less without | 95 % t interval | seeds |"]
    lines += ["|---|---|---|---|---|---|", *(_difference(*row) for row in rows)]
    about = "Points of top-1, seed by seed; 300 steps for each unit (ImageNet: 100), the term at every fourth step"
    intervals = [row["t_interval"] for *_, row in rows if row["n"] > 2]
    clear = sum(low > 0 or high < 0 for low, high in intervals)
    verdict = f"**{clear or 'None'} of the {len(intervals)} intervals of three seeds or more leaves out zero.**"
    return "\n".join([*lines, "", f"{about}; {files('study', 'imagenet')}.", "", verdict])


def few_images() -> str:
    grid = load("fewer_steps")["grids"]["augmentation"]
    lines = ["| calibration images | copies | top-1 |", "|---|---|---|"]
    for name, row in grid.items():
        count = name.split("-images-")[1].split("-")[0]
        made = name.split(f"-images-{count}")[1].strip("-")
        copies = made.replace("-copies-", ", ").replace("-", " and ") + " each" if made else "none"
        lines.append(f"| {int(count):,} | {copies} | {spread(row['selection'])} |")
    about = "`qdrop`, 200 steps, W2A2; top-1 in % on 5,000 training images outside the calibration set"
    return "\n".join([*lines, "", f"{about}; {files('fewer_steps')}."])


def one_machine() -> str:
    lines = ["| network | run | calibration images | seconds | memory at the peak |", "|---|---|---|---|---|"]
    memory = load("memory")
    for run in memory["runs"]:
        cells = [f"ResNet-20, 32 x 32 | W2A4, `qdrop`, {memory['steps']} steps", f"{run['images']:,}"]
        lines.append(f"| {' | '.join(cells)} | {_cost(run['no_budget']['seconds'], run['no_budget']['peak'])} |")
    for name, row in imagenet_runs():
        cells = [f"{row['network']}, 224 x 224 | {widths_of(row)}, {name}", f"{row['calibration_images']:,}"]
        lines.append(f"| {' | '.join(cells)} | {_cost(row['cpu_seconds'], row['peak_memory_bytes'])} |")
    about = "One thread, machines of 2 cores; memory is the largest resident set of the process"
    return "\n".join([*lines, "", f"{about}; {files('memory', 'imagenet')}."])


def _cost(seconds: float, size: int) -> str:
    return f"{seconds:.0f} | {size / 1e9:.1f} GB"


def extrapolated() -> str:
    data = load("step_speed")
    run = data["whole_run"]
    own, theirs = run["seconds"]["clcalib"], run["seconds"]["reference"]
    lines = ["| steps for each unit | clcalib | a plain transcription of the reference step |", "|---|---|---|"]
    lines.append(f"| {run['steps']:,} (measured) | {own['total']:.0f} s | {theirs['total']:.0f} s |")
    for steps in ("2000", "20000"):
        key = f"extrapolated_to_{steps}"
        lines.append(f"| {int(steps):,} (extrapolated) | {own[key]:,.0f} s | {theirs[key]:,.0f} s |")
    about = f"QDrop on ResNet-20, {run['images']:,} images, one thread, CPU time, {data['machine']}"
    return "\n".join([*lines, "", f"{about}; {files('step_speed')}."])


def best_of(rows: Iterable[Measured]) -> Measured:
    """The row with the largest mean, of those with enough seeds where there are some."""
    rows = list(rows)
    return max([row for row in rows if row.seeds >= LEAST_SEEDS] or rows, key=lambda row: row.top1)


def cheapest(rows: Iterable[Measured]) -> Measured:
    """The first row that is no further below the best one than two standard errors of a difference."""
    rows = list(rows)
    best = best_of(rows).top1 / 100
    chance = 100 * 2 * sqrt(2 * best * (1 - best) / TEST_IMAGES)
    return next(row for row in rows if row.top1 >= 100 * best - chance)


def cell(row: Measured) -> str:
    deviation = "" if row.deviation is None or row.seeds == 1 else f" ± {row.deviation:.2f}"
    return f"{row.top1:.2f}{deviation} ({row.seeds})"


def spread(row: Row) -> str:
    return f"{row['mean']:.2f}" + (f" ± {row['deviation']:.2f}" if row["n"] > 1 else "") + f" ({row['n']})"


def files(*names: str) -> str:
    """Links to the results, for a page in docs."""
    places = {name: name if name == "peers" else f"{name}.json" for name in names}
    return ", ".join(f"[{place}](../benchmarks/results/{place})" for place in places.values())


def _difference(network: str, widths: str, host: str, row: Row) -> str:
    interval = "too few seeds"
    if row["n"] > 2:
        low, high = row["t_interval"]
        interval = f"{low:+.2f} to {high:+.2f}"
    return f"| {network} | {widths} | `{host}` | {row['mean']:+.2f} | {interval} | {row['n']} |"


def _peers(widths: str) -> Iterable[Measured]:
    for recipe, name in (("nearest", "`nearest`"), ("fast", "`fast`, 200 steps")):
        path = RESULTS / "peers" / f"ours-{recipe}-{widths}-seed0.json"
        if path.exists():
            row = json.loads(path.read_text())
            yield Measured(name, row["top1"], None, 1, row["cpu_seconds"], "peers")


def _fewer_steps(widths: str) -> Iterable[Measured]:
    for row in load("fewer_steps")["grids"]["final"].values():
        settings = row["settings"]
        if f"w2a{settings['activations']}" == widths:
            steps = settings["options"].get("steps")
            name = f"`{settings['recipe']}`" + (f", {steps:,} steps" if steps else "")
            yield _measured(name, row["test"], row["cpu_seconds"], "fewer_steps")


def _study(widths: str) -> Iterable[Measured]:
    data = load("study")
    for place, row in data["cells"].items():
        start = f"hosts/resnet20/{widths}-"
        if place.startswith(start) and not place.endswith("-contrastive"):
            host = place.removeprefix(start)
            name = "`nearest`" if host == "nearest" else f"`{host}`, {data['steps']} steps"
            yield _measured(name, row["test"], row["cpu_seconds"], "study")
        for part, suffix, added in ADDED:
            host = place.removeprefix(f"{part}/resnet20/{widths}-").removesuffix(suffix)
            if place == f"{part}/resnet20/{widths}-{host}{suffix}" and "-" not in host:
                name = f"`{host}`, {data['steps']} steps, {added}"
                yield _measured(name, row["test"], row["cpu_seconds"], "study")


def _accuracy(widths: str) -> Iterable[Measured]:
    for place, row in load("accuracy")["grids"]["hosts"].items():
        if place.startswith(f"{widths}-") and not place.endswith(("-contrastive", "-nearest")):
            yield _measured(f"`{place.removeprefix(f'{widths}-')}`, 2,000 steps", row, row["cpu_seconds"], "accuracy")


def _measured(name: str, row: Row, seconds: float, source: str) -> Measured:
    return Measured(name, row["mean"], row["deviation"], row["n"], seconds, source)


def _richest(rows: Iterable[Measured]) -> list[Measured]:
    """One row for each recipe: that with the most seeds, the first of equals."""
    chosen: dict[str, Measured] = {}
    for row in rows:
        if row.recipe not in chosen or row.seeds > chosen[row.recipe].seeds:
            chosen[row.recipe] = row
    return list(chosen.values())
