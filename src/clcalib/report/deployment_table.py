"""What was written for a target and how it was checked, for the terminal."""

from __future__ import annotations

from rich.table import Table
from rich.text import Text

from clcalib.errors import first_of
from clcalib.report.deployment import DeploymentRecord
from clcalib.report.formats import MISSING, new_table, percent, short


def deployment_table(record: DeploymentRecord) -> Table:
    """The file, its kernels, and how the runtime's results differ from those that were calibrated."""
    table = new_table(f"For {record.target}: {record.file}, {short(record.file_bytes)}B")
    table.add_column("", style="bold", no_wrap=True)
    table.add_column("", overflow="fold")
    if record.runtime is None:
        table.add_row("runtime", Text("the file was not run here"))
        return table
    table.add_row("runtime", record.runtime)
    table.add_row("layers with weights", _of(record.integer_layers, record.float_layers))
    table.add_row("all operations", _of(record.integer_operations, record.float_operations))
    for reason, names in _by_reason(record).items():
        table.add_row("  in float", Text(f"{first_of(names)}: {reason}"))
    if record.images:
        _add_comparison(table, record)
    return table


def _add_comparison(table: Table, record: DeploymentRecord) -> None:
    on = f"on {record.images:,} images"
    if record.top1_runtime is not None:
        table.add_row("top-1", f"{percent(record.top1_runtime)} %, simulated {percent(record.top1_simulated)} %, {on}")
    if record.agreement is not None:
        table.add_row("same class", f"{percent(record.agreement)} % {on}")
    difference = record.max_code_difference
    if difference is None or not record.tensors:
        return
    share = max(row.own_share for row in record.tensors)
    said = "none" if difference == 0 else f"at most {difference}, in {100 * share:.2g} % of a tensor's codes"
    table.add_row("code differences", f"{said}; first at {record.parting or MISSING}" if difference else said)


def _of(integer: int | None, floating: int | None) -> str:
    if integer is None or floating is None:
        return MISSING
    return f"{integer} of {integer + floating} in integers"


def _by_reason(record: DeploymentRecord) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for row in record.in_float:
        found.setdefault(row.reason, []).append(row.name)
    return found
