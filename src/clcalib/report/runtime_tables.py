"""Tables of what a runtime does with a model: its kernels, its speed, its memory."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from clcalib.errors import first_of
from clcalib.export.runtimes import RUNTIMES, LayerCounts, LayerReport
from clcalib.export.runtimes.bench import Bench
from clcalib.report.formats import MISSING, new_table, short


def speed_table(result: Bench) -> Table:
    """The speed-up by batch and threads: the median over the rounds, and where the middle half of them lies."""
    shape = "x".join(str(size) for size in result.input_shape)
    table = new_table(f"Milliseconds of a call with images {shape}: medians of {result.rounds} rounds")
    for heading in ("batch", "threads", "float", "quantized", "speed-up", "middle half", "CPU time"):
        table.add_column(Text(heading), justify="right", no_wrap=True)
    for row in result.timings:
        table.add_row(
            str(row.batch), str(row.threads), _number(row.float_ms), _number(row.quantized_ms),
            Text(f"{row.speedup:.2f}x", style="bold"), f"{row.lower:.2f} to {row.upper:.2f}",
            f"{row.cpu_speedup:.2f}x",
        )  # fmt: skip
    return table


def size_table(result: Bench) -> Table:
    """File and memory of both models, and how many times smaller the quantized one is."""
    table = new_table("Size")
    table.add_column("", style="bold", no_wrap=True)
    for heading in ("float", "quantized", "smaller"):
        table.add_column(heading, justify="right", no_wrap=True)
    first, second = result.float_size, result.quantized_size
    table.add_row("file", *_sizes(first.file, second.file))
    table.add_row("peak memory of a process", *_sizes(first.peak, second.peak))
    if first.peak is not None and first.runtime is not None and second.peak is not None and second.runtime is not None:
        table.add_row("  of it, the model", *_sizes(first.peak - first.runtime, second.peak - second.runtime))
    return table


def float_table(layers: Sequence[LayerReport]) -> Table:
    """What stayed in float and why; operations with the same reason share a line."""
    table = new_table("In float, and why")
    table.add_column("operation", style="bold", no_wrap=True)
    table.add_column("nodes", overflow="fold")
    table.add_column("why")
    groups: dict[tuple[str, str], list[str]] = {}
    for row in sorted(layers, key=lambda row: not row.has_weights):  # layers with weights first: they cost most
        if row.kernel and not row.is_integer:
            groups.setdefault((row.operation, row.reason), []).append(row.name)
    for (operation, reason), names in groups.items():
        count = f" ({len(names)})" if len(names) > 1 else ""
        table.add_row(operation + count, Text(first_of(names)), Text(reason))
    return table


def kernels_text(layers: Sequence[LayerReport], runtime: str, version: str) -> Text:
    """How much of the work is done with integers, in a line."""
    counts = LayerCounts.of(layers)
    weighted = counts.integer_layers + counts.float_layers
    others = counts.integer_operations + counts.float_operations - weighted
    return Text(
        f"{RUNTIMES[runtime].title} {version} computes {counts.integer_layers} of {weighted} layers with weights in "
        f"integers, and {counts.integer_operations - counts.integer_layers} of {others} other operations."
    )


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:#.3g}"


def _sizes(first: int | None, second: int | None) -> tuple[str, str, str]:
    if first is None or second is None:
        return MISSING, MISSING, MISSING
    ratio = f"{first / second:.2f}x" if first > 0 and second > 0 else MISSING
    return f"{short(max(first, 0))}B", f"{short(max(second, 0))}B", ratio
