"""Every error and warning of the package.  Each error is also the builtin that fits, so either ``except`` works."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

_SHOWN = 3


class ClcalibError(Exception):
    """The base of all errors that clcalib raises on purpose.

    They can be sent from one process to another, whatever their constructors take.
    """

    def __reduce__(self) -> tuple[Any, ...]:
        return _again, (type(self), self.args, vars(self))


class ArgumentError(ClcalibError, ValueError):
    """An argument has the wrong value: names it, what was expected, what came and what to do.

    Example:
        >>> str(ArgumentError("bits", "a whole number from 2 to 8", 9, "use 8 for the most precise setting"))
        'bits: expected a whole number from 2 to 8, got 9; use 8 for the most precise setting'
    """

    def __init__(self, argument: str, expected: str, got: object, remedy: str = "") -> None:
        self.argument = argument
        self._rest = expected, got, remedy
        super().__init__(f"{argument}: expected {expected}, got {got}" + (f"; {remedy}" if remedy else ""))

    def under(self, argument: str) -> ArgumentError:
        """The same about an argument by another name, such as the flag that the user gave it with."""
        return ArgumentError(argument, *self._rest)


class DataError(ArgumentError):
    """Calibration or evaluation images cannot be used."""


class CaptureError(ClcalibError, RuntimeError):
    """A module could not be turned into a chain of units; the message names the line of code."""


class NumericalError(ClcalibError, ArithmeticError):
    """A value that must be finite is not."""


class NonFiniteLossError(NumericalError):
    """The loss of a unit, or what it trains, stopped being finite; the message names the step and the tensor."""


class ConfigError(ClcalibError, ValueError):
    """A configuration has problems; all of them are told together."""

    def __init__(self, source: str, problems: Sequence[str]) -> None:
        self.problems = tuple(problems)
        super().__init__(f"{source}: " + "; ".join(problems) if len(problems) == 1 else _listed(source, problems))


class CheckpointError(ClcalibError, ValueError):
    """A saved model is damaged, or does not belong to the architecture that it is loaded into."""


class UnusableFileError(CheckpointError):
    """A file is damaged, too long, or of another kind than expected.

    Attributes:
        reason: what is wrong, without the path.
    """

    def __init__(self, path: object, reason: str) -> None:
        self.reason = reason
        super().__init__(f"{path}: {reason}")


class MissingPackageError(ClcalibError, ImportError):
    """An optional package is not installed; the message names the command that brings it."""


class OutputExistsError(ClcalibError, FileExistsError):
    """The output folder exists and overwriting was not asked for."""


class StorageError(ClcalibError, OSError):
    """A file could not be written; what was there before still is.  ``errno`` says why."""

    def __str__(self) -> str:
        return str(self.args[1]) if len(self.args) > 1 else super().__str__()


class FolderInUseError(ClcalibError, RuntimeError):
    """Another process works in the folder; the message says which."""


class ResumeError(ClcalibError, ValueError):
    """A run cannot go on where it stopped: its saved state is of other settings, or none of it can be read."""


class WorkerLostError(ClcalibError, ConnectionError):
    """Another worker of the run is gone or cannot be reached; what is finished is saved, and the run can go on.

    Attributes:
        code: the exit code of a run that ended for that, and of its workers.
    """

    code = 7


class DatabaseError(ClcalibError, RuntimeError):
    """The database of a sweep cannot be used: it is none, is of a newer version, or cannot be reached."""


class EmptyDatabaseError(DatabaseError):
    """The database of a sweep has no tables yet."""


class SweepFailedError(ClcalibError, RuntimeError):
    """Some runs of a sweep failed; the message says which and why.  The others are done."""


class Interrupted(KeyboardInterrupt):
    """A run was stopped; the message says what is saved and how to go on."""


class StoppedError(ClcalibError, RuntimeError):
    """The end of a run on its way through the command line, with the exit code that tells a signal or why it was."""

    def __init__(self, message: str, code: int) -> None:
        self.code = code
        super().__init__(message)


class UnsupportedOperatorError(ClcalibError, NotImplementedError):
    """A network holds operators that an export format or a target lacks; all of them are told together.

    Example:
        >>> print(UnsupportedOperatorError("no file", ["aten.sort in head"], ["target torch takes it"]))
        no file: aten.sort in head
        what helps:
          - target torch takes it
    """

    def __init__(self, summary: str, problems: Sequence[str], remedies: Sequence[str] = ()) -> None:
        self.summary, self.problems, self.remedies = summary, tuple(problems), tuple(remedies)
        text = f"{summary}: {problems[0]}" if len(problems) == 1 else _listed(summary, problems)
        super().__init__(text + ("\nwhat helps:" if remedies else "") + _lines(remedies))


class ClcalibWarning(UserWarning):
    """The base of all warnings of clcalib."""


class DeprecatedWarning(ClcalibWarning, DeprecationWarning):
    """Something goes away in a version that the message names, with what to use instead."""


class RuntimeMissingWarning(ClcalibWarning):
    """A file is written for a runtime that is not installed here, so it is not tried."""


class KernelDifferenceWarning(ClcalibWarning):
    """A runtime's kernel gives other codes than the simulation."""


class ProcessorWarning(ClcalibWarning):
    """This processor's integer kernels compute something else than was calibrated, and others do not."""


class EqualCostWarning(ClcalibWarning):
    """A cost budget counts fewer bit operations for narrow widths, and the target's kernels take as long for them."""


class TrackingWarning(ClcalibWarning):
    """An experiment tracker failed; the run goes on without it."""


class DamagedStateWarning(ClcalibWarning):
    """A file of a run's saved state is damaged or missing; what it held is computed again."""


class TrainModeWarning(ClcalibWarning):
    """The model came in train mode; it is captured in eval mode and given back as it was."""


class ConstantChannelWarning(ClcalibWarning):
    """A weight channel is constant (or all zero), so its range is empty."""


class DeadActivationWarning(ClcalibWarning):
    """An activation is the same everywhere on the calibration images, so its range is empty."""


class SlowPathWarning(ClcalibWarning):
    """Something that makes calibration fast is missing on this machine; the result is as good, only later."""


class OutlierWarning(ClcalibWarning):
    """A few values are so far from all others that a grid for all of them is too coarse for the others."""


class EqualAnswersWarning(ClcalibWarning):
    """The float network gives one and the same answer for all calibration images, so there is nothing to learn."""


class NonFiniteLossWarning(ClcalibWarning):
    """The loss of a unit stopped being finite; the unit was done again, or keeps the best state that it had."""


class NoBatchNormWarning(ClcalibWarning):
    """The recipe corrects inputs by the statistics of batch norm, and the network has none."""


class SmallCalibrationWarning(ClcalibWarning):
    """There are fewer calibration images than a mini-batch holds."""


class EqualCopiesWarning(ClcalibWarning):
    """Augmented copies of calibration images are equal to others, so they add nothing but time."""


class CheckpointLayoutWarning(ClcalibWarning):
    """The weights lay deeper in a checkpoint, or had other names, than a plain state dict has."""


class UnreadableImagesWarning(ClcalibWarning):
    """Some images of a folder cannot be used and are left out."""


class OtherTransformWarning(ClcalibWarning):
    """Images are made ready in another way than the network's own configuration says."""


class UntrainedNetworkWarning(ClcalibWarning):
    """The network has random weights, as none were given."""


class WorseThanNearestWarning(ClcalibWarning):
    """A unit, or the whole result, is worse than with nearest rounding."""


class WorseThanUnitsWarning(ClcalibWarning):
    """A phase over the whole network left it worse than the units had left it, and was taken back."""


class PageWarning(ClcalibWarning):
    """The page about a run could not be made; its result is saved all the same."""


class TargetNotMetWarning(ClcalibWarning):
    """No widths that were tried keep the accuracy that was asked for."""


def misfits(own: Mapping[str, Sequence[int]], saved: Mapping[str, Sequence[int]]) -> list[str]:
    """Everything in which saved tensors do not fit a model, from the shapes of both by name; [] where they fit.

    Example:
        >>> misfits({"a": (2,), "b": (3,)}, {"b": (4,), "c": (5,)})
        ['the file lacks a', 'the model has no c', 'other shapes: b is (4,), expected (3,)']
    """
    missing = [name for name in own if name not in saved]
    unexpected = [name for name in saved if name not in own]
    shapes = [
        f"{name} is {tuple(saved[name])}, expected {tuple(shape)}"
        for name, shape in own.items()
        if name in saved and tuple(saved[name]) != tuple(shape)
    ]
    named = (("the file lacks", missing), ("the model has no", unexpected), ("other shapes:", shapes))
    return [f"{label} {first_of(names)}" for label, names in named if names]


def first_of(names: Sequence[str]) -> str:
    """The first names, and how many more there are."""
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def _again(kind: type[ClcalibError], arguments: tuple[Any, ...], attributes: Mapping[str, Any]) -> ClcalibError:
    error = kind.__new__(kind, *arguments)
    vars(error).update(attributes)
    return error


def _listed(source: str, problems: Sequence[str]) -> str:
    return f"{source}: {len(problems)} problems:" + _lines(problems)


def _lines(entries: Sequence[str]) -> str:
    return "".join(f"\n  - {entry}" for entry in entries)
