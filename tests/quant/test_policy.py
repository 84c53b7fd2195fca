"""Patterns, kinds and the rule for the first and last layer decide every width; a pattern that fits nothing is told."""

from __future__ import annotations

import pytest

from clcalib.errors import ArgumentError
from clcalib.quant.policy import Bits, Override, build_policy

LAYERS = ["stem", "a.conv1", "a.conv2", "b.conv1", "head"]
KINDS = {"stem": "conv2d", "a.conv1": "conv2d", "a.conv2": "depthwise conv2d", "b.conv1": "conv2d", "head": "linear"}


def widths(overrides=None, bits=None, **options):
    """layer -> (weight bits, input bits), None for float."""
    rows = build_policy(LAYERS, bits or Bits(2, 4), overrides=overrides, kinds=KINDS, **options)
    found = {row.layer: tuple(None if s is None else s.bits for s in (row.weight, row.input)) for row in rows}
    assert [row.kind for row in rows] == list(KINDS.values())
    return found


def test_without_patterns_the_first_and_last_layer_have_8_bits():
    usual = dict.fromkeys(LAYERS[1:4], (2, 4))
    assert widths() == {"stem": (8, None), **usual, "head": (8, 8)}


@pytest.mark.parametrize(
    ("edge", "stem", "head"), [("same", (2, None), (2, 4)), (6, (6, None), (6, 6)), (None, (None, None), (None, None))]
)
def test_the_rule_for_the_first_and_last_layer_can_be_another(edge, stem, head):
    found = widths(first_last_bits=edge)
    assert (found["stem"], found["head"]) == (stem, head)
    assert found["a.conv1"] == (2, 4)


def test_the_second_layer_of_the_brecq_setting_follows_that_rule():
    assert widths(setting="brecq", first_last_bits=6)["a.conv1"] == (2, 6)
    assert widths(setting="brecq", first_last_bits="same")["a.conv1"] == (2, 4)


def test_what_is_float_everywhere_is_float_at_the_edges():
    assert widths(bits=Bits(None, 4), first_last_bits=6)["head"] == (None, 6)


def test_a_glob_means_names_and_a_marked_word_means_kinds():
    found = widths({"a.*": "W4A8", "@depthwise": "W8", "@lin*": "float"})
    assert found["a.conv1"] == (4, 8)
    assert found["a.conv2"] == (
        8,
        8,
    )  # the last pattern says nothing of the input, so that is what the first one made it
    assert found["b.conv1"] == (2, 4)
    assert found["head"] == (None, None)


def test_the_last_pattern_that_fits_wins_over_the_rules_too():
    assert widths({"a.*": "W3A3", "a.conv1": "W5A5"})["a.conv1"] == (5, 5)
    assert widths({"a.conv1": "W5A5", "a.*": "W3A3"})["a.conv1"] == (3, 3)
    assert widths({"*": Bits(3, 3)})["head"] == (3, 3)


def test_the_table_says_why():
    reasons = {row.layer: row.reason for row in build_policy(LAYERS, Bits(2, 4), overrides={"a.*": "W4"}, kinds=KINDS)}
    assert reasons["a.conv1"] == "override a.*"
    assert reasons["b.conv1"] == ""
    assert "first layer" in reasons["stem"]
    raised = build_policy(LAYERS, Bits(2, 4), overrides={"a.*": Override(4, reason="raised for accuracy")})
    assert raised[1].reason == "raised for accuracy"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("W4A8", Override(4, 8)),
        ("w2", Override(2, "default")),
        ("A32", Override("default", None)),
        (" float ", Override(None, None)),
    ],
)
def test_a_text_is_an_override(text, expected):
    assert Override.parse("x", text) == expected


@pytest.mark.parametrize("text", ["", "W", "W1", "W9A4", "A4W4", "4", "W4A8!", "flaot"])
def test_another_text_is_told(text):
    with pytest.raises(ArgumentError, match=r'overrides\[.a\.\*.\]: expected "W4A8"'):
        widths({"a.*": text})


@pytest.mark.parametrize(
    ("pattern", "remedy"),
    [("a.conv3", "nearest layer: a.conv2"), ("@depthwize", "this network has @conv2d, @depthwise, @linear")],
)
def test_a_pattern_that_fits_nothing_tells_what_there_is(pattern, remedy):
    with pytest.raises(ArgumentError, match=remedy):
        widths({pattern: "W4"})


@pytest.mark.parametrize("edge", [1, 9, "8", True, 2.0])
def test_another_rule_for_the_edges_is_told(edge):
    with pytest.raises(ArgumentError, match="first_last_bits"):
        widths(first_last_bits=edge)


def test_other_types_of_widths_are_told():
    with pytest.raises(ArgumentError, match="overrides"):
        widths({"a.*": 4})
