"""Fuzz one target with Atheris, which is not among the dependencies: ``python -m tests.fuzz.run pt_zip CORPUS ...``.

Sound files are written into the corpus first; all further arguments go to libFuzzer.  A crash is a defect: each target
takes any bytes and raises nothing.
"""

from __future__ import annotations

import sys
from pathlib import Path


def main(arguments: list[str]) -> None:
    try:
        import atheris
    except ImportError:
        sys.exit("this needs Atheris: pip install atheris")
    with atheris.instrument_imports(include=["clcalib", "PIL", "safetensors", "tomllib", "zipfile"]):
        from tests.fuzz.targets import TARGETS
    if len(arguments) < 2 or arguments[0] not in TARGETS:
        sys.exit(f"usage: python -m tests.fuzz.run {{{','.join(TARGETS)}}} CORPUS [options of libFuzzer]")
    target, corpus = TARGETS[arguments[0]], Path(arguments[1])
    corpus.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(target.seeds()):
        (corpus / f"seed_{number}").write_bytes(seed)
    atheris.Setup([sys.argv[0], *arguments[1:]], target.fuzz)
    atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv[1:])
