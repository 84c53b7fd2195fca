"""Networks by name, ``torchvision:resnet18`` and ``timm:deit_tiny_patch16_224``: the network, its weights, its images.

A name says where a network comes from and which it is; the package that it belongs to is imported when one is asked
for.  Nothing is downloaded but weights, and these only where ``weights`` is ``"pretrained"``.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from clcalib.errors import ArgumentError
from clcalib.named_models.library import ENTRY, PRETRAINED, Library, OwnTransform
from clcalib.named_models.timm_library import Timm
from clcalib.named_models.torchvision_library import Torchvision

LIBRARIES: dict[str, Library] = {"torchvision": Torchvision(), "timm": Timm()}
_NEAREST = 3

__all__ = ["LIBRARIES", "PRETRAINED", "OwnTransform", "build", "is_named", "is_pretrained", "own_transform", "problem"]


def is_named(entry: object) -> bool:
    """Whether an entry is the name of a network in a library, such as ``timm:resnet18``."""
    return isinstance(entry, str) and entry.partition(":")[0] in LIBRARIES and ":" in entry


def is_pretrained(weights: object) -> bool:
    """Whether the weights are asked for that the library's makers publish."""
    return str(weights) == PRETRAINED


def problem(entry: str) -> ArgumentError | None:
    """What is wrong with the name, or None.

    Raises:
        MissingPackageError: the library is not installed.
    """
    place, _, name = entry.partition(":")
    library = LIBRARIES[place]
    if library.knows(name):
        return None
    known = library.names()
    near = nearest(name, library)
    told = f"the nearest are {', '.join(near)}; " if near else ""
    remedy = f"{told}for a function of yours write package.module:function"
    return ArgumentError(ENTRY, f"one of the {len(known)} networks of {place}", repr(name), remedy)


def nearest(name: str, library: Library) -> list[str]:
    """Names that may be meant: of weights, that begin in the same way, or that look alike."""
    short, _, tag = name.partition(".")
    if tag and library.knows(short):
        names = library.published(short)
        return [f"{short}.{each}" for each in difflib.get_close_matches(tag, names, _NEAREST, 0.0)]
    known = library.names()
    longer = [each for each in known if each.startswith(name)][:_NEAREST] if name else []
    return longer or difflib.get_close_matches(name, known, _NEAREST, 0.4)


def build(entry: str, arguments: Mapping[str, Any], *, is_pretrained: bool) -> nn.Module:
    """Build a network of a library, with random weights or with those that its makers publish.

    Args:
        entry: the name.
        arguments: of the function that builds it.
        is_pretrained: whether the published weights are loaded, and downloaded where they are not here yet.

    Raises:
        MissingPackageError: the library is not installed.
        ArgumentError: the name or an argument is wrong, or the weights cannot be brought here.
        UnusableFileError: the file of the weights is damaged.
    """
    wrong = problem(entry)
    if wrong is not None:
        raise wrong
    place, _, name = entry.partition(":")
    return LIBRARIES[place].build(name, arguments, is_pretrained=is_pretrained)


def own_transform(entry: str, arguments: Mapping[str, Any], weights: Path | str | None) -> OwnTransform:
    """What images a network takes by its own configuration.

    Args:
        entry: a name that ``problem`` finds nothing wrong with.
        arguments: of the function that builds it; some change the size of its images.
        weights: a file that may be one of those that the library publishes, "pretrained", or None.
    """
    place, _, name = entry.partition(":")
    file = None if weights is None or is_pretrained(weights) else Path(weights).name
    return LIBRARIES[place].transform(name, arguments, file)
