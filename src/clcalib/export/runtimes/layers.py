"""What a runtime made of each layer of a model."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class LayerReport:
    """One operation of the model as it was given, and what computes it.

    Attributes:
        name: of the node in the file, or its output's where it has none.
        operation: its ONNX type, such as Conv.
        kernel: what runs, in the runtime's own words; "" where a neighbour does its work too.
        is_integer: whether it computes with integers.
        has_weights: whether it multiplies by weights of the model (Conv, Gemm, MatMul with a constant).
        reason: why it stayed in float; "" where it did not.
    """

    name: str
    operation: str
    kernel: str
    is_integer: bool
    has_weights: bool
    reason: str = ""


@dataclass(frozen=True)
class LayerCounts:
    """How many layers with weights, and how many operations in all, compute with integers and with floats."""

    integer_layers: int
    float_layers: int
    integer_operations: int
    float_operations: int

    @classmethod
    def of(cls, layers: Iterable[LayerReport]) -> LayerCounts:
        """Count; an operation that a neighbour does is not counted."""
        rows = [row for row in layers if row.kernel]
        integer = [row for row in rows if row.is_integer]
        weighted = [row for row in rows if row.has_weights]
        with_both = [row for row in weighted if row.is_integer]
        return cls(len(with_both), len(weighted) - len(with_both), len(integer), len(rows) - len(integer))
