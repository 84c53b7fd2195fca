"""What a sweep's database says: methods ranked by network and width, what the contrastive term gains, and the cost.

Values are compared in pairs: a run with the term and the one without it that is the same in all else, to the seed, the
code, the model and the data.
"""

from __future__ import annotations

import dataclasses
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from clcalib.sweep.jobs import NONE
from clcalib.sweep.statistics import deviation, mean, t_interval

_PERCENT = 100.0
_CODE = re.compile(r"source (\w{6})")


@dataclasses.dataclass(frozen=True)
class Gain:
    """What the contrastive term gains on a recipe, in percentage points.

    Attributes:
        network, widths: where; None for all together.
        term: the contrastive setting, as the sweep names it.
        mean, low, high: of the differences, with Student's 95 % interval; None of a single pair.
        pairs: how many.
    """

    network: str | None
    widths: str | None
    recipe: str
    term: str
    mean: float
    low: float | None
    high: float | None
    pairs: int


@dataclasses.dataclass(frozen=True)
class Standing:
    """A method on one network at one pair of widths, over its seeds.  Accuracies are in percent.

    Attributes:
        score: mean top-1 accuracy, or agreement with the float network where there are no labels; measure: which.
        deviation: between seeds; None of a single one.
        nearest, floating: the same of nearest rounding (of its seeds' mean) and of the float network; None if unknown.
        seeds: how many.
        seconds: mean wall-clock time of a run.
        gain: of the term against the same recipe without it; None without a term, or without pairs.
        is_best: whether it is the best on its network at its widths.
        code: the digits of the source's digest, which tell versions apart.
    """

    network: str
    widths: str
    recipe: str
    contrastive: str
    score: float
    measure: str
    deviation: float | None
    nearest: float | None
    floating: float | None
    seeds: int
    seconds: float
    gain: Gain | None
    is_best: bool
    code: str


@dataclasses.dataclass(frozen=True)
class Leaderboard:
    """All that ``clcalib leaderboard`` shows.

    Attributes:
        standings: by network and widths, the best first.
        gains: by network, widths, recipe and term; overall: by recipe and term.
        counts: state -> number of runs.
    """

    standings: tuple[Standing, ...]
    gains: tuple[Gain, ...]
    overall: tuple[Gain, ...]
    counts: dict[str, int]

    @property
    def has_codes(self) -> bool:
        """Whether several versions of the code stand side by side."""
        return len({row.code for row in self.standings}) > 1


def leaderboard(
    rows: Iterable[Mapping[str, Any]], networks: Sequence[str] = (), widths: Sequence[str] = ()
) -> Leaderboard:
    """Rank what is in a database.

    Args:
        rows: see ``Database.rows``.
        networks: of these only; all, where there are none.
        widths: the same of these.
    """
    wanted = {text.upper() for text in widths}
    chosen = [
        row
        for row in rows
        if (not networks or row["network"] in networks) and (not wanted or row["widths"].upper() in wanted)
    ]
    done = [row for row in chosen if row["digest"] is not None and _score(row) is not None]
    gains = _gains(done, lambda row: (row["network"], row["widths"], row["recipe"], row["contrastive"], row["code"]))
    overall = _gains(done, lambda row: (None, None, row["recipe"], row["contrastive"], ""))
    states = [row["state"] for row in chosen]
    counts = {state: states.count(state) for state in ("queued", "running", "done", "failed")}
    return Leaderboard(_standings(done, gains), tuple(gains.values()), tuple(overall.values()), counts)


def _score(row: Mapping[str, Any]) -> float | None:
    value = row["agreement"] if row["quantized_top1"] is None else row["quantized_top1"]
    return None if value is None else _PERCENT * float(value)


def _standings(done: Sequence[Mapping[str, Any]], gains: Mapping[tuple[Any, ...], Gain]) -> tuple[Standing, ...]:
    groups: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for row in done:
        groups[row["cell"]].append(row)
    found = [_standing(group, gains) for group in groups.values()]
    order = {
        place: number for number, place in enumerate(dict.fromkeys((row["network"], row["widths"]) for row in done))
    }
    found.sort(key=lambda row: (order[row.network, row.widths], -row.score, row.seconds))
    best = {place: max(row.score for row in found if (row.network, row.widths) == place) for place in order}
    return tuple(dataclasses.replace(row, is_best=row.score == best[row.network, row.widths]) for row in found)


def _standing(group: Sequence[Mapping[str, Any]], gains: Mapping[tuple[Any, ...], Gain]) -> Standing:
    first = group[0]
    scores = [score for row in group if (score := _score(row)) is not None]
    return Standing(
        network=first["network"],
        widths=first["widths"],
        recipe=first["recipe"],
        contrastive=first["contrastive"],
        score=mean(scores),
        measure="agreement" if first["quantized_top1"] is None else "top-1",
        deviation=deviation(scores),
        nearest=_mean_of(group, "nearest_top1"),
        floating=_mean_of(group, "float_top1"),
        seeds=len(scores),
        seconds=mean([row["seconds"] or 0.0 for row in group]),
        gain=gains.get((first["network"], first["widths"], first["recipe"], first["contrastive"], first["code"])),
        is_best=False,
        code=found[1] if (found := _CODE.search(first["code"])) else "",
    )


def _mean_of(group: Sequence[Mapping[str, Any]], name: str) -> float | None:
    values = [_PERCENT * row[name] for row in group if row[name] is not None]
    return mean(values) if values else None


def _gains(done: Sequence[Mapping[str, Any]], place_of: Any) -> dict[tuple[Any, ...], Gain]:
    """Place -> gain; a place is network, widths, recipe, term and code."""
    plain = {row["pair"]: _score(row) for row in done if row["contrastive"] == NONE}
    differences: dict[tuple[Any, ...], list[float]] = defaultdict(list)
    for row in done:
        ours, base = _score(row), plain.get(row["pair"])
        if row["contrastive"] != NONE and ours is not None and base is not None:
            differences[place_of(row)].append(ours - base)
    found = {}
    for place, values in differences.items():
        low, high = t_interval(values) if len(values) > 1 else (None, None)
        network, widths, recipe, term, _ = place
        found[place] = Gain(network, widths, recipe, term, mean(values), low, high, len(values))
    return found
