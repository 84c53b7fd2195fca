"""Which option each group takes, so that the sum of sensitivities is least within the budgets: an integer programme.

With x_{g,o} = 1 where group g takes option o, s its sensitivity, r its use of a resource and B the budget::

    min  sum_{g,o} s_{g,o} x_{g,o}
    s.t. sum_o x_{g,o} = 1                     for each group g,
         sum_{g,o} r_{g,o} x_{g,o} <= B        for each resource,
         sum_{o: l(o) = a} x_{g,o} = sum_{o: l(o) = a} x_{h,o}   for each link of g and h with labels l, each label a.

Source: HAWQ-V3 (Yao et al., ICML 2021), for widths by integer programming; the links are ours.
"""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Iterable, Sequence
from typing import Any, NoReturn

import numpy as np

from clcalib.errors import ArgumentError, MissingPackageError, NumericalError

TIME_LIMIT = 60.0  # seconds
_LARGEST = 1000.0  # of the numbers that the solver sees, as its tolerances are absolute


@dataclasses.dataclass(frozen=True)
class Option:
    """One option of a group.

    Attributes:
        sensitivity: what it adds to the sum that is made least; finite.
        uses: how much it takes of each budget, whole numbers.
    """

    sensitivity: float
    uses: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Link:
    """Two groups whose options must have the same label.

    Attributes:
        groups: their numbers.
        labels: of each group, the labels of its options.
    """

    groups: tuple[int, int]
    labels: tuple[tuple[int, ...], tuple[int, ...]]


Array = np.ndarray[Any, np.dtype[np.float64]]
Groups = Sequence[Sequence[Option]]


@dataclasses.dataclass(frozen=True)
class Allocation:
    """What the search found.

    Attributes:
        chosen: the number of each group's option.
        sensitivity: the sum over the groups.
        is_optimal: whether the solver proved that no sum is smaller.
        gap: (sensitivity - lower bound) / sensitivity, 0 where it is optimal.
    """

    chosen: tuple[int, ...]
    sensitivity: float
    is_optimal: bool
    gap: float


def check_solver() -> None:
    """Raise where SciPy is missing.

    Raises:
        MissingPackageError: it says how to install it.
    """
    if importlib.util.find_spec("scipy") is None:
        raise MissingPackageError('a search for widths needs SciPy; install it with: pip install "clcalib[mixed]"')


def least_uses(groups: Groups) -> tuple[int, ...]:
    """The least of each resource that any choice takes, each group looked at by itself."""
    least = [[min(column) for column in zip(*(option.uses for option in options), strict=True)] for options in groups]
    return tuple(sum(column) for column in zip(*least, strict=True))


def allocate(
    groups: Groups, budgets: Sequence[int], links: Sequence[Link] = (), *, time_limit: float = TIME_LIMIT
) -> Allocation:
    """Choose an option for each group.

    Args:
        groups: the options of each, at least one.
        budgets: the most of each resource, in the order of ``Option.uses``.
        links: what ties groups to each other.
        time_limit: seconds, after which the best choice so far is taken.

    Raises:
        ArgumentError: no choice keeps the budgets and the links.
        MissingPackageError: SciPy is missing.
        NumericalError: the solver found nothing in its time.

    Example:
        >>> small, large = Option(3.0, (10,)), Option(1.0, (20,))
        >>> allocate([[small, large], [small, Option(2.5, (20,))]], [30]).chosen
        (1, 0)
    """
    check_solver()
    from scipy.optimize import LinearConstraint, milp

    # Only differences matter to the choice; the largest becomes ``_LARGEST``.
    least = [min(option.sensitivity for option in options) for options in groups]
    surplus = np.array([option.sensitivity - least[g] for g, options in enumerate(groups) for option in options])
    unit = float(surplus.max(initial=0.0)) / _LARGEST or 1.0
    rows = [LinearConstraint(matrix, low, high) for matrix, low, high in _constraints(groups, budgets, links)]
    while True:
        found = milp(
            surplus / unit,
            integrality=np.ones(len(surplus)),
            bounds=(0, 1),
            constraints=rows,
            options={"time_limit": time_limit, "mip_rel_gap": 0.0},
        )
        if found.x is None:
            _raise_without_choice(found.status, found.message, budgets)
        chosen = _chosen(found.x, groups)
        taken = [sum(column) for column in zip(*(groups[g][o].uses for g, o in enumerate(chosen)), strict=True)]
        if all(used <= budget for used, budget in zip(taken, budgets, strict=True)):
            break
        # It is over by less than the solver's tolerance: this very choice is refused, and no other.
        refused = _row([float(chosen[g] == o) for o in range(len(options))] for g, options in enumerate(groups))
        rows.append(LinearConstraint(refused, -np.inf, len(groups) - 1))
    total = sum(groups[g][o].sensitivity for g, o in enumerate(chosen))
    bound = sum(least) + unit * float(found.mip_dual_bound or 0.0)
    is_optimal = found.status == 0
    return Allocation(chosen, total, is_optimal, 0.0 if is_optimal or total <= 0 else max(0.0, 1 - bound / total))


def _constraints(groups: Groups, budgets: Sequence[int], links: Sequence[Link]) -> list[tuple[Array, float, float]]:
    """(row, lower bound, upper bound) of each."""
    sizes = [len(options) for options in groups]
    rows = [_row([float(g == own)] * size for g, size in enumerate(sizes)) for own in range(len(groups))]
    found = [(row, 1.0, 1.0) for row in rows]
    for place, budget in enumerate(budgets):
        row = _row([option.uses[place] for option in options] for options in groups)
        scale = _LARGEST / max(float(row.max()), 1.0)
        found.append((row * scale, -np.inf, budget * scale))
    for link in links:
        for label in sorted({*link.labels[0], *link.labels[1]}):
            sides = dict(zip(link.groups, link.labels, strict=True))
            signs = dict(zip(link.groups, (1.0, -1.0), strict=True))
            row = _row(
                [signs[g] * (own == label) for own in sides[g]] if g in sides else [0.0] * size
                for g, size in enumerate(sizes)
            )
            found.append((row, 0.0, 0.0))
    return found


def _row(entries: Iterable[Iterable[float]]) -> Array:
    """A coefficient for each option of each group, one group behind the other."""
    return np.array([entry for own in entries for entry in own], dtype=np.float64)


def _chosen(values: Array, groups: Groups) -> tuple[int, ...]:
    """The option of each group with the largest value."""
    ends = np.cumsum([len(options) for options in groups])[:-1]
    return tuple(int(part.argmax()) for part in np.split(values, ends))


def _raise_without_choice(status: int, message: str, budgets: Sequence[int]) -> NoReturn:
    if status == 2:
        raise ArgumentError("budgets", "what some choice of options keeps", tuple(budgets), "raise them")
    raise NumericalError(f"the search for widths ended without a choice: {message}")
