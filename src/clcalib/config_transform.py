"""Images as the network's own configuration wants them, where a configuration leaves that open.

Size, colour and interpolation are each taken over as a whole: whoever gives a crop has said how images are sized.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from typing import Any

from clcalib.config_sources import Table, value_at
from clcalib.data.transform import Transform
from clcalib.errors import MissingPackageError, OtherTransformWarning
from clcalib.named_models import OwnTransform, is_named, own_transform, problem

TRANSFORM_KEYS = ("resize", "crop", "squash", "mean", "standard_deviation", "interpolation")
_GROUPS = (("resize", "crop", "squash"), ("mean", "standard_deviation"), ("interpolation",))
_USUAL = Transform()


def own_transform_of(table: Table) -> OwnTransform | None:
    """What the network of a table says about its images; None where it is no sound name of a library."""
    entry, arguments = value_at(table, "model", "entry"), value_at(table, "model", "arguments") or {}
    if not isinstance(entry, str) or not is_named(entry) or not isinstance(arguments, Mapping):
        return None
    weights = value_at(table, "model", "weights")
    try:
        is_sound = problem(entry) is None
    except MissingPackageError:
        return None  # told when the network is built, or its name checked
    return own_transform(entry, arguments, None if weights is None else str(weights)) if is_sound else None


def with_own_transform(table: Table) -> Table:
    """Fill in what the table does not say about its images.

    Warns:
        OtherTransformWarning: it says something else than the network.
    """
    data, own = table.get("data"), own_transform_of(table)
    if not isinstance(data, Mapping) or own is None or own.transform is None:
        return table
    filled, other = dict(data), []
    for group in _GROUPS:
        theirs = {key: getattr(own.transform, key) for key in group}
        if all(data.get(key) is None for key in group):
            filled |= {key: value for key, value in theirs.items() if value is not None}
        else:
            other += [_told(key, data.get(key), value) for key, value in theirs.items() if _differs(key, data, value)]
    if other:
        entry = value_at(table, "model", "entry")
        warnings.warn(
            f"images get another transform than {entry} was trained for: {', '.join(other)}",
            OtherTransformWarning,
            stacklevel=3,
        )
    return {**table, "data": filled}


def transform_problems(table: Table) -> Iterator[str]:
    """Yield what has to be given where a network's own transform cannot be written with our words."""
    data, own = table.get("data"), own_transform_of(table)
    if not isinstance(data, Mapping) or own is None or own.transform is not None:
        return
    if not any(data.get(key) is not None for key in ("calibration", "evaluation")):
        return
    if all(data.get(key) is None for key in TRANSFORM_KEYS):
        entry = value_at(table, "model", "entry")
        yield (
            f"data: expected mean, standard_deviation, resize and crop (--set data.crop=224), as the transform of "
            f"{entry} has parts that clcalib does not know, got none; its own is: {own.text}"
        )


def is_own(transform: Transform, table: Table) -> bool:
    """Whether a transform is the one of the network's own configuration."""
    own = own_transform_of(table)
    return own is not None and own.transform == transform


def _differs(key: str, data: Mapping[str, Any], theirs: object) -> bool:
    given = data.get(key)
    return _plain(getattr(_USUAL, key) if given is None else given) != _plain(theirs)


def _plain(value: object) -> object:
    return [float(each) for each in value] if isinstance(value, list | tuple) and _are_numbers(value) else value


def _are_numbers(values: list[Any] | tuple[Any, ...]) -> bool:
    return all(isinstance(value, int | float) for value in values)


def _told(key: str, given: object, theirs: object) -> str:
    return f"{key} {_word(given)} and not {_word(theirs)}"


def _word(value: object) -> str:
    return "none" if value is None else str(list(value) if isinstance(value, tuple) else value)
