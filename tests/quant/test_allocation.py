"""The integer programme finds what trying all choices finds."""

from __future__ import annotations

import itertools
import random

import pytest

from clcalib.errors import ArgumentError, MissingPackageError, NumericalError
from clcalib.quant import allocation
from clcalib.quant.allocation import Link, Option, allocate, least_uses


def best_of_all(groups, budgets, links):
    """The least sum over every choice that keeps the budgets and the links; None where there is none."""
    sums = []
    for choice in itertools.product(*(range(len(options)) for options in groups)):
        options = [groups[group][option] for group, option in enumerate(choice)]
        is_within = all(sum(o.uses[k] for o in options) <= budget for k, budget in enumerate(budgets))
        is_linked = all(
            link.labels[0][choice[link.groups[0]]] == link.labels[1][choice[link.groups[1]]] for link in links
        )
        if is_within and is_linked:
            sums.append(sum(o.sensitivity for o in options))
    return min(sums, default=None)


def random_problem(seed):
    """Sensitivities over six orders of magnitude, two resources, and at times a link."""
    draw = random.Random(seed)
    groups = [
        [
            Option(draw.random() * 10.0 ** draw.randint(-6, 0), (draw.randint(1, 10**6), draw.randint(1, 10**10)))
            for _ in range(draw.randint(1, 6))
        ]
        for _ in range(draw.randint(2, 4))
    ]
    budgets = [sum(draw.choice(options).uses[k] for options in groups) for k in range(2)]
    pair = tuple(draw.sample(range(len(groups)), 2))
    labels = tuple(tuple(draw.randint(2, 3) for _ in groups[group]) for group in pair)
    return groups, budgets, [Link(pair, labels)] if draw.random() < 0.5 else []


@pytest.mark.parametrize("seed", range(40))
def test_it_is_the_best_of_all_choices(seed):
    groups, budgets, links = random_problem(seed)
    best = best_of_all(groups, budgets, links)
    if best is None:
        with pytest.raises(ArgumentError, match="budgets: expected what some choice of options keeps"):
            allocate(groups, budgets, links)
        return
    found = allocate(groups, budgets, links)
    assert found.sensitivity == pytest.approx(best, rel=1e-9)
    assert found.sensitivity == sum(groups[g][o].sensitivity for g, o in enumerate(found.chosen))
    assert (found.is_optimal, found.gap) == (True, 0.0)
    for place, budget in enumerate(budgets):
        assert sum(groups[g][o].uses[place] for g, o in enumerate(found.chosen)) <= budget


def test_a_budget_is_kept_to_the_last_byte():
    """One over a budget of a billion is far below the solver's tolerance."""
    groups = [[Option(1.0, (10,)), Option(0.5, (10**9 - 9,))], [Option(1.0, (10,)), Option(0.75, (11,))]]
    assert allocate(groups, [10**9 + 1]).chosen == (1, 0)
    assert allocate(groups, [10**9 + 2]).chosen == (1, 1)
    assert allocate(groups, [10**9]).chosen == (0, 1)


def test_options_that_hurt_equally_are_all_right():
    assert allocate([[Option(2.0, (1,))], [Option(0.0, (1,)), Option(0.0, (2,))]], [3]).sensitivity == 2.0


def test_the_least_that_is_used():
    groups = [[Option(0.0, (3, 40)), Option(0.0, (5, 60))], [Option(0.0, (7, 80))]]
    assert least_uses(groups) == (10, 120)


def test_a_solver_without_time_is_told():
    groups, budgets, links = random_problem(0)
    with pytest.raises(NumericalError, match="ended without a choice"):
        allocate(groups * 40, [40 * budget for budget in budgets], links, time_limit=0.0)


def test_a_missing_package_is_told(monkeypatch):
    monkeypatch.setattr(allocation.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingPackageError, match=r'pip install "clcalib\[mixed\]"'):
        allocate([[Option(0.0, (1,))]], [1])
