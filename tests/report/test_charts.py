"""Charts: numbers at their places, round ticks, texts escaped, and something said to who cannot see them."""

from __future__ import annotations

import math
import xml.etree.ElementTree as tree

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.report.folders import HOSTILE, evidence, histogram

from clcalib.report.charts.plot import histogram as drawn_histogram
from clcalib.report.charts.plot import line_chart, scatter
from clcalib.report.charts.rows import Mark, Panel, row_chart
from clcalib.report.charts.scale import Scale, is_spread, tick_texts
from clcalib.report.charts.svg import element, short_name

finite = st.floats(min_value=-1e12, max_value=1e12, allow_nan=False)
XML = "http://www.w3.org/2000/svg"


@given(st.lists(finite, min_size=1, max_size=20), st.booleans(), st.booleans())
def test_every_value_has_a_place_and_order_is_kept(values, is_log, has_zero):
    scale = Scale.around(values, 10, 110, is_log=is_log, has_zero=has_zero)
    places = [scale(value) for value in sorted(values)]
    assert all(10 <= place <= 110 for place in places)
    assert places == sorted(places)
    ticks = scale.ticks(5)
    assert 1 <= len(ticks) <= 14
    assert all(scale.low * (1 - 1e-9) - 1e-9 <= tick or math.isclose(scale.low, tick, abs_tol=1e-6) for tick in ticks)
    texts = tick_texts(ticks)
    assert len(set(texts)) == len(texts)


@pytest.mark.parametrize("count", [2, 3, 5])
@pytest.mark.parametrize(("low", "high"), [(58.7, 64.9), (-1.0, 1.0), (0.93, 1.07), (0.0, 3.0)])
def test_a_narrow_axis_has_two_ticks(low, high, count):
    assert 2 <= len(Scale(low, high, 0.0, 100.0).ticks(count)) <= count + 4


def test_a_scale_begins_at_zero_where_it_should():
    assert Scale.around([3, 7], 0, 1, has_zero=True).low == 0
    assert Scale.around([90.1, 91.2], 0, 1).low > 85
    assert Scale.around([5.0], 0, 1)(5.0) == pytest.approx(0.5, abs=0.3)
    assert Scale(1, 100, 0, 10, is_log=True)(10) == pytest.approx(5)


def test_numbers_are_far_apart_or_not():
    assert is_spread([0.01, 1, 100])
    assert not is_spread([1, 2, 3])
    assert not is_spread([0, 0, 0, 100])


def test_names_are_shortened_and_cannot_turn_text_around():
    assert short_name("a" * 50, 11) == "aaaaa…aaaaa"
    assert "\u202e" not in short_name("\u202eevil", 20)
    assert len(short_name(HOSTILE[0], 10)) == 10


def test_an_element_escapes_texts_and_attributes():
    found = element("text", '<b> & "c"', x=1.0, data_name='"><script>')
    parsed = tree.fromstring(str(found))
    assert parsed.text == '<b> & "c"'
    assert parsed.attrib == {"x": "1", "data-name": '"><script>'}


def charts(name="layer1"):
    rows = [[Mark(1.0, "s1", "ring", name), Mark(2.0, "s2", "dot")], [Mark(3.0, "s1", "bar")], []]
    yield row_chart([name, "b", "c"], [Panel("p", rows), Panel("q", rows, is_log=True, is_joined=True)],
                    title=name, description="d")  # fmt: skip
    yield line_chart(name, [0, 5, 9], {name: [None, 100.0, 0.1], "b": [0.0, 0.0, 0.0]}, [name, "b"])
    yield drawn_histogram(name, histogram("values", 8), name)
    yield scatter(evidence().features, {0: name})


@pytest.mark.parametrize("name", [*(name for name in HOSTILE if name.isprintable()), "a\tb\nc"])
def test_every_chart_is_well_formed_whatever_the_name(name):
    for chart in charts(name):
        parsed = tree.fromstring(str(chart))
        texts = "".join(parsed.itertext())
        assert "script" not in {each.tag for each in parsed.iter()}
        assert parsed.attrib["role"] == "img"
        assert len(parsed.attrib["aria-label"]) > 3
        assert name in texts or short_name(name, 20)[:3] in texts
        for each in parsed.iter():
            assert not [key for key in each.attrib if key.startswith("on") or key == "style"]
            numbers = [each.attrib[key] for key in ("x", "y", "cx", "cy", "width", "height", "r") if key in each.attrib]
            assert all(math.isfinite(float(number)) for number in numbers)


def test_marks_are_where_their_values_are():
    rows = [[Mark(value, "s1", "dot")] for value in (0.0, 5.0, 10.0)]
    parsed = tree.fromstring(str(row_chart(["a", "b", "c"], [Panel("p", rows)], title="t", description="d")))
    places = [float(each.attrib["cx"]) for each in parsed.iter("circle")]
    assert places[1] - places[0] == pytest.approx(places[2] - places[1], abs=0.02)
    heights = [float(each.attrib["cy"]) for each in parsed.iter("circle")]
    assert heights[1] - heights[0] == heights[2] - heights[1] == 20


def test_no_more_lines_than_can_be_told_apart():
    parsed = tree.fromstring(str(drawn_histogram("a", histogram(bits=8), "a")))
    levels = [each for each in parsed.iter("line") if each.attrib["class"] == "level"]
    assert 20 <= len(levels) <= 34
    assert "every 8th drawn" in "".join(parsed.itertext())
