"""What a library of networks can be asked, and how its transforms become ours."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from torch import nn

from clcalib.data.transform import INTERPOLATIONS, Transform
from clcalib.errors import ArgumentError, MissingPackageError

ENTRY, WEIGHTS = "model.entry (--model)", "model.weights (--pretrained)"
PRETRAINED = "pretrained"


@dataclasses.dataclass(frozen=True)
class OwnTransform:
    """How a network's own configuration says that images are made ready.

    Attributes:
        transform: the same in our terms, or None where these have no word for it.
        text: how the library itself writes it.
    """

    transform: Transform | None
    text: str


class Library(Protocol):
    """A package that builds networks by name."""

    def names(self) -> list[str]:
        """Of all networks.  Raises MissingPackageError where the package is not installed."""

    def knows(self, name: str) -> bool:
        """Whether there is a network of this name."""

    def published(self, name: str) -> list[str]:
        """The names of the weights that a network may have behind its own, as in ``resnet50.IMAGENET1K_V1``."""

    def build(self, name: str, arguments: Mapping[str, Any], *, is_pretrained: bool) -> nn.Module:
        """The network; raises as ``named_models.build`` does."""

    def transform(self, name: str, arguments: Mapping[str, Any], file: str | None) -> OwnTransform:
        """How its images are made ready; ``file`` is the name of its file of weights, where there is one."""


def missing(package: str, error: Exception) -> MissingPackageError:
    """What to tell where a library cannot be imported."""
    if isinstance(error, ModuleNotFoundError) and error.name == package:
        return MissingPackageError(f"networks of {package} need the package {package}: pip install 'clcalib[vision]'")
    return MissingPackageError(
        f"the package {package} is installed and cannot be imported ({said(error)}); install it again: "
        "pip install --force-reinstall 'clcalib[vision]'"
    )


def refuse(arguments: Mapping[str, Any], names: Iterable[str]) -> None:
    """Raise for arguments that would load weights by another way than ``model.weights``."""
    for name in names:
        if name in arguments:
            remedy = 'leave it out; weights come from a file by --weights, or by weights = "pretrained" (--pretrained)'
            raise ArgumentError(f"model.arguments.{name}", "no argument that loads weights", "one", remedy)


def said(error: BaseException) -> str:
    """Class and first line of an error."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def from_steps(steps: Sequence[object]) -> Transform | None:
    """Our transform for torchvision's steps Resize, CenterCrop, ToTensor, Normalize; None for any others."""
    found: dict[str, Any] = {}
    for step in steps:
        kind = type(step).__name__
        if kind == "Resize" and "resize" not in found and "crop" not in found:
            found |= _resize(step)
        elif kind == "CenterCrop" and "crop" not in found:
            found["crop"] = _one(getattr(step, "size", None))
        elif kind == "Normalize":
            mean, deviation = (_numbers(getattr(step, name, ())) for name in ("mean", "std"))
            found |= {"mean": mean, "standard_deviation": deviation}
        elif kind not in ("ToTensor", "MaybeToTensor"):
            return None
    return checked(found)


def checked(fields: Mapping[str, Any]) -> Transform | None:
    """A transform of these fields, or None where one of them is missing its value or means nothing to us."""
    if any(value is None for name, value in fields.items()) or "mean" not in fields:
        return None
    if fields.get("interpolation", "bilinear") not in INTERPOLATIONS:
        return None
    try:
        return Transform(**fields)
    except ArgumentError:
        return None


def _resize(step: object) -> dict[str, Any]:
    size, limit = getattr(step, "size", None), getattr(step, "max_size", None)
    interpolation = getattr(getattr(step, "interpolation", None), "value", None)
    is_squash = isinstance(size, list | tuple) and len(size) == 2
    fields = {"resize": None if limit is not None else _one(size), "interpolation": interpolation}
    return {**fields, "squash": True} if is_squash else fields


def _one(size: object) -> int | None:
    """The side of a square, or of the shorter side."""
    if isinstance(size, int):
        return size
    sides = set(size) if isinstance(size, list | tuple) else set()
    return sides.pop() if len(sides) == 1 else None


def _numbers(values: Any) -> tuple[float, ...]:
    # timm keeps them as float32; the shortest decimals that give these back are what its configuration says.
    return tuple(float(str(np.float32(value))) for value in values)
