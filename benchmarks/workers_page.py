"""What the pages about workers say, from ``benchmarks/results`` alone; ``readme.py`` puts it there."""

from __future__ import annotations

import statistics
from typing import Any

SWEEP = 1000  # runs
SHOWN = (1, 2, 4, 8, 16, 32, 64)


def failures(result: dict[str, Any]) -> str:
    """What became of killed workers and of links that were down."""
    lines = []
    if kills := result.get("kills"):
        ranks = ", ".join(f"rank {rank} {count} times" for rank, count in kills["kills_by_rank"].items())
        lines.append(
            f"* **{kills['kills']} workers killed** at random times ({ranks}) in {kills['runs']} runs of "
            f"{kills['workers']} workers: {kills['other_results']} results with other bytes than an undisturbed "
            "run, "
            f"{kills['other_codes']} runs that did not end by themselves with code 0, {kills['units_again']} units "
            f"done again ({kills['too_many_units_again']} runs with more than one for each kill)."
        )
    if link := result.get("link"):
        lines.append(
            f"* **{link['downs']} times a link down** for {link['down_seconds']:.0f} seconds, between two network "
            f"namespaces, in {link['runs']} run(s): {link['other_results']} results with other bytes, "
            f"{link['stopped']} runs stopped, {link['hanging']} hanging, {link['units_again']} units done again, "
            f"{link.get('unusable_states', 0)} states that could not be gone on with."
        )
    about = {f"{part['machine']}, torch {part['torch']}, {part['commit']}" for part in result.values()}
    return "\n".join([*lines, "", f"{'; '.join(sorted(about))}."])


def measured(result: dict[str, Any]) -> str:
    """Wall time of one, two and four workers, and what they send."""
    lines = [
        "| run | one worker | two | four | two against one | unsharded | messages a step | bytes a message |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for run in result["runs"]:
        rows = run["sent_per_step"]["2"]
        sent = (statistics.mean(row[key] for row in rows) for key in ("messages", "bytes_per_message"))
        seconds = [statistics.median(run["reconstruction_seconds"][str(number)]) for number in (1, 2, 4)]
        unsplit = statistics.median(run["one_shard_seconds"])
        name = "QDrop + contrastive" if run["contrastive"] else "QDrop"
        times = " | ".join(f"{each:.0f} s" for each in seconds)
        numbers = " | ".join(f"{each:,.1f}" for each in sent)
        ratio = run["median_ratio"]
        lines.append(f"| {name}, {run['steps']} steps | {times} | {ratio:.2f} | {unsplit:.0f} s | {numbers} |")
    same = all(run["same_bits"] for run in result["runs"])
    about = f"The bytes of all results are {'the same' if same else '**not** the same'}.  {result['machine']}"
    return "\n".join([*lines, "", f"{about}, torch {result['torch']}, {result['commit']}."])


def simulated(result: dict[str, Any]) -> str:
    """The prediction beside what was measured, and for many workers."""
    lines = ["| run | workers | measured, ms a step | predicted |", "|---|---|---|---|"]
    for row in result["checked"]:
        name = "QDrop + contrastive" if row["contrastive"] else "QDrop"
        for number, taken in row["measured_ms"].items():
            lines.append(f"| {name} | {number} | {taken:.1f} | {row['predicted_ms'][number]:.1f} |")
    numbers = " | ".join(map(str, SHOWN))
    lines += ["", f"| unit, link | {numbers} | saturated from |", "|---|" + "---|" * (len(SHOWN) + 1)]
    for row in result["predicted"]:
        speeds = " | ".join(f"{row['speed'][str(number)]:.1f}" for number in SHOWN)
        lines.append(f"| {row['unit']}, {row['link']} | {speeds} | {row['saturated'] or '-'} |")
    given = result["assumed"]
    about = (
        f"Times as fast as one worker, with {given['shards']} shards of {given['shard_ms']:.1f} ms each and "
        f"{given['own_ms']:.1f} ms for the step itself, as fitted above; latencies of the links are assumed."
    )
    where = result["predict_provenance"]
    return "\n".join([*lines, "", f"{about}  {where['machine']}, {where['commit']}."])


def exchange(result: dict[str, Any]) -> str:
    """What an exchange takes, through memory and by gloo, for few bytes and many."""
    lines = ["| workers, bytes of each | memory in common | gloo over the loopback |", "|---|---|---|"]
    for workers, row in result["memory"].items():
        for size, seconds in row["seconds"].items():
            other = result["loopback"][workers]["seconds"][size]
            lines.append(f"| {workers}, {int(size):,} | {1e3 * seconds:.2f} ms | {1e3 * other:.2f} ms |")
    where = result["measure_provenance"]
    return "\n".join([*lines, "", f"{where['machine']}, torch {where['torch']}, {where['commit']}."])


def saturated(result: dict[str, Any]) -> str:
    """By link, the least time of a shard that an exchange hides behind."""
    numbers = list(result["hidden_behind"][0]["ms"])
    lines = [f"| unit, link | {' | '.join(f'{n} workers' for n in numbers)} |", "|---|" + "---|" * len(numbers)]
    for row in result["hidden_behind"]:
        told = " | ".join(f"{row['ms'][n]:,.0f}" if row["ms"][n] > 10 else f"{row['ms'][n]:.2f}" for n in numbers)
        lines.append(f"| {row['unit']}, {row['link']} | {told} |")
    about = (
        "Milliseconds that a shard must take, or its link is saturated; latencies and rates of the links are assumed."
    )
    return "\n".join([*lines, "", f"{about}  {result['predict_provenance']['commit']}."])


def largest_model(result: dict[str, Any]) -> str:
    """What networks take on one, four and sixteen workers, and how large a memory lets them be."""
    numbers = list(next(iter(result["networks"].values()))["largest_worker_bytes"])
    heads = " | ".join("one worker" if number == "1" else f"{number} workers" for number in numbers)
    lines = [f"| network | parameters | units | {heads} |", "|---|---|---|" + "---|" * len(numbers)]
    for name, row in result["networks"].items():
        sizes = (row["largest_worker_bytes"].get(number) for number in numbers)
        told = " | ".join("-" if size is None else f"{size / 1e9:.1f} GB" for size in sizes)
        lines.append(f"| {name} | {row['parameters'] / 1e6:.0f} M | {row['units']} | {told} |")
    *_, found = result["parameters_that_fit"].values()  # of the family with the largest network; others differ little
    lines += ["", f"| a memory of | {heads} |", "|---|" + "---|" * len(numbers)]
    for memory, sizes in ((key, value) for key, value in found.items() if key != "as"):
        told = " | ".join(f"{sizes[number] / 1e9:.1f} G" for number in numbers)
        lines.append(f"| {memory} | {told} |")
    about = (
        f"Above, the largest worker's bytes; below, parameters of a network like {found['as']} that fit where each "
        f"worker has that memory: {result['images']:,} images of {result['side']} x {result['side']}, W4A4, QDrop with "
        f"the contrastive term, stores of {result['stores_in_memory'] / 1e9:.0f} GB in memory and the rest in files.  "
        "Planned, and not run."
    )
    return "\n".join([*lines, "", f"{about}  {result['machine']}, torch {result['torch']}, {result['commit']}."])


def sweep_cost(study: dict[str, Any]) -> str:
    """What a thousand runs of the study's kind take."""
    lines = ["| network | CPU seconds a run, mean over settings | 1,000 runs, CPU hours |", "|---|---|---|"]
    networks = dict.fromkeys(name.split("/")[1] for name in study["cells"] if name.startswith("hosts/"))
    for network in networks:
        cells = [cell for name, cell in study["cells"].items() if name.startswith(f"hosts/{network}/")]
        seconds = [cell["cpu_seconds"] for cell in cells if cell.get("cpu_seconds")]
        if seconds:
            mean = statistics.mean(seconds)
            lines.append(f"| {network} | {mean:.0f} | {mean * SWEEP / 3600:.1f} |")
    about = f"{study['steps']} steps for each unit; all methods and widths of each network"
    return "\n".join([*lines, "", f"{about}, [study.json](../benchmarks/results/study.json)."])
