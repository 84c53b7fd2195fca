"""What is printed is text: a name that looks like markup is shown as it is, and nothing it holds ends a command."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from rich.table import Table
from tests.report.folders import budget, config, deployment, folder, record, target

from clcalib.cli.messages import new_console, shown_warnings
from clcalib.report import tables
from clcalib.report.comparing import compare_runs
from clcalib.report.comparison_table import comparison_table, settings_table
from clcalib.report.deployment_table import deployment_table
from clcalib.report.record import FloatRecord

NAMES = ("[/x]", "[red]a[/red]", "b[0]")
OWN = record(
    NAMES, deployment=deployment(NAMES[0], file=NAMES[1], runtime=NAMES[2]), budget=budget(NAMES), target=target(NAMES)
)
PARTS = tuple(FloatRecord(name=name, operator=name, parameters=1, reason=name) for name in NAMES)


def compared(place: Path) -> tuple[Table, Table]:
    runs = [folder(place / name, record=record(recipe=name), config=config(entry=name)) for name in ("[a]", "b[0]")]
    comparison = compare_runs(runs)
    return comparison_table(comparison), settings_table(comparison)


@pytest.mark.parametrize(
    ("make", "names"),
    [
        (lambda place: deployment_table(OWN.deployment), NAMES),
        (lambda place: tables.unit_table(OWN), NAMES),
        (lambda place: tables.float_table(PARTS), NAMES),
        (lambda place: tables.budget_table(OWN.budget), NAMES[:2]),
        (lambda place: tables.summary_table([record(recipe=NAMES[0])]), NAMES[:1]),
        (lambda place: compared(place)[0], ("[a]", "b[0]")),
        (lambda place: compared(place)[1], ("[a]", "b[0]")),
    ],
)
def test_names_are_no_markup(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
    make: Callable[[Path], Table], names: tuple[str, ...],
) -> None:  # fmt: skip
    monkeypatch.setenv("COLUMNS", "200")
    new_console().print(make(tmp_path))
    printed = capsys.readouterr().out
    assert [name for name in names if name not in printed] == []


def test_everything_is_printed_in_that_way() -> None:
    folder_of_commands = Path(__file__).parents[2] / "src" / "clcalib" / "cli"
    found = [path.name for path in folder_of_commands.glob("*.py") if " Console(" in path.read_text()]
    assert found == ["messages.py"]


def test_a_warning_and_a_live_display_share_a_console() -> None:
    errors = new_console(is_stderr=True)
    with shown_warnings(errors):
        assert new_console(is_stderr=True) is errors
        assert new_console() is not errors
    assert new_console(is_stderr=True) is not errors
