"""The page on security says the limits that the code has."""

from __future__ import annotations

from pathlib import Path

import pytest

from clcalib.data import decode, fetch, sources
from clcalib.export.runtimes import model_file
from clcalib.reading import content, pickled, state_dict, torch_file
from clcalib.report import evidence, trace

TEXT = " ".join((Path(__file__).parents[1] / "SECURITY.md").read_text(encoding="utf-8").split())
MIB = content.MIB


@pytest.mark.parametrize(
    "promise",
    [
        f"{state_dict.most_weight_bytes(1) - state_dict.most_weight_bytes(0)} times the network and "
        f"{state_dict.most_weight_bytes(0) // MIB} MiB",
        f"header {state_dict._MOST_HEADER // MIB} MiB",
        f"a pickle of {pickled._MOST_INSTRUCTIONS:,} instructions, in a zip of {torch_file._MOST_PICKLE // MIB} MiB",
        f"{decode.MOST_PIXELS // 10**6} million pixels (`data.most_pixels`), {decode._MOST_FILE // MIB} MiB",
        f"{decode._MOST_SCANS} scans",
        f"JSON of {content.MOST_JSON // MIB} MiB, {content.MOST_LEVELS} levels",
        f"`trace.json` and `report.json` of {trace.MOST_BYTES // MIB} MiB",
        f"{content.MOST_TOML // 1024} KiB, {content.MOST_LEVELS} levels",
        f"inputs of 2^{model_file._MOST_VALUES.bit_length() - 1} values",
        f"{fetch._LONGEST_ARCHIVE // 10**6} MB unpacked",
        *(f"`{suffix}`" for suffix in state_dict.WEIGHT_SUFFIXES),
    ],
)
def test_the_page_says_what_the_code_does(promise: str) -> None:
    assert promise in TEXT


def test_both_files_of_a_page_have_one_limit() -> None:
    assert trace.MOST_BYTES == evidence.MOST_BYTES


def test_a_tenth_of_the_images_may_be_bad() -> None:
    assert sources.MOST_BAD_SHARE == 0.1
    assert "up to a tenth may be unreadable" in TEXT
    assert all({"JPEG": "JPEG", "WEBP": "WebP"}.get(name, name) in TEXT for name in decode.FORMATS)
