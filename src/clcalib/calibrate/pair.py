"""The two stores of one cut, which move through the network together."""

from __future__ import annotations

import dataclasses

from torch import Tensor

from clcalib.calibrate.layout import Layout
from clcalib.calibrate.store import RowState, as_rows


@dataclasses.dataclass
class Pair:
    """The stores of this worker's images at one cut, behind the quantized and behind the float prefix.

    It moves with the walk: as nothing else refers to the stores, each is freed as soon as the next one takes its place.
    """

    quantized: RowState
    floating: RowState
    layout: Layout

    @classmethod
    def of(cls, images: Tensor, layout: Layout) -> Pair:
        rows = (as_rows(images),)
        return cls(rows, rows, layout)
