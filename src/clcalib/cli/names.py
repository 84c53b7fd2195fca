"""Names and numbers that help and completion show of modules that need torch, read from their source.

Importing these modules takes seconds, and whoever presses the tabulator waits.  What is read is what stands there as a
literal: tables of names are, so that a new method has its line in one place.
"""

from __future__ import annotations

import ast
import functools
from importlib import resources


@functools.cache
def names_of(module: str, table: str) -> tuple[str, ...]:
    """The keys of a literal table at the top of a module.

    Example:
        >>> names_of("clcalib.data.augmentation", "AUGMENTATIONS")
        ('flip', 'crop', 'mixup', 'cutmix')
    """
    value = _written(module, table)
    assert isinstance(value, ast.Dict)
    return tuple(ast.literal_eval(key) for key in value.keys if key is not None)


def number_of(module: str, name: str) -> float:
    """A number that stands at the top of a module.

    Example:
        >>> number_of("clcalib.evaluate.detection", "SCORE_THRESHOLD")
        0.5
    """
    found: float = ast.literal_eval(_written(module, name))
    return found


def _written(module: str, name: str) -> ast.expr:
    """What is assigned to a name, as it is written."""
    package, *path = module.split(".")
    place = resources.files(package).joinpath(*path)
    source = place / "__init__.py"
    if not source.is_file():
        source = resources.files(package).joinpath(*path[:-1], f"{path[-1]}.py")
    for node in ast.parse(source.read_text(encoding="utf-8")).body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        value = getattr(node, "value", None)
        if isinstance(value, ast.expr) and any(isinstance(each, ast.Name) and each.id == name for each in targets):
            return value
    raise LookupError(f"{module} assigns nothing to {name}")
