"""What a newcomer has to read and type: counted right, and done in ten minutes (tests/docs/test_start.py runs it)."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "benchmarks"
pytestmark = pytest.mark.skipif(not FOLDER.exists(), reason="the benchmarks are not part of this copy")

PAGE = """# Ten minutes

Five words stand here, first.

## 1. Look

<!-- not read -->Three more words:

```console
clcalib describe
```

## 2. Quantize

```python title="net.py"
model = 1  # and then it is trained
```

Then: `clcalib quantize`

```console
clcalib quantize
```

## 3. Later

```console
clcalib bench
```
"""


@pytest.fixture
def newcomer(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    monkeypatch.syspath_prepend(str(ROOT))
    import newcomer

    return newcomer


def test_words_and_characters_of_each_part_are_counted(newcomer, tmp_path, monkeypatch):
    page, readme = tmp_path / "start.md", tmp_path / "README.md"
    page.write_text(PAGE)
    readme.write_text("# Name\n\nWhat it is.\n\n## What to choose\n\nMuch for later.\n")
    monkeypatch.setattr(newcomer, "PAGE", page)
    monkeypatch.setattr(newcomer, "README", readme)
    way = newcomer.stages()
    assert [(stage.name, stage.words) for stage in way] == [
        ("README.md, and the clone", 5),
        ("Ten minutes", 8),
        ("1. Look", 6),
        ("2. Quantize", 6),
        ("3. Later", 3),
    ]
    assert [(stage.commands, stage.files) for stage in way] == [(37, 0), (0, 0), (17, 0), (17, 36), (14, 0)]
    assert "model = 1  ; import brought" in way[3].script
    assert "python net.py\nclcalib quantize\n" in way[3].script
    assert [stage.name for stage in newcomer.up_to_the_goal(way)][-1] == "2. Quantize"
    sums = newcomer.result_of(way)
    assert sums["reading_minutes"] == pytest.approx(25 / 200)
    assert sums["typing_minutes"] == pytest.approx((37 + 17 + 17 + 36) / 200)
    assert "waiting_minutes" not in sums


def test_the_pages_ask_for_less_than_ten_minutes(newcomer):
    done = subprocess.run(
        [sys.executable, str(FOLDER / "newcomer.py"), "--count"], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert "your first quantized network" in done.stdout


def test_pages_that_ask_for_more_fail(newcomer, monkeypatch, capsys):
    monkeypatch.setattr(newcomer, "MOST_MINUTES", 1.0)
    monkeypatch.setattr(sys, "argv", ["newcomer.py", "--count"])
    with pytest.raises(SystemExit, match="ask for more than 1 minutes: shorten them"):
        newcomer.main()
    assert "reading and typing" in capsys.readouterr().out


def test_what_a_newcomer_brings_can_be_learned(newcomer, tmp_path):
    """Stripes of the two classes differ by their direction, which is what makes an accuracy worth a look."""
    names: dict[str, object] = {"__name__": "brought"}
    exec(compile(newcomer.BROUGHT, "brought.py", "exec"), names)
    names["bring"](tmp_path)
    assert len(list((tmp_path / "images").iterdir())) == 256
    assert [path.name for path in sorted((tmp_path / "labelled-images").iterdir())] == ["lying", "upright"]
    images, classes = names["pixels"](64, 0)
    across = images.float().mean((1, 3)).var(1) > images.float().mean((2, 3)).var(1)
    assert (across == (classes == 1)).all()
