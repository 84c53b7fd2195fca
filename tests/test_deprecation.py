"""What goes away warns at the line that uses it, once, and says what to use."""

from __future__ import annotations

import warnings

import pytest

from clcalib.deprecation import deprecated, renamed_argument, version_of, warn_deprecated
from clcalib.errors import ArgumentError, ClcalibWarning, DeprecatedWarning


@deprecated(since="0.2", removed_in="0.4", instead="new_sum")
def old_sum(first: int, second: int = 1) -> int:
    """Add."""
    return first + second


@renamed_argument("width", "bits", since="0.2", removed_in="0.4")
def quantize(values: int, bits: int = 8) -> tuple[int, int]:
    """Both."""
    return values, bits


def test_a_deprecated_function_works_and_warns_at_its_caller() -> None:
    with pytest.warns(DeprecatedWarning) as told:
        assert old_sum(2, second=3) == 5
    (warning,) = told
    assert warning.filename == __file__
    assert str(warning.message) == "old_sum() is deprecated since clcalib 0.2 and will be removed in 0.4; use new_sum"
    assert old_sum.__name__ == "old_sum"
    assert old_sum.__doc__ == "Add."
    assert old_sum.__deprecated__ == "new_sum"


def test_it_is_both_a_warning_of_ours_and_the_builtin() -> None:
    assert issubclass(DeprecatedWarning, ClcalibWarning)
    assert issubclass(DeprecatedWarning, DeprecationWarning)


def test_each_line_that_uses_it_is_told_once() -> None:
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("default")
        for _ in range(3):
            old_sum(1)
        for _ in range(3):
            old_sum(2)
    lines = [warning.lineno for warning in told]
    assert len(lines) == 2
    assert lines[1] - lines[0] == 2


def test_the_old_name_of_an_argument_is_taken_for_the_new_one() -> None:
    with pytest.warns(DeprecatedWarning, match="the argument width of quantize.. is deprecated .* use bits") as told:
        assert quantize(1, width=4) == (1, 4)
    assert told[0].filename == __file__
    assert quantize(1, bits=3) == (1, 3)


@pytest.mark.parametrize("call", [lambda: quantize(1, 4, width=4), lambda: quantize(1, bits=4, width=4)])
def test_both_names_are_refused(call) -> None:
    with pytest.raises(ArgumentError, match="width: expected bits alone, got both"):
        call()


def test_a_rename_must_fit_the_function() -> None:
    with pytest.raises(ArgumentError, match="an argument depth and none named bits"):
        renamed_argument("bits", "depth", since="0.2", removed_in="0.3")(quantize)


@pytest.mark.parametrize("removed_in", ["0.2", "0.1.9", "soon"])
def test_a_promise_lies_in_the_future(removed_in: str) -> None:
    with pytest.raises(ArgumentError):
        deprecated(since="0.2", removed_in=removed_in, instead="new")
    with pytest.raises(ArgumentError):
        renamed_argument("old", "new", since="0.2", removed_in=removed_in)
    with pytest.raises(ArgumentError):
        warn_deprecated("old", since="0.2", removed_in=removed_in, instead="new")


def test_versions_compare_as_numbers() -> None:
    assert version_of("0.10") > version_of("0.9.7") > version_of("0.9")
