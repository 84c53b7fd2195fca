"""The table of the demo in README: what `make demo` left in runs/demo, as one result.

    make demo && python benchmarks/demo_table.py

Reads the four run.json; ``seconds`` is the sum of what they say.  Writes ``benchmarks/results/demo.json``.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from common import ROOT, provenance, write_result

RUNS = ("w4a4-qdrop", "w4a4-qdrop-contrastive", "w2a2-qdrop", "w2a2-qdrop-contrastive")
LEFT_OUT = ("units", "warnings", "seconds_per_stage")  # long, and in no table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "demo", help="where the demo left its folders")
    folder = parser.parse_args().runs
    records = [json.loads((folder / name / "run.json").read_text()) for name in RUNS]
    runs = [{key: value for key, value in record.items() if key not in LEFT_OUT} for record in records]
    print(write_result("demo", {"runs": runs, "seconds": round(sum(run["seconds"] for run in runs)), **provenance()}))


if __name__ == "__main__":
    main()
