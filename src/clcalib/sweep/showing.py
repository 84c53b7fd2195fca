"""A leaderboard as plain tables, and these as CSV, Markdown and HTML; names in HTML are escaped by the template."""

from __future__ import annotations

import csv
import dataclasses
import io
from collections.abc import Iterable, Sequence

from jinja2 import Environment

from clcalib.report.formats import duration
from clcalib.sweep.leaderboard import Gain, Leaderboard, Standing

_CSV = (
    *("network", "widths", "recipe", "contrastive", "measure", "score", "deviation", "seeds", "is_best", "nearest"),
    *("floating", "gain", "gain_low", "gain_high", "pairs", "seconds", "code"),
)
_NOTE = (
    "Scores are means over the seeds in percent, with their standard deviation, and the best stands first. A gain is "
    "that of the contrastive term in points: the mean difference of runs that are the same in all else, to the seed, "
    "with Student's 95 % interval. The time is that of one run."
)
_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}</title>
<style>
:root { color-scheme: light dark; }
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 90rem; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin: 2rem 0 0; }
.note { max-width: 45rem; opacity: .75; }
.places { display: flex; flex-wrap: wrap; gap: 0 3rem; align-items: flex-start; }
.places section { max-width: 100%; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
caption { text-align: left; padding: 1rem 0 .3rem; font-weight: 600; }
caption small { font-weight: 400; opacity: .75; margin-left: .6rem; }
th, td { padding: .25rem .7rem; text-align: left; border-bottom: 1px solid #8884; white-space: nowrap; }
th { border-bottom: 2px solid #8888; }
.number { text-align: right; }
.best td { font-weight: 600; background: #4a84; }
@media (max-width: 600px) {
  body { font-size: 12px; margin: 1rem auto; padding: 0 .7rem; }
  th, td { padding: .25rem .2rem; white-space: normal; }
  .places .number { white-space: nowrap; }
}
</style>
</head>
<body>
<h1>{{ title }}</h1>
<p>{{ state }}</p>
<p class="note">{{ note }}</p>
{% macro shown(table) %}
<section class="wide"><table>
<caption>{{ table.title }}{% if table.told %}<small>{{ table.told }}</small>{% endif %}</caption>
<tr>
{%- for name, is_number in table.columns -%}
<th{% if is_number %} class="number"{% endif %}>{{ name }}</th>
{%- endfor %}</tr>
{% for row in table.rows %}
<tr{% if loop.index0 in table.marked %} class="best"{% endif %}>
{%- for cell in row -%}
<td{% if table.columns[loop.index0][1] %} class="number"{% endif %}>{{ cell }}</td>
{%- endfor %}</tr>
{% endfor %}
</table></section>
{% endmacro %}
<div class="places">
{% for table in places %}{{ shown(table) }}{% endfor %}
</div>
{% for table in others %}{{ shown(table) }}{% endfor %}
</body>
</html>
"""


@dataclasses.dataclass(frozen=True)
class PlainTable:
    """Texts in rows.

    Attributes:
        title: of the table.
        columns: their names, and whether they hold numbers.
        rows: as many texts as there are columns.
        marked: the numbers of the rows that stand out.
        told: what holds for all rows, beside the title.
    """

    title: str
    columns: tuple[tuple[str, bool], ...]
    rows: tuple[tuple[str, ...], ...]
    marked: frozenset[int] = frozenset()
    told: str = ""


def tables_of(board: Leaderboard) -> list[PlainTable]:
    """The tables of a leaderboard: the standings, and the gains where there are any."""
    found = [_standings(board)]
    if board.gains:
        found.append(_gains("Gain of the contrastive term, in points", board.gains))
    if len(board.overall) and len(board.gains) > len(board.overall):
        found.append(_gains("The same over all networks and widths", board.overall))
    return found


def narrow_tables_of(board: Leaderboard) -> list[PlainTable]:
    """The same for a terminal: the standings of each network at each pair of widths in a table of their own."""
    return [*_places(board), *tables_of(board)[1:]]


def state_of(board: Leaderboard) -> str:
    """One line: how many runs are done, and how many are not."""
    more = [f"{count} {state}" for state, count in board.counts.items() if state != "done" and count]
    done = f"{board.counts['done']} run{'s' if board.counts['done'] != 1 else ''} done"
    return ", ".join([done, *more])


def as_csv(board: Leaderboard) -> str:
    """One line for each method on each network at each pair of widths, numbers with six decimals."""
    out = io.StringIO()
    writer = csv.DictWriter(out, _CSV, lineterminator="\n")
    writer.writeheader()
    for row in board.standings:
        own = {name: getattr(row, name) for name in _CSV if hasattr(row, name) and name != "gain"}
        if row.gain is not None:
            gain = row.gain
            own |= {"gain": gain.mean, "gain_low": gain.low, "gain_high": gain.high, "pairs": gain.pairs}
        writer.writerow({name: _plain(value) for name, value in own.items()})
    return out.getvalue()


def as_markdown(board: Leaderboard) -> str:
    """The tables as Markdown; the best in bold."""
    parts = []
    for table in tables_of(board):
        lines = [_line(name for name, _ in table.columns)]
        lines.append(_line("---:" if is_number else "---" for _, is_number in table.columns))
        for number, row in enumerate(table.rows):
            cells = [_escaped(cell) for cell in row]
            lines.append(_line(f"**{cell}**" if cell and number in table.marked else cell for cell in cells))
        parts.append(f"## {table.title}\n\n" + "\n".join(lines) + "\n")
    return "\n".join([f"{state_of(board)}\n", *parts])


def as_html(board: Leaderboard, title: str) -> str:
    """One page that needs nothing else."""
    template = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(_PAGE)
    tables = {"places": _places(board), "others": tables_of(board)[1:]}
    return template.render(title=title, state=state_of(board), note=_NOTE, **tables)


_IN_TITLE = {"network", "widths", "nearest", "float"}  # of a table for a terminal


def _columns(board: Leaderboard) -> list[tuple[str, bool]]:
    columns = [("network", False), ("widths", False), ("recipe", False), ("contrastive", False)]
    columns += [("code", False)] if board.has_codes else []
    measure = " / ".join(sorted({row.measure for row in board.standings})) or "top-1"
    columns += [(measure, True), ("±", True), ("seeds", True), ("gain", True), ("nearest", True), ("float", True)]
    return [*columns, ("time", True)]


def _standings(board: Leaderboard) -> PlainTable:
    rows = tuple(_row(row, has_code=board.has_codes) for row in board.standings)
    marked = frozenset(number for number, row in enumerate(board.standings) if row.is_best)
    return PlainTable("By network and widths, the best first", tuple(_columns(board)), rows, marked)


def _places(board: Leaderboard) -> list[PlainTable]:
    places = dict.fromkeys((row.network, row.widths) for row in board.standings)
    return [_place(board, *place) for place in places] or [_standings(board)]


def _place(board: Leaderboard, network: str, widths: str) -> PlainTable:
    rows = [row for row in board.standings if (row.network, row.widths) == (network, widths)]
    measure = rows[0].measure
    known = (("nearest rounding", rows[0].nearest), ("float", rows[0].floating))
    told = ", ".join(f"{name} {value:.2f}" for name, value in known if value is not None)
    columns = [("recipe", False), ("term", False), *([("code", False)] if board.has_codes else [])]
    columns += [(name, True) for name in (measure, "±", "seeds", "gain", "time")]
    kept = [number for number, (name, _) in enumerate(_columns(board)) if name not in _IN_TITLE]
    texts = tuple(tuple(_row(row, has_code=board.has_codes)[number] for number in kept) for row in rows)
    marked = frozenset(number for number, row in enumerate(rows) if row.is_best)
    return PlainTable(f"{network} {widths}", tuple(columns), texts, marked, told)


def _row(row: Standing, *, has_code: bool) -> tuple[str, ...]:
    code = [row.code] if has_code else []
    gain = "" if row.gain is None else _signed(row.gain.mean)
    numbers = [f"{row.score:.2f}", _number(row.deviation), str(row.seeds), gain, _number(row.nearest)]
    names = [row.network, row.widths, row.recipe, row.contrastive]
    return (*names, *code, *numbers, _number(row.floating), duration(row.seconds))


def _gains(title: str, gains: Sequence[Gain]) -> PlainTable:
    has_place = any(gain.network is not None for gain in gains)
    place = (("network", False), ("widths", False)) if has_place else ()
    columns = (
        *place,
        ("recipe", False),
        ("term", False),
        ("gain", True),
        ("95 % interval", True),
        ("pairs", True),
    )
    rows = []
    for gain in gains:
        interval = "" if gain.low is None or gain.high is None else f"{_signed(gain.low)} .. {_signed(gain.high)}"
        where = (gain.network or "", gain.widths or "") if has_place else ()
        rows.append((*where, gain.recipe, gain.term, _signed(gain.mean), interval, str(gain.pairs)))
    return PlainTable(title, columns, tuple(rows))


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _signed(value: float) -> str:
    return f"{round(value, 2) + 0.0:+.2f}"  # what rounds to nothing is no loss


def _line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _escaped(cell: str) -> str:
    text = cell.replace("\\", "\\\\").replace("|", "\\|").replace("\n", " ")
    return text.replace("<", "&lt;").replace("*", "\\*").replace("`", "\\`")


def _plain(value: object) -> object:
    """A number without the noise of its last digits; a text that no spreadsheet takes for a formula."""
    if isinstance(value, float):
        return round(value, 6)
    is_formula = isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r")
    return f"'{value}" if is_formula else value
