"""Every Python block of the pages runs, page by page from top to bottom; what stands behind a prompt is compared."""

from __future__ import annotations

import doctest
from pathlib import Path

import pytest
import torch

import clcalib
from clcalib.deployment import deploy
from tests.docs.blocks import DOCS, Block, blocks, name_of, pages
from tests.processors import here
from tests.tiny import images, tiny

pytestmark = pytest.mark.skipif(not DOCS.exists(), reason="the pages are not part of this copy")
# A block with a title is a file: those of start.md and extending.md are written and used by their own tests.
SNIPPETS = {page: found for page in pages() if (found := [
    block for block in blocks(page) if block.language == "python" and block.title is None
])}  # fmt: skip
NEEDS_GRAPH = "runtimes.md"
QUICKER = {
    "recipes.fast()": "recipes.fast(steps=5)",
    "steps=500": "steps=5",
    'target="onnxruntime"': f"target={here('onnxruntime')!r}",
}


def names(page: Path) -> dict[str, object]:
    """What the snippets take for granted: see docs/concepts/index.md."""
    evaluation = clcalib.EvaluationSet.from_tensor(images(24, seed=2), torch.arange(24) % 4)
    found: dict[str, object] = {
        "clcalib": clcalib,
        "torch": torch,
        "model": tiny(),
        "images": images(),
        "calibration": clcalib.CalibrationSet.from_tensor(images()),
        "evaluation": evaluation,
    }
    if page.name == NEEDS_GRAPH:
        bits, recipe = clcalib.Bits(8, 8), clcalib.recipes.nearest()
        result = clcalib.quantize(
            tiny(), found["calibration"], recipe=recipe, bits=bits, target="onnxruntime", is_rehearsed=False
        )
        deploy(result, "quantized.onnx")
        found["batch"] = images(4).numpy()
    return found


def run(block: Block, page: Path, namespace: dict[str, object]) -> None:
    if ">>> " in block.code:
        parsed = doctest.DocTestParser().get_doctest(block.code, namespace, name_of(page), str(page), block.line)
        runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS, verbose=False)
        messages: list[str] = []
        runner.run(parsed, out=messages.append, clear_globs=False)
        assert not runner.failures, "".join(messages)
        namespace.update(parsed.globs)
        return
    code = block.code
    for long, short in QUICKER.items():
        code = code.replace(long, short)
    # Padded with empty lines, so that an error names the line of the page.
    exec(compile("\n" * block.line + code, str(page), "exec"), namespace)


@pytest.mark.parametrize("page", SNIPPETS, ids=name_of)
def test_the_python_blocks_of_a_page_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    namespace = names(page)
    for block in SNIPPETS[page]:
        run(block, page, namespace)
    assert namespace["clcalib"] is clcalib


def test_pages_have_snippets() -> None:
    assert len(SNIPPETS) >= 12
    assert sum(map(len, SNIPPETS.values())) >= 16


def test_a_wrong_output_is_found(tmp_path: Path) -> None:
    wrong = Block("python", None, ">>> 1 + 1\n3\n", 1)
    with pytest.raises(AssertionError, match="Expected"):
        run(wrong, pages()[0], {})
