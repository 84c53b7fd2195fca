"""Several models on the same images, whoever made them, as a table for the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.table import Table
from rich.text import Text

from clcalib.report.formats import MISSING, new_table, percent, short


@dataclass(frozen=True)
class ModelRow:
    """A model and how good it is.

    Attributes:
        model: its path as it was given; "float" for the float network.
        computed_by: a runtime and its version; "PyTorch" of the float network, "simulation" of a run's folder.
        images: on how many images.
        top1: None without labels.
        agreement: share of images for which it names the class that the reference names; None for the reference.
        file_bytes: of the file with the weights; None for the float network.
        integer_layers, float_layers: layers with weights, by what the runtime computes them with; None where nothing
            but PyTorch's float kernels is at work.
    """

    model: str
    computed_by: str
    images: int
    top1: float | None = None
    agreement: float | None = None
    file_bytes: int | None = None
    integer_layers: int | None = None
    float_layers: int | None = None


def model_table(rows: Sequence[ModelRow]) -> Table:
    """A line for each model; the first is the one that the others are compared with."""
    table = new_table(f"{rows[0].images:,} evaluation images; agreement with {rows[0].model}")
    table.add_column("model", style="bold", overflow="fold")
    table.add_column("computed by", overflow="fold")
    for heading in ("top-1 [%]", "agreement [%]", "size", "integer layers"):
        table.add_column(Text(heading), justify="right", max_width=9)
    for row in rows:
        size = MISSING if row.file_bytes is None else f"{short(row.file_bytes)}B"
        table.add_row(
            Text(row.model), Text(row.computed_by), percent(row.top1), percent(row.agreement), size, _layers(row)
        )
    return table


def _layers(row: ModelRow) -> str:
    if row.integer_layers is None or row.float_layers is None:
        return MISSING
    return f"{row.integer_layers} of {row.integer_layers + row.float_layers}"
