"""Accuracy by class, which classes were changed into which, and the images that it happened to."""

from __future__ import annotations

import collections
import dataclasses

from markupsafe import Markup

from clcalib.report.charts.rows import Mark, Panel, row_chart
from clcalib.report.evidence import Evidence, PredictionRecord

MOST_CHARTED = 30
MOST_ROWS = 2000
MOST_IN_MATRIX = 12
MOST_PAIRS = 40


@dataclasses.dataclass(frozen=True)
class ClassRow:
    """A class: how many images have it, the shares that both networks name right, and how many changed.

    Without labels the classes are those that the float network names, and what is right is what it names.
    """

    name: str
    images: int
    floating: float
    quantized: float
    changed: int


@dataclasses.dataclass(frozen=True)
class PairRow:
    """How often one class was changed into another, and how often that was an error or its repair."""

    before: str
    after: str
    count: int
    lost: int
    won: int


@dataclasses.dataclass(frozen=True)
class ChangedRow:
    """One changed image with what is known of it."""

    name: str
    picture: str | None
    truth: str | None
    before: str
    after: str
    before_confidence: float
    after_confidence: float
    kind: str  # "lost", "won" or "other"


@dataclasses.dataclass(frozen=True)
class Matrix:
    """Counts of changes: row by row from which class, column by column into which, and a heat from 0 to 5."""

    names: tuple[str, ...]
    cells: tuple[tuple[tuple[int, int], ...], ...]


@dataclasses.dataclass(frozen=True)
class ClassView:
    """Everything of the section.

    Attributes:
        changed, lost, won: of all images.
    """

    images: int
    is_labelled: bool
    rows: tuple[ClassRow, ...]
    row_count: int
    chart: Markup
    charted: int
    matrix: Matrix | None
    pairs: tuple[PairRow, ...]
    pair_count: int
    changed: int
    lost: int
    won: int
    shown: tuple[ChangedRow, ...]


def class_view(evidence: Evidence | None) -> ClassView | None:
    """The section of a run, or None where no predictions were kept."""
    record = None if evidence is None else evidence.predictions
    if evidence is None or record is None or not record.floating:
        return None
    rows = _rows(record)
    changes = [at for at, (old, new) in enumerate(zip(record.floating, record.quantized, strict=True)) if old != new]
    kinds = [_kind(record, at) for at in changes]
    pairs = _pairs(record, changes)
    return ClassView(
        images=len(record.floating),
        is_labelled=record.labels is not None,
        rows=rows[:MOST_ROWS],
        row_count=len(rows),
        chart=_chart(rows[:MOST_CHARTED], is_labelled=record.labels is not None),
        charted=min(MOST_CHARTED, len(rows)),
        matrix=_matrix(record, changes),
        pairs=tuple(pairs[:MOST_PAIRS]),
        pair_count=len(pairs),
        changed=len(changes),
        lost=kinds.count("lost"),
        won=kinds.count("won"),
        shown=_shown(evidence, record),
    )


def _rows(record: PredictionRecord) -> tuple[ClassRow, ...]:
    """All classes, the one that lost most first."""
    truth = record.floating if record.labels is None else record.labels
    total, first, second, changed = (collections.Counter[int]() for _ in range(4))
    for right, old, new in zip(truth, record.floating, record.quantized, strict=True):
        total[right] += 1
        first[right] += old == right
        second[right] += new == right
        changed[right] += old != new
    rows = [
        ClassRow(record.class_name(c), total[c], first[c] / total[c], second[c] / total[c], changed[c])
        for c in sorted(total)
    ]
    return tuple(sorted(rows, key=lambda row: row.quantized - row.floating))


def _chart(rows: tuple[ClassRow, ...], *, is_labelled: bool) -> Markup:
    marks = [
        [
            Mark(100 * row.floating, "s-float", "ring", f"float {100 * row.floating:.1f} %"),
            Mark(100 * row.quantized, "s-own", "dot", f"quantized {100 * row.quantized:.1f} %"),
        ]
        for row in rows
    ]
    what = "Accuracy by class" if is_labelled else "Agreement by the class that the float network names"
    return row_chart(
        [row.name for row in rows],
        [Panel(f"{what} [%]", marks, is_joined=True, most=100.0)],
        title=what,
        description=f"{len(rows)} classes, the one that lost most first; rings are float, dots quantized",
    )  # fmt: skip


def _kind(record: PredictionRecord, at: int) -> str:
    if record.labels is None:
        return "other"
    right = record.labels[at]
    return "lost" if record.floating[at] == right else "won" if record.quantized[at] == right else "other"


def _pairs(record: PredictionRecord, changes: list[int]) -> list[PairRow]:
    counts: dict[tuple[int, int], collections.Counter[str]] = {}
    for at in changes:
        counts.setdefault((record.floating[at], record.quantized[at]), collections.Counter())[_kind(record, at)] += 1
    order = sorted(counts, key=lambda pair: (-counts[pair].total(), pair))
    return [
        PairRow(
            record.class_name(old), record.class_name(new), counts[old, new].total(), counts[old, new]["lost"],
            counts[old, new]["won"],
        )
        for old, new in order
    ]  # fmt: skip


def _matrix(record: PredictionRecord, changes: list[int]) -> Matrix | None:
    numbers = sorted({*record.floating, *record.quantized})
    if not 2 <= len(numbers) <= MOST_IN_MATRIX or not changes:
        return None
    counts = collections.Counter((record.floating[at], record.quantized[at]) for at in changes)
    most = max(counts.values())
    cells = tuple(tuple((counts[old, new], -(-5 * counts[old, new] // most)) for new in numbers) for old in numbers)
    return Matrix(tuple(record.class_name(number) for number in numbers), cells)


def _shown(evidence: Evidence, record: PredictionRecord) -> tuple[ChangedRow, ...]:
    return tuple(
        ChangedRow(
            name=image.name or f"image {image.place}",
            picture=image.picture,
            truth=None if record.labels is None else record.class_name(record.labels[image.place]),
            before=record.class_name(record.floating[image.place]),
            after=record.class_name(record.quantized[image.place]),
            before_confidence=image.float_confidence,
            after_confidence=image.quantized_confidence,
            kind=_kind(record, image.place),
        )
        for image in evidence.changed
    )
