"""What all parts of a record share: values that do not change, and numbers that are finite."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from clcalib.errors import NumericalError

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
BitWidth = Annotated[int, Field(ge=2, le=32)]
Count = Annotated[int, Field(ge=0)]


class Frozen(BaseModel):
    """A value: it does not change, it has no unknown field, and every number in it is finite."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _refuse_non_finite(cls, values: Any) -> Any:
        check_finite(values, cls.__name__)
        return values


def check_finite(values: Any, owner: str) -> None:
    """Raise ``NumericalError`` where a number anywhere in the values is infinite or NaN; it names the field."""
    for field, number in _numbers(values, owner):
        if not math.isfinite(number):
            raise NumericalError(
                f"{field}: expected a finite number, got {number}; a record never holds NaN or infinity"
            )


def _numbers(value: Any, field: str) -> Iterator[tuple[str, float]]:
    """Yield every float in nested mappings and sequences, with the path that leads to it."""
    if isinstance(value, float):
        yield field, value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _numbers(item, f"{field}.{key}")
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from _numbers(item, f"{field}[{index}]")
