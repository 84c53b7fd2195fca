"""From what a page shows to its HTML: escaped everywhere, no script, one style that the policy names by its hash."""

from __future__ import annotations

import base64
import functools
import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup, escape

import clcalib.report.page
from clcalib.errors import CheckpointError
from clcalib.files import write_atomically
from clcalib.report.formats import short
from clcalib.report.page.classes import class_view
from clcalib.report.page.features import feature_view
from clcalib.report.page.headline import headline
from clcalib.report.page.layers import layer_view, width_views
from clcalib.report.page.numbers import size_text
from clcalib.report.page.settings import loading_lines, proof_view, settings_view
from clcalib.report.page.sources import RunFolder
from clcalib.report.page.units import curve_view, unit_view
from clcalib.report.tables import bits_name, method_name

REPORT_FILE = "report.html"
# Behind slashes, plus signs and underscores, and ahead of points, where a letter or digit is on both sides.
_PARTS = re.compile(r"(?<=\w[/+])(?=\w)|(?<=[a-zA-Z0-9]_)(?=[a-zA-Z0-9])|(?<=\w)(?=\.\w)")
_TEMPLATES = Path(clcalib.report.page.__file__).parent / "templates"


def write_report(folder: str | Path, out: str | Path | None = None) -> Path:
    """Write the page about a run; return its path.

    Args:
        folder: what ``clcalib quantize``, or ``QuantizationResult.save``, left.
        out: the file; ``report.html`` in the folder by default.

    Raises:
        ArgumentError: it is no folder of a run.
        CheckpointError: a file in it is damaged; the message names it.
        NumericalError: a number in a file is not finite.
        StorageError: the page could not be written.
    """
    run = RunFolder.read(folder)
    path = run.path / REPORT_FILE if out is None else Path(out)
    write_atomically(path, encoded(report_page(run)))
    return path


def report_page(run: RunFolder) -> str:
    """The page about a run.

    Raises:
        CheckpointError: the files hold numbers that nothing can be drawn of.
    """
    subtitle = f"{bits_name(run.record)}, {method_name(run.record)}"
    try:
        return rendered(
            "report.html",
            title=f"{run.model_name}, {subtitle}",
            subtitle=subtitle,
            run=run,
            record=run.record,
            headline=headline(run),
            settings=settings_view(run),
            classes=class_view(run.evidence),
            units=unit_view(run),
            curves=curve_view(run.trace),
            layers=layer_view(run.evidence),
            features=feature_view(run.evidence),
            widths=width_views(run),
            proof=proof_view(run.record.deployment),
            loading=loading_lines(run),
            data=data_block("run-record", run.record.model_dump(mode="json")),
        )
    except (ArithmeticError, ValueError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{run.path}: its files hold numbers that no run has ({error})") from error


def rendered(template: str, **values: Any) -> str:
    """A template with its values, and the policy and style that every page has."""
    style = (_TEMPLATES / "style.css").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    # Nothing is fetched, nothing is run; pictures are in the page itself.
    policy = f"default-src 'none'; style-src 'sha256-{digest}'; img-src data:; base-uri 'none'; form-action 'none'"
    return _environment().get_template(template).render(style=Markup(style), policy=policy, **values)


def data_block(name: str, values: Mapping[str, Any]) -> Markup:
    """Values as JSON for other programs, in a block that no browser runs; nothing in it can end it."""
    text = json.dumps(values, ensure_ascii=True, separators=(",", ":"))
    for letter in "<>&":
        text = text.replace(letter, f"\\u{ord(letter):04x}")
    return Markup('<script type="application/json" id="{}">{}</script>').format(name, Markup(text))


def encoded(page: str) -> bytes:
    """The bytes of a page; what no text may hold, as half of a surrogate pair, becomes a question mark."""
    return page.encode("utf-8", errors="replace")


def named(name: object) -> Markup:
    """A name from anywhere, verbatim: no mark in it turns the text around it, no carriage return is lost.

    Where it is too long for its place, it is broken between its parts first: ``train/cat/00017`` ``.png``.
    """
    parts = [verbatim(part) for part in _PARTS.split(str(name))]
    return Markup('<bdi class="name">{}</bdi>').format(Markup("<wbr>").join(parts))


def verbatim(name: object) -> Markup:
    """A text from anywhere as it is; the reader of HTML would take a carriage return for a line feed."""
    return Markup(str(escape(str(name))).replace("\r", "&#13;"))


@functools.cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"named": named, "verbatim": verbatim, "size": size_text, "short": short}
    return environment
