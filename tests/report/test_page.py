"""The page without a browser: every section with and without its data, its size, its colours, and damaged files."""

from __future__ import annotations

import html.parser
import itertools
import json
import re
import time
from pathlib import Path

import pytest
from tests.report.folders import (
    HOSTILE,
    SECTIONS,
    budget,
    config,
    deployment,
    evidence,
    folder,
    hostile_folder,
    picture,
    record,
    target,
    trace,
)

import clcalib.report.page
from clcalib.errors import ArgumentError, ClcalibError
from clcalib.report.charts.scale import Scale
from clcalib.report.page.render import named, write_report
from clcalib.report.page.settings import loading_lines
from clcalib.report.page.sources import RunFolder
from clcalib.report.page.units import unit_view
from clcalib.report.record import DetectionRecord

STYLE = (Path(clcalib.report.page.__file__).parent / "templates" / "style.css").read_text()


class Reader(html.parser.HTMLParser):
    """Text by section, all tags with their attributes, and what is left open."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.section, self.texts, self.tags, self.open = "", dict[str, str](), list[tuple[str, dict]](), list[str]()
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        self.tags.append((tag, values))
        if tag == "section":
            self.section = values["id"]
        if tag not in ("meta", "link", "img", "wbr", "input"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag
        self.section = "" if tag == "section" else self.section

    def handle_data(self, text):
        self.texts[self.section] = self.texts.get(self.section, "") + text


def read(path: Path) -> Reader:
    reader = Reader(path.read_text(encoding="utf-8"))
    assert reader.open == []
    return reader


def page(tmp_path, **parts):
    return read(write_report(folder(tmp_path / "run", **parts)))


def test_every_section_has_its_content(tmp_path):
    own = record(deployment=deployment(), budget=budget(), target=target())
    found = page(tmp_path, record=own)
    assert tuple(found.texts)[1:-1] == SECTIONS or set(SECTIONS) <= set(found.texts)
    expected = {
        "headline": ["75.00 %", "25.00 %", "50.00 %", "deployed, onnxruntime", "on 4 images; simulated there 50.00 %",
                     "4.0 times smaller than 4.00\N{NARROW NO-BREAK SPACE}kB in float32", "1 warning of the run"],
        "run": ["recipe", "fast", "somewhere/nets.py:build", "reconstruction 10 s", "b" * 64],
        "classes": ["2 of 4 images", "cat", "dog", "Confusion of changes", "now wrong"],
        "widths": ["At most 1,000 bytes of weights", "W3A8", "settled", "round 2", "The result keeps that"],
        "units": ["stem", "2.00 → 1.00", "2.50 → 3.00", "20.0", "went back to nearest rounding: block"],
        "losses": ["Reconstruction", "whole network"],
        "histograms": ["block", "20.0 % of roundings flipped", "1 % of inputs clipped"],
        "features": ["4 evaluation images", "50 % of the variance"],
        "coverage": ["prelu", "no kernel"],
        "deployment": ["ONNX Runtime 1.0", "3 of 4 in integers", "Softmax", "of conv", "top-1 of the simulation"],
        "load": ["import clcalib", "from nets import build", "model = clcalib.load('run', build())", "onnxruntime"],
    }  # fmt: skip
    for section, texts in expected.items():
        for text in texts:
            assert text in found.texts[section], (section, text)
    data = next(at for at, (tag, values) in enumerate(found.tags) if values.get("id") == "run-record")
    assert found.tags[data] == ("script", {"type": "application/json", "id": "run-record"})


@pytest.mark.parametrize(
    ("parts", "section", "sentence"),
    [
        ({"record": record(float_top1=None, nearest_top1=None, quantized_top1=None, agreement=None,
                           nearest_agreement=None, evaluation_images=0), "evidence": None}, "headline", "--evaluation"),
        ({}, "headline", "Nothing is deployed yet: with --target"),
        ({"config": None}, "run", "no config.json: the result was made in Python"),
        ({"evidence": None}, "classes", "Gather it with: clcalib report --gather"),
        ({"evidence": None, "record": record(evaluation_images=0)}, "classes", "There were no evaluation images"),
        ({"evidence": evidence(predictions=None, changed=())}, "classes", "more than 200,000"),
        ({"evidence": None, "record": record(detection=DetectionRecord(
            score_threshold=0.5, detections=3, nearest_matched=0.1, nearest_overlap=0.5, matched=0.2, overlap=0.5))},
         "classes", "The model is a detector"),
        ({}, "widths", "None was searched for"),
        ({"evidence": None}, "units", "report.json, which this folder lacks"),
        ({"trace": None}, "losses", "trace.json, which this folder lacks"),
        ({"trace": trace(terms=())}, "losses", "Nothing was optimised"),
        ({"evidence": None}, "histograms", "report.json, which this folder lacks"),
        ({"evidence": evidence(layers=())}, "histograms", "Nothing is quantized"),
        ({"evidence": None}, "features", "report.json, which this folder lacks"),
        ({"evidence": evidence(features=None)}, "features", "fewer than three images"),
        ({"record": record(float_parts=())}, "coverage", "nothing stayed in float"),
        ({}, "deployment", "No file for a runtime was written"),
        ({"record": record(deployment=deployment(runtime=None))}, "deployment", "The file was not run"),
        ({"record": record(deployment=deployment(max_code_difference=None))}, "deployment", "Codes were not compared"),
        ({"record": record(deployment=deployment(max_code_difference=7))}, "deployment", "Do not trust the file"),
        ({"config": None}, "load", "from your_network import build"),
    ],
)  # fmt: skip
def test_what_is_missing_is_told_in_a_sentence(tmp_path, parts, section, sentence):
    found = page(tmp_path, **parts)
    assert sentence in found.texts[section]
    assert set(SECTIONS) <= set(found.texts)


def test_no_units_at_all_is_no_error(tmp_path):
    own = record().model_copy(update={"units": (), "policy": (), "seconds_per_stage": {}, "warnings": ()})
    assert "The record has no units" in page(tmp_path, record=own, trace=None, evidence=None).texts["units"]


def test_the_policy_lets_nothing_in(tmp_path):
    found = page(tmp_path)
    (policy,) = [values["content"] for tag, values in found.tags if values.get("http-equiv")]
    assert policy.startswith("default-src 'none'; style-src 'sha256-")
    assert "unsafe" not in policy
    assert "script-src" not in policy  # which default-src covers
    for _, values in found.tags:
        assert not [key for key in values if key.startswith("on") or key == "style"]
        places = [values.get(key) or "" for key in ("src", "href", "action", "data", "xlink:href")]
        assert all(place == "" or place.startswith(("#", "data:")) for place in places)


def test_headings_lists_and_tables_are_what_they_say(tmp_path):
    found = page(tmp_path, record=record(deployment=deployment(), budget=budget()))
    levels = [int(tag[1]) for tag, _ in found.tags if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1
    assert all(later <= earlier + 1 or later <= 4 for earlier, later in itertools.pairwise(levels))
    assert all(values.get("scope") in ("col", "row") for tag, values in found.tags if tag == "th")
    assert all(len(values["alt"]) > 5 for tag, values in found.tags if tag == "img")
    assert all(values["aria-label"] and values["role"] == "img" for tag, values in found.tags if tag == "svg")
    ids = [values["id"] for _, values in found.tags if "id" in values]
    assert len(ids) == len(set(ids))
    targets = [values["href"][1:] for tag, values in found.tags if tag == "a"]
    assert set(targets) <= set(ids)
    assert dict(found.tags[0][1]) == {"lang": "en"}


def luminance(colour: str) -> float:
    """Of ``#rrggbb``, as WCAG 2.2 defines it."""
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(first: str, second: str) -> float:
    light, dark = sorted((luminance(first), luminance(second)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def colours(scheme: str) -> dict[str, str]:
    blocks = re.findall(r":root \{(.*?)\}", STYLE, re.DOTALL)
    light, dark = (dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", block)) for block in blocks[:2])
    assert set(light) == set(dark)
    return light if scheme == "light" else dark


def test_the_contrast_is_computed_as_wcag_does():
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_texts_and_marks_stand_out(scheme):
    own = colours(scheme)
    for ground in ("background", "surface"):
        for text in ("text", "muted", "link"):
            assert contrast(own[text], own[ground]) >= 4.5, (text, ground)
        marks = ["float", "nearest", "own", "deployed", "held", "good", "bad", *(f"s{at}" for at in range(1, 11))]
        for mark in marks:
            assert contrast(own[mark], own[ground]) >= 3, (mark, ground)
    assert contrast(own["notice-text"], own["notice"]) >= 4.5
    for heat in range(1, 6):
        assert contrast(own["heat-text"], own[f"h{heat}"]) >= 4.5
    assert contrast(own["level"], own["background"]) >= 3


def test_a_large_run_stays_small_and_quick(tmp_path):
    names = tuple(f"stages.{at}.blocks.{at}.attention.projection" for at in range(400))
    classes = tuple(f"class number {at}" for at in range(1000))
    pictures = tuple(
        image.model_copy(update={"picture": "data:image/jpeg;base64," + "A" * 8000})
        for image in evidence(names, classes).changed
    )
    parts = {
        "record": record(names, budget=budget(names), deployment=deployment()),
        "evidence": evidence(names, classes, changed=pictures),
        "trace": trace(names, ("Reconstruction", "RoundingPenalty", "Contrastive", "Prediction")),
    }
    where = folder(tmp_path / "run", **parts)
    start = time.process_time()
    path = write_report(where)
    assert time.process_time() - start < 20
    assert path.stat().st_size < 5_000_000
    text = path.read_text()
    assert "class number 999" in text
    assert names[-1] in text


def test_the_page_is_the_same_each_time(tmp_path):
    where = folder(tmp_path / "run")
    first = write_report(where).read_bytes()
    assert write_report(where, tmp_path / "again.html").read_bytes() == first


def test_hostile_names_are_data(tmp_path):
    found = read(write_report(hostile_folder(tmp_path / "run")))
    assert [tag for tag, _ in found.tags if tag == "script"] == ["script"]
    assert not {tag for tag, _ in found.tags} & {"iframe", "object", "form", "base", "input"}
    whole = "".join(found.texts.values())
    assert [name for name in HOSTILE if name.replace("\r", "\n") not in whole.replace("\r", "\n")] == []


def test_the_lines_to_load_a_result_cannot_be_led_astray(tmp_path):
    entry = "os\nimport shutil; shutil.rmtree('x')\nfrom a:build"
    where = folder(tmp_path / "it's", config=config(entry=entry))
    ((_, lines),) = loading_lines(RunFolder.read(where))
    assert lines == ("import clcalib", "from your_network import build", 'model = clcalib.load("it\'s", build())')


def test_the_units_that_suffer_most_are_named(tmp_path):
    names = tuple(f"unit{at}" for at in range(12))  # with 20 - at % 7 dB
    found = page(tmp_path, record=record(names))
    assert "The least signal to noise [dB]: unit6 14.0, unit5 15.0" in found.texts["units"]
    assert unit_view(RunFolder.read(tmp_path / "run")).worst == (
        ("unit6", "14.0"), ("unit5", "15.0"), ("unit4", "16.0"), ("unit11", "16.0"), ("unit3", "17.0"),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ({"entry": "net.py:Nets.small"}, ("from net import Nets", "Nets.small()")),
        ({"entry": "a.b:build", "arguments": {"width": 4}}, ("from a.b import build", "build(**{'width': 4})")),
        (
            {"entry": "timm:resnet18.a1_in1k"},
            ("from clcalib.named_models import build", "build('timm:resnet18.a1_in1k', {}, is_pretrained=False)"),
        ),
    ],
)
def test_the_lines_to_load_a_result_name_what_built_the_network(tmp_path, model, expected):
    where = folder(tmp_path / "run", config=config(**model))
    ((_, lines),) = loading_lines(RunFolder.read(where))
    assert lines == ("import clcalib", expected[0], f"model = clcalib.load('run', {expected[1]})")


@pytest.mark.parametrize("name", ["run.json", "trace.json", "report.json", "config.json"])
@pytest.mark.parametrize("content", ["", "[]", "{", '{"a": 1e999}', "[" * 100_000, "\x00\x01", "null"])
def test_a_damaged_file_is_named(tmp_path, name, content):
    where = folder(tmp_path / "run")
    (where / name).write_text(content)
    if (name, content) == ("config.json", '{"a": 1e999}'):
        write_report(where)  # a section that is no table is left out
        return
    with pytest.raises(ClcalibError, match=rf"{name}"):
        write_report(where)


def numbers(node, at=()):
    """The places of all numbers in a tree of tables and lists, of the first entries of each list."""
    for key, child in node.items() if isinstance(node, dict) else enumerate(node[:1]):
        if isinstance(child, dict | list):
            yield from numbers(child, (*at, key))
        elif isinstance(child, int | float) and not isinstance(child, bool):
            yield (*at, key)


@pytest.mark.parametrize("value", [10**400, 1e308, -1e308])
@pytest.mark.parametrize("name", ["run.json", "report.json", "trace.json"])
def test_numbers_that_no_run_has_are_no_crash(tmp_path, name, value):
    own = record(deployment=deployment(), budget=budget(), target=target())
    where = folder(tmp_path / "run", record=own, trace=trace(("a",)))
    values = json.loads((where / name).read_text())
    outcomes = set()
    for place in list(numbers(values)):
        node = values
        for key in place[:-1]:
            node = node[key]
        before, node[place[-1]] = node[place[-1]], value
        (where / name).write_text(json.dumps(values))
        try:
            write_report(where)
            outcomes.add("drawn")
        except ClcalibError as error:
            outcomes.add("refused" if str(where) in str(error) else str(error))
        node[place[-1]] = before
    assert outcomes <= {"drawn", "refused"}


def test_a_picture_is_nothing_else(tmp_path):
    found = page(tmp_path)
    pictures = [values["src"] for tag, values in found.tags if tag == "img"]
    assert pictures
    assert set(pictures) == {picture()}


def test_what_is_no_folder_of_a_run_is_told(tmp_path):
    (tmp_path / "empty").mkdir()
    for where in (tmp_path / "nowhere", tmp_path / "empty"):
        with pytest.raises(
            ArgumentError, match=r"OUT: expected the output folder of a finished run, got .*run.json|no folder"
        ):
            write_report(where)


def test_names_break_between_their_parts(tmp_path):
    names = ("train/cat/00017.png", "layer1.0.conv1", "deit_tiny", "a + b", "1.5", "__init__")
    cut = [str(named(name)).split(">", 1)[1].removesuffix("</bdi>").split("<wbr>") for name in names]
    assert cut == [
        ["train/", "cat/", "00017", ".png"], ["layer1", ".0", ".conv1"], ["deit_", "tiny"], ["a + b"], ["1", ".5"],
        ["__init__"],
    ]  # fmt: skip
    own = record(recipe="qdrop+contrastive")
    assert "qdrop + contrastive" in page(tmp_path, record=own).texts["headline"]


def test_an_axis_of_accuracies_ends_at_all_images():
    scale = Scale.around([88.0, 100.0], 0.0, 1.0, most=100.0)
    assert (scale.high, scale(100.0)) == (100.0, 1.0)
    assert Scale.around([88.0, 101.0], 0.0, 1.0, most=100.0).high == 101.0
    assert Scale.around([40.0, 50.0], 0.0, 1.0, most=100.0).high < 60
