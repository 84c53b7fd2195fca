"""How numbers are written for people, and what all tables of the terminal look like."""

from __future__ import annotations

from rich.table import Table

MISSING = "-"
_PERCENT = 100.0


def percent(fraction: float | None) -> str:
    """A fraction as a percentage with two decimals, or a dash."""
    return MISSING if fraction is None else f"{_PERCENT * fraction:.2f}"


def duration(seconds: float) -> str:
    """Seconds as a person writes them: ``4.2 s``, ``3 min 05 s``, ``2 h 07 min``.

    Example:
        >>> duration(185.4)
        '3 min 05 s'
    """
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes == 0:
        return f"{rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def short(count: int) -> str:
    """A count with three digits and a prefix: ``640``, ``13.9k``, ``4.72M``.

    Example:
        >>> short(640), short(13_888), short(4_718_592)
        ('640', '13.9k', '4.72M')
    """
    value, prefixes = float(count), ["", "k", "M", "G", "T", "P"]
    while value >= 999.5 and len(prefixes) > 1:
        value, prefixes = value / 1000, prefixes[1:]
    return f"{value:.0f}{prefixes[0]}" if prefixes[0] == "" or value >= 99.95 else f"{value:#.3g}{prefixes[0]}"


def new_table(title: str) -> Table:
    """An empty table in the style of all."""
    return Table(
        title=title, title_justify="left", title_style="bold", header_style="bold", show_edge=False, pad_edge=False
    )
