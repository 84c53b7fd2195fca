"""Draws the pictures of the pages into docs/images.

PYTHONPATH=benchmarks:examples python docs/pictures/draw.py            # writes
PYTHONPATH=benchmarks:examples python docs/pictures/draw.py --check    # fails where a file is another one
"""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
for folder in (HERE, HERE.parent.parent / "benchmarks", HERE.parent.parent / "examples"):
    sys.path.insert(0, str(folder))

import chain  # noqa: E402
import contrastive  # noqa: E402
import grid  # noqa: E402
import rounding  # noqa: E402
import widths  # noqa: E402

IMAGES = HERE.parent / "images"
PICTURES = {
    "chain": chain.draw,
    "contrastive": contrastive.draw,
    "grid": grid.draw,
    "rounding": rounding.draw,
    "widths": widths.draw,
}


def main() -> None:
    for name, draw in PICTURES.items():
        path, text = IMAGES / f"{name}.svg", draw()
        if "--check" in sys.argv[1:]:
            if path.read_text() != text:
                sys.exit(f"{path.name} is another picture; run python docs/pictures/draw.py")
        else:
            path.write_text(text)


if __name__ == "__main__":
    main()
