"""The figures of docs/decisions as functions of the results; ``readme.py`` writes them into the pages."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

Row = dict[str, Any]
WAYS = {"plain": "plain", "passes": "passes", "inductor": "Inductor", "numba": "Numba", "c++": "C++"}
OTHERS = list(WAYS)[:-1]
FUNCTIONS = {
    "quantize_and_drop": "quantize and drop",
    "squared_error": "squared error",
    "rounding_penalty": "rounding penalty",
}
FEW = 1000  # floats, below which a row tells what a call costs
NETWORK, WIDTHS = "resnet20", "W2A2"


def table(header: list[str], rows: Iterable[list[str]]) -> list[str]:
    return [f"| {' | '.join(line)} |" for line in (header, ["---"] * len(header), *rows)]


def kernel_times(result: Row) -> str:
    """Decision 7: milliseconds, what the first use costs, and how many times as fast C++ is."""
    names, first = list(WAYS.values()), result["first_use"]
    times = [[*_function(row), *(_time(row, way) for way in WAYS)] for row in result["rows"]]
    uses = [
        [cache.replace("_", " "), *(f"{first[way][cache]['cpu_seconds']:.1f}" for way in WAYS)]
        for cache in ("empty_cache", "full_cache")
    ]
    ratios = [[*_function(row), *(_ratio(row, way) for way in OTHERS)] for row in result["rows"] if row["floats"] > FEW]
    return "\n".join(
        [
            *table(["function", "floats", *names], times),
            "",
            *table(["CPU seconds of the first use, in a new process", *names], uses),
            "",
            *table(["C++ is so many times as fast", "floats", *names[:-1]], ratios),
            "",
            f"torch {result['torch']}, Numba {result['numba']}, {result['machine']}.",
        ]
    )


def weight_gradient(result: Row) -> str:
    """Decision 20: milliseconds of both ways, and their errors."""
    header = [
        "3 x 3 convolution",
        "channels, size",
        "own, ms",
        "PyTorch, ms",
        "times as fast",
        "error, own",
        "error, PyTorch",
    ]
    rows = []
    for name, row in result["shapes"].items():
        inputs, outputs, size = row["shape"]
        times = [f"{row[way]['milliseconds']:.2f}" for way in ("own", "pytorch")]
        errors = [f"{row[way]['error']:.1g}" for way in ("own", "pytorch")]
        rows.append([name, f"{inputs} to {outputs}, {size} x {size}", *times, f"{row['speedup']:.2f}", *errors])
    told = f"Batch {result['batch']}, one thread, CPU time; torch {result['torch']}, {result['machine']}."
    return "\n".join([*table(header, rows), "", told + " Errors are of the largest element."])


def _function(row: Row) -> list[str]:
    is_call = row["floats"] < FEW
    name = "call overhead, microseconds" if is_call else f"{FUNCTIONS[row['function']]}, {row['type']}"
    return [name, f"{row['floats']:,}"]


def _time(row: Row, way: str) -> str:
    time = row["milliseconds"].get(way)
    if time is None:
        return "-"
    digits, unit = (0, 1000) if row["floats"] < FEW else (2, 1)
    return " + ".join(f"{unit * time[direction]:.{digits}f}" for direction in ("forward", "backward"))


def _ratio(row: Row, way: str) -> str:
    """Forward and backward together."""
    times = row["milliseconds"]
    return f"{sum(times[way].values()) / sum(times['c++'].values()):.1f}" if way in times else "-"


def study(result: Row) -> str:
    """Decision 8: what the term changes in the accuracy and in the bound, and the ablations."""
    return "\n".join([*_accuracies(result), _bounds(result), _ablations(result), _prediction(result)])


def _accuracies(result: Row) -> list[str]:
    """A line for each network; a host of a single pair is left out."""
    lines = []
    for network in dict.fromkeys(row["network"] for row in result["hosts"]):
        rows = [row for row in result["hosts"] if (row["network"], row["widths"]) == (network, WIDTHS)]
        told = [(row["host"], row["difference"]) for row in rows if row["difference"] and row["difference"]["n"] > 1]
        parts = [f"`{host}` {own['mean']:+.2f} ({own['n']})" for host, own in told]
        clear = [f"`{host}`" for host, own in told if own["n"] > 2 and own["t_interval"][0] * own["t_interval"][1] > 0]
        verdict = (
            f"zero is outside the 95 % t interval of {', '.join(clear)}" if clear else "every 95 % t interval has 0"
        )
        if parts:
            lines.append(f"* Accuracy on {network}, contrastive less plain (seeds): {', '.join(parts)}; {verdict}.")
    return lines


def _bounds(result: Row) -> str:
    cells = result["cells"]
    pairs = [(cells.get(row["plain"]), cells.get(row["contrastive"])) for row in result["hosts"]]
    both = [(plain["bound_after"], ours["bound_after"]) for plain, ours in pairs if plain and ours]
    risen = sum(ours > plain for plain, ours in both)
    whole = result["correlations"]["mean over units"]
    everything, changes = whole["all"], whole["changes by the term"]
    return (
        f"* The bound that the term maximises, on held-out images, is higher with it in {risen} of {len(both)} cases "
        f"(host, network, widths). Over all {everything['n']} runs the bound goes with the accuracy (Spearman "
        f"{everything['spearman']:+.2f}); what the term changes in the one with what it changes in the other: "
        f"{changes['spearman']:+.2f} ({changes['n']} pairs)."
    )


def _ablations(result: Row) -> str:
    """The span of the harmless factors, and the lowest of all levels."""
    means = {
        (factor, row["level"]): row["difference"]["mean"]
        for factor, rows in result["ablations"].items()
        for row in rows
        if row["difference"] is not None
    }
    span = [mean for (factor, _), mean in means.items() if factor in ("temperature", "weight", "interval, images")]
    lowest = sorted(means.items(), key=lambda item: item[1])[:2]
    words = " and ".join(f"{factor} {level} ({mean:+.2f})" for (factor, level), mean in lowest)
    return (
        f"* One setting at a time, on QDrop: temperatures, weights, intervals and images lie between {min(span):+.2f} "
        f"and {max(span):+.2f} of no term, most of them with one seed; of all settings, {words} are lowest."
    )


def _prediction(result: Row) -> str:
    cells = [result["cells"][f"hosts/{NETWORK}/{WIDTHS.lower()}-{host}"]["test"] for host in ("pd_quant", "qdrop")]
    return "* On {}, `pd_quant` has {:.2f} where `qdrop` has {:.2f}.".format(NETWORK, *(cell["mean"] for cell in cells))
