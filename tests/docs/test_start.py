"""What docs/start.md tells a newcomer to type works, in the order of the page."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
import torch
from PIL import Image

from clcalib.cli import main
from tests.docs.blocks import DOCS, blocks

PAGE = DOCS / "start.md"
pytestmark = pytest.mark.skipif(not PAGE.exists(), reason="the pages are not part of this copy")


def make_images(folder: Path, count: int, seed: int) -> None:
    folder.mkdir(parents=True)
    generator = torch.Generator().manual_seed(seed)
    for number in range(count):
        pixels = torch.randint(0, 256, (32, 32, 3), generator=generator, dtype=torch.uint8)
        Image.fromarray(pixels.numpy()).save(folder / f"{number}.png")


def test_the_page_from_top_to_bottom(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    make_images(tmp_path / "images", 40, 1)
    for number, name in enumerate(("cats", "dogs")):
        make_images(tmp_path / "labelled-images" / name, 20, 2 + number)
    ran = []
    for block in blocks(PAGE):
        if block.title is not None:
            (tmp_path / block.title).write_text(block.code)
            torch.manual_seed(0)
            exec(compile(block.code, block.title, "exec"), {"__name__": "page"})
        for line in block.code.replace("\\\n", " ").splitlines() if block.language == "console" else ():
            command, *arguments = shlex.split(line)
            if command != "clcalib":
                continue
            # Short, and without a second bench of seconds: the commands are the page's, the patience is not.
            short = ["--steps", "4"] if arguments[0] == "quantize" and "nearest" not in arguments else []
            if arguments[0] == "bench":
                short = ["--rounds", "1", "--batch", "1", "--threads", "1"]
            assert main([*arguments, *short]) == 0, line + "\n" + capsys.readouterr().err
            ran.append(arguments[0])
    assert ran == ["describe", "quantize", "evaluate", "quantize", "export", "bench"]
    assert (tmp_path / "runs" / "deployed" / "model.onnx").exists()
