"""The page as a reader sees it: in Chromium, with hostile names, on a phone, by keyboard, in the dark and on paper."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from tests.report.folders import HOSTILE, SECTIONS, budget, deployment, folder, hostile_folder, record, target

from clcalib.report.page.comparison import write_comparison
from clcalib.report.page.render import write_report


@contextmanager
def opened(browser: Any, path: Path, **options: Any) -> Iterator[Any]:
    """The page; no message on the console, no request to anywhere, no error in it."""
    context = browser.new_context(**{"viewport": {"width": 1400, "height": 900}, **options})
    page, messages, requests = context.new_page(), [], []
    page.on("console", lambda message: messages.append(message.text))
    page.on("pageerror", lambda error: messages.append(str(error)))
    page.on("request", lambda request: requests.append(request.url))
    page.on("dialog", lambda dialog: messages.append(dialog.message))
    page.goto(path.as_uri())
    yield page
    context.close()
    assert messages == []
    assert {url for url in requests if not url.startswith("data:")} == {path.as_uri()}


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a run with everything in it."""
    own = record(deployment=deployment(), budget=budget(), target=target())
    return write_report(folder(tmp_path_factory.mktemp("full") / "run", record=own))


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(hostile_folder(tmp_path_factory.mktemp("hostile") / "a run & <b>"))


def test_every_section_is_there_and_nothing_leaves_the_page(browser, full):
    with opened(browser, full) as page:
        for name in SECTIONS:
            assert page.locator(f"section#{name} h2").count() == 1
            assert page.locator(f"nav a[href='#{name}']").count() == 1
        assert page.locator(".missing").count() == 0
        assert page.locator("section#headline .tiles .value").all_inner_texts()[:4] == [
            "75.00 %", "25.00 %", "50.00 %", "50.00 %",
        ]  # fmt: skip
        assert page.locator("svg").count() >= 15
        assert all(page.locator("svg").evaluate_all("all => all.map(one => one.getAttribute('aria-label').length > 9)"))
        assert all(
            page.locator("img").evaluate_all("all => all.map(one => one.alt.length > 9 && one.naturalWidth > 0)")
        )


def test_hostile_names_run_nothing_and_are_shown_as_they_are(browser, hostile):
    assert len(HOSTILE) >= 50
    with opened(browser, hostile) as page:
        assert page.evaluate("window.hit") is None
        assert page.evaluate("document.scripts.length") == 1
        assert page.evaluate("document.scripts[0].type") == "application/json"
        assert page.locator("iframe, object, form, base, svg script, [onerror], [onload]").count() == 0
        for place in (
            "#units tbody th bdi",
            "#coverage tbody th bdi",
            "#classes .box.tall tbody th bdi",
            "#headline li bdi",
        ):
            shown = set(page.locator(place).evaluate_all("all => all.map(one => one.textContent)"))
            assert set(HOSTILE) - shown == set(), place
        shown = set(page.locator("#histograms h4 bdi").evaluate_all("all => all.map(one => one.textContent)"))
        assert set(HOSTILE) - shown == set()
        assert page.title().startswith('"><img src=x onerror="window.hit=1">')
        # The block of data is still what run.json says.
        units = page.evaluate("JSON.parse(document.getElementById('run-record').textContent).units.map(u => u.name)")
        assert units == list(HOSTILE)


@pytest.mark.parametrize("width", [1400, 400])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_is_wider_than_the_window(browser, full, hostile, width, scheme):
    for path in (full, hostile):
        with opened(browser, path, viewport={"width": width, "height": 800}, color_scheme=scheme) as page:
            page.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
            assert page.evaluate("document.documentElement.scrollWidth") <= width
            background = page.evaluate("getComputedStyle(document.body).backgroundColor")
            assert background == ("rgb(255, 255, 255)" if scheme == "light" else "rgb(20, 23, 27)")


def test_the_keyboard_reaches_links_summaries_and_boxes(browser, full):
    with opened(browser, full) as page:
        expected = page.locator("a[href], summary, input, [tabindex='0']").evaluate_all(
            "all => all.filter(one => one.checkVisibility({contentVisibilityAuto: true})).length"
        )
        reached = set()
        for _ in range(expected + 5):
            page.keyboard.press("Tab")
            reached.add(page.evaluate(
                "[...document.querySelectorAll(\"a[href], summary, input, [tabindex='0']\")]"
                ".indexOf(document.activeElement)"
            ))  # fmt: skip
        assert len(reached - {-1}) == expected > 20
        page.locator("summary").first.focus()
        is_open = page.evaluate("document.activeElement.parentElement.open")
        page.keyboard.press("Enter")
        assert page.evaluate("document.activeElement.parentElement.open") is not is_open
        page.locator(".skip").focus()
        page.keyboard.press("Enter")
        assert page.url.endswith("#content")


def test_classes_can_be_taken_out_of_the_map_without_a_script(browser, full):
    with opened(browser, full, java_script_enabled=False) as page:
        boxes, points = page.locator("#features input"), page.locator("#features g.s1, #features g.s2")
        assert boxes.count() > 1
        assert all(point.is_visible() for point in points.all())
        boxes.first.focus()
        page.keyboard.press("Space")
        assert [each.is_visible() for each in page.locator("#features g.s1").all()] == [False] * 2
        assert all(each.is_visible() for each in page.locator("#features g.s2").all())


def test_it_prints_with_what_was_folded_away(browser, full):
    with opened(browser, full) as page:
        page.emulate_media(media="print")
        assert page.pdf(format="A4").startswith(b"%PDF-")
        hidden = page.locator("details:not([open]) table").evaluate_all(
            "all => all.filter(one => !one.checkVisibility()).length"
        )
        assert page.locator("details:not([open]) table").count() > 2
        assert hidden == 0
        assert page.locator("nav").evaluate("one => getComputedStyle(one).display") == "none"


def test_it_is_readable_without_javascript(browser, full):
    with opened(browser, full, java_script_enabled=False) as page:
        assert "Deployment proof" in page.locator("main").inner_text()
        page.locator("summary").nth(1).click()
        assert page.locator("details").nth(1).locator("dl").is_visible()


def test_it_is_there_within_two_seconds(browser, hostile):
    with opened(browser, hostile) as page:
        start = time.monotonic()
        page.reload(wait_until="load")
        loaded = page.evaluate("performance.getEntriesByType('navigation')[0].loadEventEnd")
        assert loaded < 2000 or time.monotonic() - start < 2


def test_the_comparison_is_as_safe(browser, tmp_path):
    paths = [hostile_folder(tmp_path / name) for name in ("<b>one</b>", "two & {{7*7}}")]
    paths.append(folder(tmp_path / "three", record=record(model_digest="d" * 64)))
    out = write_comparison(paths, tmp_path / "compare.html")
    for width in (1400, 400):
        with opened(browser, out, viewport={"width": width, "height": 800}) as page:
            page.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
            assert page.evaluate("window.hit") is None
            assert page.evaluate("document.documentElement.scrollWidth") <= width
            shown = page.locator("#results tbody th bdi").evaluate_all("all => all.map(one => one.textContent)")
            assert shown == [str(path) for path in paths]
            assert "another network" in page.locator(".notice").inner_text()
