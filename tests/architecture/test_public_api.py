"""Public names, options, keys and file formats are those that are written down; a change of them is one on purpose."""

from __future__ import annotations

import difflib

from tests.architecture.public_api import SNAPSHOT, public_api


def difference(written: str, found: str) -> str:
    lines = difflib.unified_diff(
        written.splitlines(), found.splitlines(), "as written down", "as it is", lineterm="", n=4
    )
    return "\n".join(lines)


def test_the_public_interface_is_the_one_that_is_written_down() -> None:
    changed = difference(SNAPSHOT.read_text(encoding="utf-8"), public_api())
    assert not changed, (
        f"the public interface has changed:\n{changed}\n"
        "if that is meant: make api, and see RELEASING.md for what a version may change"
    )


def test_a_change_is_seen() -> None:
    written = SNAPSHOT.read_text(encoding="utf-8")
    for line in ("class Bits", "    --resume: FOLDER", "    activation_range = 'mse_grid'", "130 interrupted"):
        assert f"\n{line}\n" in written, line
    assert "-    --resume: FOLDER" in difference(written, written.replace("    --resume: FOLDER\n", ""))
