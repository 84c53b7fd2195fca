"""Writes the measurements into README.md and pages of docs, from ``benchmarks/results`` alone.

python benchmarks/readme.py            # writes
python benchmarks/readme.py --check    # fails where a page says something else
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import Any

import choosing
import decisions
import pareto_page
import speed_page
import workers_page
from page_parts import RESULTS, ROOT, load, not_measured, signed, spread

NAMES = {"nearest": "nearest", "adaround": "AdaRound", "brecq": "BRECQ", "qdrop": "QDrop"}
CONTRASTIVE = "qdrop-contrastive"


def hosts(grid: dict[str, Any]) -> list[str]:
    widths = [width for width in ("w2a4", "w2a2") if any(name.startswith(width) for name in grid)]
    lines = ["| method | " + " | ".join(width.upper() for width in widths) + " |", "|---" * (len(widths) + 1) + "|"]
    for key, name in NAMES.items():
        lines.append(f"| {name} | " + " | ".join(spread(grid.get(f"{width}-{key}")) for width in widths) + " |")
    cells = [spread(grid.get(f"{width}-{CONTRASTIVE}")) for width in widths]
    lines.append("| QDrop + contrastive | " + " | ".join(cells) + " |")
    gains = [grid.get(f"{width}-{CONTRASTIVE}", {}).get("paired_gains", []) for width in widths]
    lines.append("| paired gain, each seed | " + " | ".join(signed(values) for values in gains) + " |")
    return lines


def forms(grid: dict[str, Any]) -> list[str]:
    lines = ["| form | top-1 | paired gain, each seed |", "|---|---|---|"]
    ordered = sorted(grid.items(), key=lambda item: (item[0] != "plain", -item[1]["mean"]))
    for name, row in ordered:
        lines.append(f"| `{name}` | {spread(row)} | {signed(row['paired_gains'])} |")
    return lines


def demo() -> str:
    result = load("demo")
    lines = ["| | float | nearest | QDrop | QDrop + contrastive |", "|---|---|---|---|---|"]
    by_widths: dict[str, list[dict[str, Any]]] = {}
    for run in result["runs"]:
        by_widths.setdefault(f"W{run['weight_bits']}A{run['activation_bits']}", []).append(run)
    for widths, (plain, contrastive) in by_widths.items():
        values = (plain["float_top1"], plain["nearest_top1"], plain["quantized_top1"], contrastive["quantized_top1"])
        cells = " | ".join(f"{100 * value:.1f}" for value in values)
        lines.append(f"| {widths}, {plain['steps_per_unit']} steps | {cells} |")
    about = f"Top-1 in % on 2,000 test images, one seed; {result['seconds']} s in all on {result['machine']}."
    return "\n".join([*lines, "", about])


def measurements() -> str:
    accuracy, speed, ranges = load("accuracy"), load("step_speed"), load("range_speed")
    grids = accuracy["grids"]
    float_top1 = next(iter(grids["hosts"].values()))["float_top1"]
    return "\n".join(
        [
            f"ResNet-20 with public weights (float {float_top1:.2f} %), CIFAR-10, 1,024 images to calibrate, all",
            "10,000 test images, 2,000 steps for each unit, QDrop setting, rates as by default; top-1 in %,",
            "mean ± standard deviation (number of seeds):",
            "",
            *hosts(grids["hosts"]),
            "",
            "The contrastive row computes the term at every fourth step on all images of the batch (`interval=4`).",
            "Its temperature and share were chosen on the same test images and on seeds 0 and 1, so its gain is",
            "optimistic.",
            "These runs, and those of the line on precision below, are older than the present engine; each JSON names",
            "its commit. What the present engine reaches at 2,000 steps is in [docs/speed.md](docs/speed.md).",
            "",
            *study_lines(),
            "Forms of the contrastive term on QDrop at W2A2 and 200 steps (weights relative to the host's loss,",
            "`share=1`; every fourth step and temperature 0.1 unless it says otherwise). One or two seeds each: leads",
            "that chose the defaults, not results (a name without a weight has weight 1):",
            "",
            *forms(grids["contrastive"]),
            "",
            step_line(speed),
            "",
            precision_line(grids["precision"]),
            "",
            range_line(ranges),
            "",
            "Each number comes from a script in [benchmarks](benchmarks); its JSON is in",
            "[benchmarks/results](benchmarks/results).",
        ]
    )


def step_line(speed: dict[str, Any]) -> str:
    longer = speed["whole_run"]["speedup_extrapolated"]
    return (
        f"Against a plain transcription of the reference step, CPU time on one thread ({speed['machine']}): "
        f"a QDrop step {speed['geomean_speedup']:.2f} times as fast (geometric mean over the units of ResNet-20), "
        f"a whole run with {speed['run_steps']:,} steps {speed['whole_run_speedup']:.1f} times, with 2,000 steps "
        f"{longer['2000']:.1f} times (extrapolated). More, and what makes it fast, in [docs/speed.md](docs/speed.md)."
    )


def precision_line(grid: dict[str, Any]) -> str:
    parts = []
    for widths in ("w2a2", "w2a4"):
        single, low = (grid[f"{widths}-qdrop-{name}"] for name in ("float32", "bfloat16"))
        parts.append(f"{widths.upper()} {spread(single)} and {spread(low)}")
    return (
        "Convolutions in float32 and in bfloat16 while units are optimised (QDrop, 2,000 steps, seeds 3 to 5, top-1 in "
        f"%): {'; '.join(parts)}."
    )


def study_lines() -> list[str]:
    """What the study says of the term at W2A2 on ResNet-20, in one paragraph."""
    if not (RESULTS / "study.json").exists():
        return []
    result = load("study")
    parts = []
    for row in result["hosts"]:
        own = row["difference"]
        if (row["network"], row["widths"]) == ("resnet20", "W2A2") and own is not None and "t_interval" in own:
            low, high = own["t_interval"]
            parts.append(f"`{row['host']}` {own['mean']:+.2f} [{low:+.2f}, {high:+.2f}] ({own['n']})")
    about = (
        f"What the term adds with the present engine at {result['steps']} steps, every fourth one on whole batches "
        "(same network, W2A2; contrastive less plain, mean over seeds, 95 % t interval, seeds)"
    )
    rest = "All hosts, networks and ablations that were run: [docs/results.md](docs/results.md)."
    return [f"{about}: {'; '.join(parts)}. {rest}", ""]


def range_line(ranges: dict[str, Any]) -> str:
    rows = ", ".join(
        f"{row['bits']} bits {row['ours']['cpu_seconds']:.2f} s (loop over candidates "
        f"{row['loop']['cpu_seconds']:.2f} s, error {row['ours']['error'] / row['loop']['error']:.4f} of its)"
        for row in ranges["rows"]
    )
    return f"Range search of all weights of ResNet-20 (`mse_grid`, per channel, one thread, CPU time): {rows}."


def estimates() -> str:
    result = load("estimates")
    lines = ["| run | CPU seconds | memory at the peak | in files | dry run |", "|---|---|---|---|---|"]
    for case in result["cases"]:
        said, taken = case["estimate"], case["run"]
        seconds = f"{said['seconds']:.0f} said, {taken['seconds']:.0f} taken"
        memory, files = (
            f"{said[key] / 1e6:,.0f} MB said, {taken[key] / 1e6:,.0f} MB taken"
            for key in ("peak_memory_bytes", "spilled_bytes")
        )
        own = f"{said['own_seconds']:.0f} s"
        lines.append(f"| {case['case']} | {seconds} | {memory} | {files if taken['spilled_bytes'] else '-'} | {own} |")
    about = "ResNet-20 and MobileNetV2, W2A4, 100 steps for each unit, 1,024 images, one thread"
    return "\n".join([*lines, "", f"{about}; torch {result['torch']}, {result['machine']}."])


def from_result(name: str, block: Callable[[dict[str, Any]], str], command: str, key: str = "") -> str:
    """A block from a result, or what would measure it."""
    result = load(name) if (RESULTS / f"{name}.json").exists() else {}
    return block(result) if result and (not key or key in result) else not_measured(command)


PAGES: dict[str, dict[str, Callable[[], str]]] = {
    "README.md": {"measurements": measurements, "demo": demo},
    "docs/speed.md": {
        "step speed": speed_page.step_speed,
        "fewer steps": speed_page.fewer_steps,
        "curve": speed_page.curve,
        "reference accuracy": speed_page.reference_accuracy,
        "precision": speed_page.precision,
        "contrastive cost": speed_page.contrastive_cost,
        "memory": speed_page.memory,
        "cache bytes": speed_page.cache_bytes,
    },
    "docs/decisions/0007-compiled-elementwise-passes.md": {
        "kernel times": lambda: decisions.kernel_times(load("kernel_choice")),
    },
    "docs/decisions/0020-weight-gradients-of-our-own.md": {
        "weight gradient": lambda: from_result("weight_gradient", decisions.weight_gradient, "weight_gradient.py"),
        "with tiles": lambda: from_result(
            "weight_gradient_with_tiles", decisions.weight_gradient, "weight_gradient.py on such a processor"
        ),
    },
    "docs/decisions/0022-workers-of-one-machine-share-memory.md": {
        "exchange": lambda: from_result("scaling", workers_page.exchange, "scaling_simulator.py measure", "memory"),
    },
    "docs/decisions/0008-what-the-study-says.md": {"study": lambda: decisions.study(load("study"))},
    "docs/policy.md": {"estimates": estimates},
    "docs/mixed_precision.md": {"fronts": lambda: pareto_page.fronts(load("pareto"))},
    "docs/choosing.md": {
        "by width": choosing.by_width,
        "by recipe": choosing.by_recipe,
        "harder": choosing.harder,
        "term": choosing.term,
        "few images": choosing.few_images,
    },
    "docs/scaling.md": {
        "one machine": choosing.one_machine,
        "extrapolated": choosing.extrapolated,
        "workers": lambda: from_result("workers", workers_page.measured, "workers.py"),
        "simulated": lambda: from_result(
            "scaling", workers_page.simulated, "scaling_simulator.py predict", "predicted"
        ),
        "saturated": lambda: from_result(
            "scaling", workers_page.saturated, "scaling_simulator.py predict", "hidden_behind"
        ),
        "largest model": lambda: from_result("largest_model", workers_page.largest_model, "largest_model.py"),
        "sweep cost": lambda: workers_page.sweep_cost(load("study")),
    },
    "docs/workers.md": {
        "worker failures": lambda: from_result("worker_failures", workers_page.failures, "worker_failures.py kills"),
    },
}


def replaced(page: str, name: str, block: str) -> str:
    """The page with the block between the two markers of this name in place of the old one."""
    start, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    if start not in page or end not in page:
        raise ValueError(f"the page has no markers {start} and {end}")
    before, _, rest = page.partition(start)
    return "\n".join([before + start, block, end + rest.partition(end)[2]])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing; fail where a page differs")
    arguments = parser.parse_args()
    for place, blocks in PAGES.items():
        path = ROOT / place
        page = wanted = path.read_text()
        for name, block in blocks.items():
            wanted = replaced(wanted, name, block())
        if arguments.check and wanted != page:
            sys.exit(f"{place} differs from benchmarks/results; run python benchmarks/readme.py")
        if not arguments.check:
            path.write_text(wanted)


if __name__ == "__main__":
    main()
