"""Elements of SVG as escaped text, and what a chart needs to be read aloud."""

from __future__ import annotations

import unicodedata

from markupsafe import Markup, escape

Content = str | Markup
_HIDDEN = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}  # controls, marks of direction and the like
_STANDS_FOR_HIDDEN = "\N{REPLACEMENT CHARACTER}"


def element(name: str, *children: Content, **attributes: object) -> Markup:
    """An element; a trailing underscore of an attribute's name is dropped, others become hyphens.

    Numbers get two decimals; an attribute that is None is left out.

    Example:
        >>> print(element("text", "a < b", x=1.005, class_="tick", text_anchor="end", id=None))
        <text x="1" class="tick" text-anchor="end">a &lt; b</text>
    """
    told = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(_shown(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    inside = "".join(escape(child) for child in children)
    return Markup(f"<{name}{told}>{inside}</{name}>" if inside else f"<{name}{told}/>")


def joined(*parts: Content) -> Markup:
    """Several pieces as one."""
    return Markup("".join(escape(part) for part in parts))


def group(*children: Content, **attributes: object) -> Markup:
    """A group of elements."""
    return element("g", *children, **attributes)


def text(x: float, y: float, content: str, class_: str = "tick", anchor: str = "start") -> Markup:
    """A line of text."""
    return element("text", content, x=x, y=y, class_=class_, text_anchor=None if anchor == "start" else anchor)


def line(x1: float, y1: float, x2: float, y2: float, class_: str) -> Markup:
    """A straight line."""
    return element("line", x1=x1, y1=y1, x2=x2, y2=y2, class_=class_)


def titled(title: str) -> Markup:
    """What a mark is called when it is pointed at."""
    return element("title", title)


def figure(width: float, height: float, *children: Content, title: str, description: str, class_: str) -> Markup:
    """The whole picture: its title and description are what a screen reader says."""
    head = element("title", title), element("desc", description)
    return element(
        "svg", *head, *children, viewBox=f"0 0 {_shown(width)} {_shown(height)}", width=width, height=height,
        class_=class_, role="img", aria_label=f"{title}. {description}",
    )  # fmt: skip


def short_name(name: str, most: int) -> str:
    """A name that fits: shortened in its middle, with nothing in it that could turn other text around.

    Example:
        >>> short_name("features.12.conv.depthwise", 15)
        'feature…pthwise'
    """
    plain = "".join(_STANDS_FOR_HIDDEN if unicodedata.category(letter) in _HIDDEN else letter for letter in name)
    if len(plain) <= most:
        return plain
    half = (most - 1) // 2
    return f"{plain[: most - 1 - half]}…{plain[len(plain) - half :]}"


def _shown(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.2f}".rstrip("0").rstrip(".") or "0"
    return str(value)
