"""docs/reliability.md: what is promised, which test holds it, and what its full battery found, side by side."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

Rows = Sequence[dict[str, Any]]
UNCOUNTED = ("name", "case", "problems", "size", "commit")


def total(rows: Rows, key: str) -> int:
    """The sum of a figure; of a list, its length counts."""
    values = (row.get(key) or 0 for row in rows)
    return sum(len(value) if isinstance(value, list) else int(value) for value in values)


def most(rows: Rows, key: str) -> float:
    return max((float(row[key]) for row in rows if row.get(key) is not None), default=0.0)


def kills(rows: Rows) -> str:
    return (
        f"{total(rows, 'kills')} kills in {total(rows, 'tries')} runs, {total(rows, 'kills_inside_a_unit')} of them "
        f"after steps of a unit were saved: {total(rows, 'units_lost')} units lost, "
        f"{total(rows, 'wrong_results')} other results"
    )


def calls(rows: Rows) -> str:
    return (
        f"{total(rows, 'calls')} calls: old state after {total(rows, 'old_state')}, new state after "
        f"{total(rows, 'new_state')}, a mixture after {total(rows, 'mixed')}"
    )


def damages(rows: Rows) -> str:
    equal, stopped = total(rows, "continued_to_equal_results"), total(rows, "stopped")
    found = f"{total(rows, 'damages')} damages, {total(rows, 'named')} named"
    return f"{found}; {equal} runs to the same bytes, {stopped} stopped"


def pieces(rows: Rows) -> str:
    recipes = len({(row["recipe"], row["contrastive"]) for row in rows})
    return f"{recipes} pairs of recipe and term, {total(rows, 'pieces')} interruptions: all equal"


def signals(rows: Rows) -> str:
    return ", ".join(f"{row['signal']} {row['seconds']:.1f} s" for row in rows)


def mutants(rows: Rows) -> str:
    kinds = ", ".join(sorted({str(row["kind"]) for row in rows}))
    return f"{total(rows, 'mutants'):,} files ({kinds}); the slowest took {most(rows, 'slowest_seconds'):.1f} s"


def malicious(rows: Rows) -> str:
    return f"{len(rows)} files, the slowest {most(rows, 'seconds'):.1f} s"


PROMISES: Sequence[tuple[str, str, str, Callable[[Rows], str]]] = (
    ("Runs that end before their time", "", "", str),
    (
        "D1",
        "A run that is killed at any moment loses no finished unit, and resumed to the end it has the same bytes",
        "test_durability.py",
        kills,
    ),
    (
        "resumed_equal",
        "The same for every recipe, interrupted again and again inside its units",
        "test_durability.py",
        pieces,
    ),
    ("D2", "A kill at any system call of a save leaves the old state or the new one", "test_storage.py", calls),
    (
        "D3",
        "A byte that flips, a file that is cut off or gone is found by its hash and named; its part is computed again",
        "test_durability.py",
        damages,
    ),
    (
        "D4",
        "A run goes on only with the weights, images, settings, versions and threads that it began with",
        "test_durability.py",
        lambda rows: f"{total(rows, 'refused')} of {total(rows, 'fields')} changed fields refused by name",
    ),
    (
        "D5",
        "A disk that fills up is told with an exit code of its own, and the run goes on when there is room",
        "test_storage.py",
        lambda rows: (
            f"{total(rows, 'levels')} levels: {total(rows, 'told')} told, {total(rows, 'enough_room')} had room, "
            f"{total(rows, 'equal_results')} equal results"
        ),
    ),
    (
        "D6",
        "One process in a folder; the other is told at once who has it; a dead process holds nothing",
        "test_durability.py",
        lambda rows: (
            f"{total(rows, 'one_winner')} of {total(rows, 'tries')} races with one winner, refusal in "
            f"{most(rows, 'slowest_refusal_seconds'):.3f} s at most"
        ),
    ),
    (
        "D7",
        "Ctrl-C and SIGTERM: what is done is saved, and the process gone within 10 s",
        "test_durability.py",
        signals,
    ),
    ("Determinism", "", "", str),
    (
        "same bytes",
        "The same command twice: the same bytes of checkpoint and ONNX file, with each recipe and the term",
        "test_repeatable.py",
        lambda rows: f"{len(rows)} pairs of runs, {total(rows, 'different')} different",
    ),
    (
        "environment",
        "The shell's variables (OMP_NUM_THREADS and others) play no part: the number of threads is pinned",
        "test_repeatable.py",
        lambda rows: (
            f"{total(rows, 'variants')} pairs of variables and pinned threads, {total(rows, 'different')} different"
        ),
    ),
    (
        "stored",
        "Nor does it matter whether values are kept in memory or in files",
        "test_repeatable.py",
        lambda rows: f"{len(rows)} runs, {total(rows, 'different')} different",
    ),
    (
        "listing",
        "Nor in which order a folder is listed; images are read one after the other, by no workers",
        "test_repeatable.py",
        lambda rows: f"{total(rows, 'orders')} orders, {total(rows, 'different')} different",
    ),
    ("Files from anywhere", "", "", str),
    ("malicious", "No file runs code, fills the memory or hangs", "test_malicious.py", malicious),
    ("mutants", "No damaged file brings a traceback, a crash or a hang", "test_mutants.py", mutants),
    (
        "configurations",
        "No configuration brings another error than one that says what to do",
        "test_configurations.py",
        lambda rows: ", ".join(f"{value} {key}" for key, value in rows[0].items() if key not in UNCOUNTED),
    ),
    (
        "onnx_paths",
        "No ONNX file reads outside its folder",
        "test_onnx_paths.py",
        lambda rows: f"{sum(bool(row['refused']) for row in rows)} of {len(rows)} tricks refused",
    ),
    ("Numbers", "", "", str),
    (
        "bad numbers",
        "Bad weights, images and statistics stop a run before it optimises, or end in a warning; all saved is finite",
        "test_numerics.py",
        lambda rows: (
            f"{len(rows)} kinds of bad numbers, "
            f"{sum(total([row], key) for row in rows for key in row if key not in UNCOUNTED)} runs, "
            f"{total(rows, 'problems')} problems"
        ),
    ),
    (
        "zero channels",
        "A channel of zeros changes no other channel's codes",
        "test_zero_channels.py",
        lambda rows: f"{total(rows, 'cases')} cases, {total(rows, 'changed')} changed",
    ),
    (
        "watchdog",
        "A loss that is not finite is named and its unit kept at its best, never worse than nearest rounding",
        "test_watchdog.py",
        lambda rows: f"{total(rows, 'units')} units, {total(rows, 'worse_than_nearest')} worse",
    ),
    (
        "contrastive",
        "The contrastive losses and their gradients are finite for equal, zero and huge features",
        "test_contrastive.py",
        lambda rows: f"{total(rows, 'tried')} cases, {total(rows, 'not_finite')} not finite",
    ),
    (
        "architectures",
        "Every kind of convolution and of module is quantized, or listed with the reason",
        "test_architectures.py",
        lambda rows: f"{len(rows)} networks",
    ),
    (
        "damaged checkpoints",
        "A missing, extra or misshapen tensor of a checkpoint is an error, never zeros",
        "test_damaged_checkpoints.py",
        lambda rows: f"{total(rows, 'tried')} checkpoints, {total(rows, 'loaded')} loaded",
    ),
    (
        "global state",
        "The caller's random state, flags and model are the same bits after success, error and Ctrl-C",
        "test_global_state.py",
        lambda rows: (
            f"{len(rows)} functions, {total(rows, 'stopped')} of the calls stopped midway, "
            f"{total(rows, 'changed')} changes"
        ),
    ),
)


def page(result: dict[str, Any]) -> str:
    lines = [
        "# Reliability: promise, test and figure",
        "",
        "Written by `benchmarks/reliability.py` from `benchmarks/reliability.json`.  `make test-hard` runs the",
        "batteries of `tests/hard` in their full size and writes both; `make test` runs them reduced, and a figure",
        "marked so is of that size.  What is trusted and what is not says [SECURITY.md](../SECURITY.md).",
        "",
    ]
    figures = result.get("figures", [])
    for key, promise, test, told in PROMISES:
        if not promise:
            lines += ["", f"## {key}", "", "| promise | test | figure | size, commit |", "| --- | --- | --- | --- |"]
            continue
        rows = [row for row in figures if row["name"] == key]
        sizes = ", ".join(sorted({f"{row['size']}, {row['commit']}" for row in rows})) or "-"
        lines.append(f"| {promise} | `{test}` | {told(rows) if rows else 'not run'} | {sizes} |")
    lines += ["", *cost(result.get("cost")), *runs(result)]
    return "\n".join(lines).rstrip() + "\n"


def cost(found: dict[str, Any] | None) -> list[str]:
    if found is None:
        return []
    rows = found["runs"]
    told = [
        "## What saving costs",
        "",
        f"The embedded ResNet-20 with the default recipe, W2A4, saved after each unit: {len(rows)} runs of "
        f"{rows[0]['saves']} saves each, which took at most {100 * found['largest_share_of_run']:.2f} % of the run.",
        "",
        "The most bytes that the output folder had, with a snapshot before each step, and what was estimated before:",
        "",
        "| recipe | estimated | largest | ratio |",
        "| --- | --- | --- | --- |",
    ]
    pairs = zip(found["room"]["runs"], found["room"]["ratio"], strict=True)
    return [
        *told,
        *(f"| {row['recipe']} | {row['estimated']:,} | {row['largest']:,} | {ratio} |" for row, ratio in pairs),
        "",
    ]


def runs(result: dict[str, Any]) -> list[str]:
    places = (("batteries", result.get("machine")), ("cost", (result.get("cost") or {}).get("provenance")))
    return [f"The {name}: torch {where['torch']}, {where['machine']}." for name, where in places if where is not None]
