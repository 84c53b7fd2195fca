"""Names that go away, with a date: each warns, says what to use instead, and has a version in which it is removed.

A test of the architecture (``tests/architecture/test_deprecations.py``) fails as soon as that version is reached, so
nothing deprecated outlives its promise.
"""

from __future__ import annotations

import functools
import inspect
import re
import warnings
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from clcalib.errors import ArgumentError, DeprecatedWarning

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")

_VERSION = re.compile(r"(\d+)\.(\d+)(?:\.(\d+))?")


def version_of(text: str) -> tuple[int, int, int]:
    """``"0.3"`` as numbers that compare.

    Example:
        >>> version_of("0.3") < version_of("0.10.1")
        True

    Raises:
        ArgumentError: another form.
    """
    match = _VERSION.fullmatch(text)
    if match is None:
        raise ArgumentError("version", 'numbers such as "0.3" or "0.3.1"', repr(text))
    return int(match[1]), int(match[2]), int(match[3] or 0)


def warn_deprecated(what: str, *, since: str, removed_in: str, instead: str, stacklevel: int = 1) -> None:
    """Warn that ``what`` goes away; Python shows it once for each line that uses it.

    Args:
        what: the name, as its user wrote it.
        since: the version that warns first.
        removed_in: the version that no longer has it.
        instead: what to use.
        stacklevel: 1 blames the line that calls the caller of this function, 2 the one above.

    Raises:
        ArgumentError: ``removed_in`` is not after ``since``.
    """
    _check(since, removed_in)
    message = f"{what} is deprecated since clcalib {since} and will be removed in {removed_in}; use {instead}"
    warnings.warn(message, DeprecatedWarning, stacklevel=stacklevel + 2)


def deprecated(
    *, since: str, removed_in: str, instead: str
) -> Callable[[Callable[Parameters, Result]], Callable[Parameters, Result]]:
    """A decorator: the function works as before, and warns when it is called.

    Args:
        since: the version that warns first.
        removed_in: the version that no longer has it.
        instead: what to use.

    Raises:
        ArgumentError: ``removed_in`` is not after ``since``.

    Example:
        >>> @deprecated(since="0.2", removed_in="0.4", instead="clcalib.capture")
        ... def units(model): ...
        >>> units.__deprecated__
        'clcalib.capture'
    """
    _check(since, removed_in)

    def decorate(function: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
        @functools.wraps(function)
        def warning(*arguments: Parameters.args, **named: Parameters.kwargs) -> Result:
            warn_deprecated(f"{function.__qualname__}()", since=since, removed_in=removed_in, instead=instead)
            return function(*arguments, **named)

        warning.__deprecated__ = instead  # type: ignore[attr-defined] # the name that PEP 702 reads
        return warning

    return decorate


def renamed_argument(
    old: str, new: str, *, since: str, removed_in: str
) -> Callable[[Callable[..., Result]], Callable[..., Result]]:
    """A decorator: the keyword ``old`` is taken for ``new``, with a warning.

    Args:
        old: the name that goes away.
        new: an argument of the function.
        since: the version that warns first.
        removed_in: the version that no longer takes ``old``.

    Raises:
        ArgumentError: ``removed_in`` is not after ``since``, or the function has no argument ``new``, or still has
            ``old``; when it is called, that both were given.
    """
    _check(since, removed_in)

    def decorate(function: Callable[..., Result]) -> Callable[..., Result]:
        names = inspect.signature(function).parameters
        if new not in names or old in names:
            expected = f"an argument {new} and none named {old}"
            raise ArgumentError(function.__qualname__, expected, f"({', '.join(names)})")

        @functools.wraps(function)
        def renaming(*arguments: object, **named: object) -> Result:
            if old in named:
                if new in inspect.signature(function).bind_partial(*arguments).arguments or new in named:
                    raise ArgumentError(old, f"{new} alone", "both", f"leave out {old}, the old name of {new}")
                what = f"the argument {old} of {function.__qualname__}()"
                warn_deprecated(what, since=since, removed_in=removed_in, instead=new)
                named[new] = named.pop(old)
            return function(*arguments, **named)

        return renaming

    return decorate


def _check(since: str, removed_in: str) -> None:
    if version_of(removed_in) <= version_of(since):
        raise ArgumentError("removed_in", f"a version after {since}", removed_in, "give users a version to change in")
