"""``clcalib doctor``: what is installed here, what can be used, what is missing and how to get it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from clcalib.cli import findings
from clcalib.cli.findings import Check, Package
from clcalib.cli.messages import new_console
from clcalib.cli.results import show_json
from clcalib.quant.targets import TARGETS
from clcalib.report.formats import new_table, short

_OVERFLOW = "products are added in 16 bits: for this processor take the targets that end in -avx2"


def look(*, is_json: bool) -> bool:
    """Look at this machine and tell what there is; whether the base works."""
    with new_console(is_stderr=True).status("looking at this machine ..."):
        found = _look()
    if is_json:
        show_json(found)
    else:
        _show(found, new_console())
    return bool(found["base"].is_well)


def _look() -> dict[str, Any]:
    # The kernels first: what they say is said once a process.
    kernels = findings.kernels_check()
    packages = findings.package_findings()
    return {
        "versions": findings.known_versions(),
        "processor": findings.processor(),
        "gpus": findings.accelerators(),
        "compiler": findings.compiler(),
        "kernels": kernels,
        "base": findings.base_check(),
        "packages": packages,
        "targets_lacking": findings.target_findings(packages),
        "room": findings.room(),
        "folders": findings.folders(),
    }


def _show(found: dict[str, Any], console: Console) -> None:
    known, processor, room = found["versions"], found["processor"], found["room"]
    features = ", ".join(processor["features"]) or "none of those that matter"
    cores = f"{processor['usable_cores']} of {processor['cores']} cores usable, threads used: {processor['threads']}"
    free = [
        f"{short(room[key])}B {what}"
        for key, what in (("disk_free", "free on this disk"), ("memory_available", "of memory available"))
        if room[key] is not None
    ]
    versions = ", ".join(f"{name} {known[name]}" for name in ("clcalib", "python", "torch", "numpy"))
    rows: list[tuple[str, str | Text]] = [
        ("versions", versions),
        ("platform", known["platform"]),
        ("processor", f"{processor['name']}; {cores}"),
        ("features", f"{features}; torch computes with {processor['torch_kernels']}"),
        *([("integers", _OVERFLOW)] if processor["adds_in_16_bits"] else []),
        ("GPU", "; ".join(found["gpus"]) or "none that torch can use"),
        ("compiler", found["compiler"] or "none: install g++ or clang++, for calibration several times as fast"),
        ("kernels", _mark(found["kernels"])),
        ("base", _mark(found["base"])),
        ("room", ", ".join(free) or "unknown"),
    ]
    console.print(_facts(rows))
    console.print()
    console.print(_package_table(found["packages"]))
    console.print()
    console.print(_target_table(found["targets_lacking"]))
    console.print()
    console.print(Text("Folders that are kept between runs", style="bold"))
    for name, folder in found["folders"].items():
        console.print(Text(f"{name}: {folder}"), soft_wrap=True)


def _facts(rows: Iterable[tuple[str, str | Text]]) -> Table:
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="bold", no_wrap=True)
    grid.add_column()
    for name, text in rows:
        grid.add_row(name, text if isinstance(text, Text) else Text(text))
    return grid


def _mark(check: Check) -> Text:
    return Text.assemble(("ok  ", "green") if check.is_well else ("no  ", "bold red"), check.text)


def _package_table(packages: Iterable[Package]) -> Table:
    table = new_table("Optional packages")
    table.add_column("package", style="bold", no_wrap=True)
    table.add_column("version")
    table.add_column("for, or how to get it")
    for package in packages:
        if package.version is None:
            row = Text("missing", style="yellow"), Text(f"{package.use}: {package.install}")
        elif package.error:
            again = package.install.replace("install ", "install --force-reinstall ", 1)
            row = Text("broken", style="bold red"), Text(f"{package.version}: {package.error}; try {again}")
        else:
            row = Text(package.version), Text(package.use)
        table.add_row(package.name, *row)
    return table


def _target_table(lacking: dict[str, str]) -> Table:
    table = new_table("Targets")
    table.add_column("target", style="bold", no_wrap=True)
    table.add_column("here")
    for name, missing in lacking.items():
        how = "written" if TARGETS[name].runtime is None else "written and tried"
        table.add_row(name, Text(how, style="green") if not missing else Text(f"lacks {missing}", style="yellow"))
    return table
