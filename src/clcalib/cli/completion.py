"""What the shells complete: names of recipes, targets, networks and the like behind their options.

``clcalib --install-completion`` teaches it to bash, zsh, fish or PowerShell.
"""

from __future__ import annotations

import contextlib
import io
import shlex
import sys
from collections.abc import Iterable, Iterator, MutableMapping

from clcalib.cli.names import names_of

# Where the tables are.
ADDITIONS = ("clcalib.calibrate.recipes", "ADDITIONS")
AUGMENTATIONS = ("clcalib.data.augmentation", "AUGMENTATIONS")
LIBRARIES = ("clcalib.named_models", "LIBRARIES")
PRECISIONS = ("clcalib.calibrate.precision", "PRECISIONS")
RECIPES = ("clcalib.calibrate.recipes", "RECIPES")
RUNTIMES = ("clcalib.export.runtimes.runtime", "RUNTIMES")

# What typer asks with; bash passes the words of the line, which it has cut at each colon.
_ASKED, _WORDS, _PLACE, _BASH = "_CLCALIB_COMPLETE", "COMP_WORDS", "COMP_CWORD", "complete_bash"


def recipes(incomplete: str) -> list[str]:
    """Names of recipes."""
    return _beginning(names_of(*RECIPES), incomplete)


def recipes_and_additions(incomplete: str) -> list[str]:
    """The same, and what can be laid over one."""
    return _beginning((*names_of(*RECIPES), *names_of(*ADDITIONS)), incomplete)


def targets(incomplete: str) -> list[str]:
    """Names of targets."""
    from clcalib.cli.actions.completing import target_names

    return _beginning(target_names(), incomplete)


def runtimes(incomplete: str) -> list[str]:
    """Names of the runtimes of ONNX files."""
    return _beginning(names_of(*RUNTIMES), incomplete)


def precisions(incomplete: str) -> list[str]:
    """Names of number types."""
    return _beginning(names_of(*PRECISIONS), incomplete)


def devices(incomplete: str) -> list[str]:
    """Names of devices."""
    return _beginning(("cpu", "cuda", "mps"), incomplete)


def widths(incomplete: str) -> list[str]:
    """Usual widths; layers with widths of their own are written behind a pattern."""
    usual = ("W8A8", "W4A8", "W4A4", "W3A3", "W2A4", "W2A2")
    return _beginning([each.lower() for each in usual] if incomplete.startswith("w") else usual, incomplete)


def augmentations(incomplete: str) -> list[str]:
    """Names behind the last comma."""
    done, comma, last = incomplete.rpartition(",")
    return [
        f"{done}{comma}{name}" for name in _beginning(names_of(*AUGMENTATIONS), last) if name not in done.split(",")
    ]


def models(incomplete: str) -> list[str]:
    """The libraries, and behind the colon of one its networks."""
    libraries = names_of(*LIBRARIES)
    place, colon, name = incomplete.partition(":")
    if not colon:
        fitting = _beginning(libraries, incomplete)
        if len(fitting) != 1:
            return [f"{library}:" for library in fitting]
        place = fitting[0]  # its networks, as behind a single completion shells put a blank
    if place not in libraries:
        return []
    from clcalib.cli.actions.completing import network_names

    return [f"{place}:{each}" for each in _beginning(network_names(place), name)]


@contextlib.contextmanager
def with_whole_words(environment: MutableMapping[str, str]) -> Iterator[None]:
    """Where bash asks for completions, put together what it has cut at colons, so that ``timm:res`` is one word.

    It cuts the word before the cursor too, and wants back only what follows its last colon.

    Args:
        environment: that of the process; changed where bash asks.
    """
    cut = _join(environment) if environment.get(_ASKED) == _BASH else 0
    if not cut:
        yield
        return
    answer = io.StringIO()
    try:
        with contextlib.redirect_stdout(answer):
            yield
    finally:
        sys.stdout.writelines(f"{line[cut:]}\n" for line in answer.getvalue().splitlines())


def _join(environment: MutableMapping[str, str]) -> int:
    """Join the words in the environment; return how much of the one before the cursor bash has by itself."""
    try:
        words, place = shlex.split(environment[_WORDS]), int(environment[_PLACE])
    except (KeyError, ValueError):  # an open quotation mark
        return 0
    joined: list[str] = []
    is_at_cursor, is_open = False, False
    for number, word in enumerate(words):
        if joined and (word == ":" or is_open):
            joined[-1] += word
        else:
            joined.append(word)
        is_open = word == ":"
        if number == place:
            is_at_cursor = True
            break
    place = len(joined) - 1 if is_at_cursor else len(joined)  # behind a blank a new word begins
    environment[_WORDS], environment[_PLACE] = shlex.join(joined), str(place)
    return joined[-1].rfind(":") + 1 if is_at_cursor else 0


def _beginning(names: Iterable[str], incomplete: str) -> list[str]:
    return [name for name in names if name.startswith(incomplete)]
