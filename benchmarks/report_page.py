"""What the page about a run costs: processor time beside the run's, bytes, and the time until a browser has it.

    python benchmarks/report_page.py [--steps 200] [--screenshot]

Runs the demo network on the CPU and writes ``benchmarks/results/report_page.json``; ``--screenshot`` also makes the
picture of ``docs/report.md``.  The browser is Chromium through Playwright; without them its figures are null.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import clcalib.run
from clcalib.calibrate.observer import SilentObserver
from clcalib.config import build
from clcalib.config_sections import RunConfig
from clcalib.config_sources import merge, read_toml
from clcalib.files import write_atomically
from common import provenance

ROOT = Path(__file__).parents[1]
OUT = ROOT / "benchmarks" / "results" / "report_page.json"
PICTURE = ROOT / "docs" / "images" / "report.png"


def measured_run(out: Path, steps: int) -> dict[str, Any]:
    """Run the demo with a page; processor seconds of all of it, and of the page."""
    own = {
        "quantization": {"weights": 4, "activations": 4},
        "recipe": {"name": "fast", "steps": steps},
        "data": {"count": 256},
        "run": {"out": out, "threads": 1},
    }
    config = build(RunConfig, merge({**read_toml(ROOT / "examples/demo/demo.toml"), "recipe": {}}, own), "demo")
    spent, leave_page = [], clcalib.run.leave_page

    def timed(*arguments: Any) -> None:
        start = time.process_time()
        leave_page(*arguments)
        spent.append(time.process_time() - start)

    clcalib.run.leave_page = timed
    start = time.process_time()
    try:
        clcalib.run.run(config, SilentObserver())
    finally:
        clcalib.run.leave_page = leave_page
    total, page = time.process_time() - start, sum(spent)
    return {
        "steps": steps,
        "run_cpu_seconds": round(total - page, 2),
        "page_cpu_seconds": round(page, 2),
        "share": round(page / (total - page), 4),
        "page_bytes": (out / "report.html").stat().st_size,
        "evidence_bytes": (out / "report.json").stat().st_size,
    }


def seen(page: Path, picture: Path | None) -> dict[str, Any]:
    """Milliseconds until a browser has loaded the page, in the median of five times."""
    program = shutil.which("chromium") or shutil.which("chromium-browser")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        program = None
    if program is None:
        return {"browser": None, "load_ms": None}
    with sync_playwright() as session:
        browser = session.chromium.launch(executable_path=program, args=["--no-sandbox"])
        tab, times = browser.new_page(viewport={"width": 1240, "height": 1500}), []
        for _ in range(5):
            tab.goto(page.as_uri(), wait_until="load")
            times.append(tab.evaluate("performance.getEntriesByType('navigation')[0].loadEventEnd"))
        if picture is not None:
            content = tab.screenshot(type="png", clip={"x": 0, "y": 0, "width": 1240, "height": 760})
            write_atomically(picture, content)
        version = browser.version
        browser.close()
    return {"browser": f"Chromium {version}", "load_ms": round(sorted(times)[2])}


def main() -> None:
    """Measure, and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--screenshot", action="store_true")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        figures = provenance() | measured_run(Path(folder) / "w4a4", given.steps)
        page = Path(folder) / "w4a4" / "report.html"
        figures |= seen(page, PICTURE if given.screenshot else None)
    write_atomically(OUT, (json.dumps(figures, indent=1) + "\n").encode())
    print(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
