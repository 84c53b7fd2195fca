"""Write ``docs/runtimes.md`` from ``integer_conditions.json`` and ``deploy_profile.json`` of ``benchmarks/results``.

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
  zero points, with which its kernels take longer.
* **OpenVINO** wants int8 weights without zero points (codes of fewer than 8 bits lose theirs
  [beforehand](decisions/0018-zero-points-of-narrow-weights.md)) and leaves the rest to itself: activations of any kind
  between a layer and its quantizer, outputs in float. A product of two activations wants int8 without zero points on
  the right, and no zero points on the left.
* **On codes**, between QuantizeLinear and DequantizeLinear, Clip, Pad, Flatten and MaxPool are integer in both. So a
  clip of codes is the way to fewer than 8 bits, and to a Relu whose quantizer has a zero point.
* **x86 processors without VNNI** add two products in 16 bits: weights may use 7 of 8 bits there
  ([decision](decisions/0019-seven-bits-without-vnni.md)).
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


SPEED = """\
## What takes the time

Of ResNet-20 at W8A8, one image and one thread, kernels take:

| | ONNX Runtime | OpenVINO |
|---|---|---|
{shares}
Convolutions take most of it in either width.  Beside them ONNX Runtime computes the sums on their own, which OpenVINO
leaves to the convolutions; copies of the shortcuts and changes of layout are small.

What the emitter does so that integer kernels lose less time than they need to: processor time of the plain form over
that of the other one, in turn, by `benchmarks/deploy_profile.py` (median and quartiles of {rounds} rounds, one image,
one thread, the same machine as below; small graphs of an operator and its surroundings).

| | runtime | times as fast |
|---|---|---|
{rows}
* **Channels of zeros.** ONNX Runtime's convolution for symmetric weights takes input channels in fours, and copies all
  patches into a matrix otherwise. So codes of images get a channel of zeros, and the weight does too, for kernels of at
  most 25 pixels; the sums stay the same.
* **Pads.** A pad with zeros is written by the convolution behind it; in front of integer kernels neither runtime does
  that by itself (in front of float ones ONNX Runtime does).
* **Shapes.** OpenVINO works out all shapes again in each call unless it knows them when it compiles:
  `session(..., shape=(1, 3, 224, 224))`. `clcalib bench` does so, for both models.
"""


def speed(result: dict[str, Any]) -> str:
    titles = {"onnxruntime": "ONNX Runtime", "openvino": "OpenVINO"}
    both = (listed(result["profiles"][name]) for name in titles)
    spreads = [f"{row['ratio']:.2f} ({row['lower']:.2f} to {row['upper']:.2f})" for row in result["rows"]]
    rows = "".join(
        f"| {row['pattern']} | {titles[row['runtime']]} | {spread} |\n"
        for row, spread in zip(result["rows"], spreads, strict=True)
    )
    shares = "".join(
        f"| {width} | {' | '.join(cells)} |\n" for width, *cells in zip(("float", "W8A8"), *both, strict=True)
    )
    return SPEED.format(shares=shares, rows=rows, rounds=result["rounds"])


def listed(profile: dict[str, dict[str, float]]) -> list[str]:
    """The kernels of each width, largest share first."""
    return [
        ", ".join(f"{kernel} {100 * share:.0f} %" for kernel, share in profile[width].items() if share >= 0.01)
        for width in ("float", "W8A8")
    ]


def page(result: dict[str, Any], profile: dict[str, Any]) -> str:
    names = {"onnxruntime": "ONNX Runtime", "openvino": "OpenVINO"}
    versions = " and ".join(f"{names[name]} {version}" for name, version in result["versions"].items())
    lines = [INTRODUCTION, speed(profile), HEADING.format(versions=versions, machine=result["machine"])]
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
    text = page(
        *(json.loads((RESULTS / f"{name}.json").read_text()) for name in ("integer_conditions", "deploy_profile"))
    )
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
