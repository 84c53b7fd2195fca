"""Write ``docs/runtimes.md`` from ``benchmarks/results/integer_conditions.json`` and nowhere else.

python benchmarks/integer_conditions_page.py            # writes
python benchmarks/integer_conditions_page.py --check    # fails where the page says something else
"""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from common import RESULTS, ROOT

PAGE = ROOT / "docs" / "runtimes.md"

INTRODUCTION = """\
# Where exported models run

clcalib loads any ONNX model, quantized by clcalib or by anything else, in ONNX Runtime and in OpenVINO:

```sh
pip install "clcalib[onnxruntime]"                          # or clcalib[openvino]
clcalib evaluate quantized.onnx --evaluation images/        # top-1 as the runtime computes it
clcalib bench float.onnx quantized.onnx                     # speed-up, size, memory, and what stayed in float
```

```python
from clcalib.export.runtimes import integer_report, session

outputs = session("quantized.onnx", "onnxruntime", threads=1)(batch)  # name -> array
for row in integer_report("quantized.onnx", "openvino"):
    print(row.operation, row.name, row.kernel, row.is_integer, row.reason)
```

A model whose numbers are those of integers is not yet computed with integers: a runtime replaces a layer and the
quantizers around it by an integer kernel only where it knows their pattern, and computes all else in float, with the
quantizers as extra work. `integer_report` reads what really runs from the graph that the runtime made of the model.

## Rules

* **ONNX Runtime** wants a quantizer on every input and, but for Gemm and MatMul, behind every output; one quantizer for
  each tensor; uint8 activations, since x86 kernels do not take int8 behind a branch (`quantize_static` of ONNX Runtime
  makes int8 ones by default); Relu and Clip only where the quantizer behind them ends where they do. Weights may have
  zero points.
* **OpenVINO** wants symmetric int8 weights and leaves the rest to itself: activations of any kind between a layer and
  its quantizer, outputs in float. A product of two activations wants int8 without zero points on the right, and no
  zero points on the left.
* **On codes**, between QuantizeLinear and DequantizeLinear, Clip, Pad, Flatten and MaxPool are integer in both. So a
  clip of codes is the way to fewer than 8 bits, and to a Relu whose quantizer has a zero point.
* The scale of an int32 bias has to be input scale x weight scale: ONNX Runtime's Gemm takes it for that, and gives
  wrong numbers where it is another one.
* Where only weights are quantized, MatMul quantizes its input on the fly in both runtimes: its numbers are not those of
  the graph.
"""

HEADING = """\
## What was tried

{versions}, on {machine}.
Small graphs, one for each line, by `benchmarks/integer_conditions.py`; a line says float where any of its operations
runs in float. *off* is the largest difference to the unoptimised graph, in steps of a quantizer with scale 0.1, where
it is more than one step.
"""


def page(result: dict[str, Any]) -> str:
    names = {"onnxruntime": "ONNX Runtime", "openvino": "OpenVINO"}
    versions = " and ".join(f"{names[name]} {version}" for name, version in result["versions"].items())
    lines = [INTRODUCTION, HEADING.format(versions=versions, machine=result["machine"])]
    for group in dict.fromkeys(row["group"] for row in result["rows"]):
        lines += [f"| {group} | ONNX Runtime | its kernels | OpenVINO |", "|---|---|---|---|"]
        for row in result["rows"]:
            if row["group"] == group:
                kernels = ", ".join(row["onnxruntime"].get("kernels", ()))
                first, second = (cell(row[name]) for name in names)
                lines.append(f"| {row['pattern']} | {first} | {kernels} | {second} |")
        lines.append("")
    return "\n".join(lines)


def cell(found: dict[str, Any]) -> str:
    if "error" in found:
        return "fails"
    kind = {True: "integer", False: "**float**", None: "by its quantizer"}[found["integer"]]
    return f"{kind}, off {found['steps_off']:.1f}" if found["steps_off"] > 1.01 else kind


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    text = page(json.loads((RESULTS / "integer_conditions.json").read_text()))
    if parser.parse_args().check:
        if PAGE.read_text() != text:
            print(
                "docs/runtimes.md is not what its JSON says; run benchmarks/integer_conditions_page.py", file=sys.stderr
            )
            return 1
        return 0
    PAGE.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
