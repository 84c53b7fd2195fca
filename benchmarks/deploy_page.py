"""Write ``benchmarks/results/deploy.json`` and ``docs/deployment.md`` from the runs of ``deploy.py``.

The page ends with what ``torch_program.py`` found.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from clcalib.files import write_atomically
from clcalib.quant.targets import TARGETS
from common import RESULTS, ROOT

PAGE = ROOT / "docs" / "deployment.md"
TORCH_PROGRAM = RESULTS / "torch_program.json"
NAMES = {
    "resnet20": "ResNet-20",
    "mobilenet_v2": "MobileNetV2",
    "efficientnet_lite0": "EfficientNet-Lite0",
    "resnet50_v1": "ResNet-50",
}
TITLES = {"onnxruntime": "ONNX Runtime", "openvino": "OpenVINO"}
INTRODUCTION = """\
# Deployment: what is calibrated is what the integer kernels compute

Written by `benchmarks/deploy_page.py` from the runs of `benchmarks/deploy.py`
([benchmarks/results/deploy](../benchmarks/results/deploy), one JSON each).

```sh
clcalib quantize run.toml --bits W8A8 --target onnxruntime --out runs/deployed   # writes and checks model.onnx
clcalib export runs/deployed --float float.onnx --out deployed.onnx              # again, and the float network
clcalib bench float.onnx deployed.onnx                                           # speed, size, memory, kernels
clcalib evaluate deployed.onnx --evaluation images/                              # any ONNX file, ours or not
clcalib evaluate runs/deployed deployed.onnx theirs.onnx --evaluation images/    # several in one table
```

From Python, with `from clcalib.deployment import deploy`: `quantize(..., target="onnxruntime")` and then
`deploy(result, "model.onnx", evaluation)`, which returns the result with `record.deployment`.

A *target* says which tensors a runtime's kernels need quantized, their widths and their signs.  Calibration runs under
these rules, so nothing changes when the file is written; `clcalib describe --target NAME` prints them for a network.

| target | weights | activations | quantizers stand |
| --- | --- | --- | --- |
"""
PROOF = """\

## What is told before calibration

Widths, signs, grids and operators that a target lacks are refused at once.  Then the file is *rehearsed*: quantizers
get quick ranges, the file is written, loaded in the target's runtime and run with batches of 2, 1 and 3 of the
calibration images.  What fails there would have failed after calibration, and is an error now.  It says what happened;
where, if the writer or the runtime tells; which other targets were tried and took the network; and whether it helps
to leave the layer in float.

```text
error: target onnxruntime does not take the network, it was tried before calibration: loading the file in ONNX Runtime
1.32.0 failed (... Could not find an implementation for Erf(13) node with name 'erf'), at aten.erf in smooth, node erf
what helps:
  - --target openvino or torch: written and run here just now
  - --target paper or tensorrt or executorch: not run here, and nothing is known against it
  - write the operation in another way
  - leave the operator outside: --submodule PART quantizes a part of the network
```

* A batch of another size than the captured one that does not run is an error of its own: the batch is baked in.
* A runtime that is not installed is a warning with the command that installs it; for `tensorrt` and `paper` writing is
  all that is tried, and a network of token numbers is loaded and not run.
* `--dry-run` and `clcalib describe --target` do the same, the latter on noise.  With a budget or `--max-drop` it comes
  before the search and before the first run.  `quantize(..., is_rehearsed=False)` leaves it out.
* It takes seconds of CPU time, for `torch` some more, as PyTorch's graph is rewritten for its kernels
  ([rehearsal.json](../benchmarks/results/rehearsal.json)); an error takes as long again for each target that is tried.
* Codes are not compared: ranges are not the final ones.  What kernels compute is proved after calibration.

## The proof

Every run for a target whose runtime is installed is checked at once (there is none for `tensorrt`), and `run.json` has
the result under `deployment`: on held-out images, the runtime's integer codes are compared with the simulation's at the
output of every quantizer.  *Own* differences are those that a kernel makes by itself, given the same codes one
quantizer before: kernels round in another order, and may come out one code higher or lower; more is a defect, and a
warning.  Small differences add up on the way, so whole networks agree on nearly all images and not on all.

Activations of fewer than 8 bits run on the same kernels: their codes are clipped to fewer values after
QuantizeLinear, which is exact, whereas a clip of the float values in front of it is dropped or keeps the kernel in
float ([decision 14](decisions/0014-narrow-codes-on-integer-kernels.md)).  They gain no speed over 8 bits on these
processors; 4-bit weights make the file smaller.  What each runtime needs was measured operator by operator:
[runtimes.md](runtimes.md).

`torch` writes `model.pt2`, an exported program (`clcalib.export.program.x86.load_program` loads it, `lower` puts
oneDNN's integer kernels into it, `torch.compile` does the same) and is compared like the others.  `executorch` writes
`model.pte`, inside of which codes cannot be seen; the same program is therefore written once more, with all codes among
its outputs, and these are compared (XNNPACK chooses the same kernels for it), while logits are those of `model.pte`.
The tables below have the two runtimes of ONNX files.  [Architectures](deployment_coverage.md) of torchvision and timm
were written for `onnxruntime` and compared as well.

## Measured

"""


def write(folder: Path, without_vnni: Path) -> None:
    rows = cells(folder)
    write_atomically(RESULTS / "deploy.json", (json.dumps({"cells": rows}, indent=1) + "\n").encode())
    write_atomically(PAGE, page(rows, cells(without_vnni)).encode())
    print(PAGE)


def cells(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]


def page(rows: list[dict[str, Any]], without_vnni: list[dict[str, Any]] | None = None) -> str:
    text = INTRODUCTION + "\n".join(_target(name) for name in TARGETS) + "\n" + PROOF
    for network in NAMES:
        own = [row for row in rows if row["network"] == network]
        if own:
            text += _section(network, own)
    text += _conditions(rows)
    if without_vnni:
        text += _without_vnni(without_vnni)
    if TORCH_PROGRAM.is_file():
        text += _torch_program(json.loads(TORCH_PROGRAM.read_text()))
    return text


def _target(name: str) -> str:
    target = TARGETS[name]
    signs = [", symmetric" if flag else "" for flag in (target.is_weight_symmetric, target.is_activation_symmetric)]
    if signs[0] and target.asymmetric_below > target.weight_bits[0]:
        signs[0] += f" at {target.weight_bits[-1]}"
    widths = [f"{bits[0]} to {bits[-1]}" if len(bits) > 1 else str(bits[0]) for bits in
              (target.weight_bits, target.activation_bits)]  # fmt: skip
    return f"| `{name}` | {widths[0]} bits{signs[0]} | {widths[1]} bits{signs[1]} | {target.summary} |"


def _section(network: str, rows: list[dict[str, Any]]) -> str:
    first = rows[0]
    batches = list(first["int8_speedup"])
    text = f"### {NAMES[network]}\n\nFloat: {first['float_top1']:.2f} % of {first['test_images']:,} images.\n\n"
    heads = [f"speed-up, {batch}" for batch in batches]
    columns = ["widths", "method", "runtime", "top-1 [%]", *heads, "file smaller", "layers in integers",
               "largest difference in codes", "same class"]  # fmt: skip
    text += f"| {' | '.join(columns)} |\n|{' --- |' * len(columns)}\n"
    for row in sorted(rows, key=lambda row: (-row["weights"], -row["activations"], row["target"])):
        layers = row["integer_layers"] + row["float_layers"]
        cells = [
            f"W{row['weights']}A{row['activations']}",
            row["recipe"],
            TITLES[row["target"]],
            f"{row['top1']:.2f}",
            *(f"{row['int8_speedup'][batch]:.2f}x" for batch in batches),
            f"{row['size_ratio']:.2f}x",
            f"{row['integer_layers']} of {layers}",
            f"{row['max_code_difference']} (in {100 * row['share_of_codes']:.2g} % of codes)",
            f"{100 * row['same_class']:.2f} % of {row['compared_images']:,}",
        ]
        text += f"| {' | '.join(cells)} |\n"
    return text + "\n"


def _without_vnni(rows: list[dict[str, Any]]) -> str:
    """What an older processor makes of 8-bit weights."""
    batches = list(rows[0]["int8_speedup"])
    columns = ["target", "widths", "method", "top-1, simulated [%]", "top-1 [%]", "same class",
               "largest difference in codes", "file smaller",
               *(f"speed-up, {batch}" for batch in batches)]  # fmt: skip
    text = (
        "\n### Processors without VNNI\n\nThey multiply unsigned by signed bytes and add two products in 16 bits: "
        "255 x 127 x 2 overflows, and the sum is cut off.  The targets that end in `-avx2` use 7 of 8 bits for weights "
        "([decision 19](decisions/0019-seven-bits-without-vnni.md)); `clcalib quantize` says before calibration where "
        "this processor needs them.  ResNet-20 ([runs](../benchmarks/results/deploy_without_vnni)):\n\n"
        f"| {' | '.join(columns)} |\n|{' --- |' * len(columns)}\n"
    )
    for row in sorted(rows, key=lambda row: (-row["weights"], row["target"])):
        images = f"{row['compared_images']:,}"
        shown = [
            f"`{row['target']}`",
            f"W{row['weights']}A{row['activations']}",
            row["recipe"],
            f"{100 * row['top1_simulated']:.2f} of {images}",
            f"{row['top1']:.2f} of {row['test_images']:,}",
            f"{100 * row['same_class']:.2f} % of {images}",
            f"{row['max_code_difference']}",
            f"{row['size_ratio']:.2f}x",
            *(f"{row['int8_speedup'][batch]:.2f}x" if batch in row["int8_speedup"] else "-" for batch in batches),
        ]
        text += f"| {' | '.join(shown)} |\n"
    return text + (
        f"\nMeasured on {rows[0]['machine']}, which has AVX2 and no VNNI.  Integers are not what such a processor is "
        "faster with; the file is smaller all the same.\n"
    )


def _conditions(rows: list[dict[str, Any]]) -> str:
    if not rows:
        return "Nothing has been run yet.\n"
    machines = sorted({row["machine"]["processor"] if isinstance(row["machine"], dict) else str(row["machine"]) for
                       row in rows})  # fmt: skip
    runtimes = sorted({row["runtime"] for row in rows})
    images = "; ".join(
        f"{NAMES[network]} {next(row['calibration_images'] for row in rows if row['network'] == network):,}"
        for network in NAMES
        if any(row["network"] == network for row in rows)
    )
    return (
        f"{', '.join(runtimes)} on {', '.join(machines)}.  One seed.  Calibration images: {images}.  A speed-up is the "
        "median over rounds in which float and quantized network take turns in the same runtime; above 1 is faster.  "
        "*Same class*: on how many images runtime and simulation name the same one.  The images of the larger networks "
        "are those of [imagenet.md](imagenet.md), the first of its evaluation images.\n"
    )


def _torch_program(found: dict[str, Any]) -> str:
    """What ``torch_program.py`` measured."""
    record = found["deployment"]
    layers = record["integer_layers"] + record["float_layers"]
    share = 100 * record["agreement"]
    text = (
        f"\n### PyTorch's own kernels\n\n{NAMES[found['network']]}, {found['bits']}, `{found['recipe']}`, target "
        f"`torch`, under `torch.compile`: {record['integer_layers']} of {layers} layers in integers, codes differ by "
        f"at most {record['max_code_difference']}, the same class on {share:.2f} % of {record['images']:,} images "
        "([torch_program.json](../benchmarks/results/torch_program.json)).\n\n"
        "| batch | speed-up, CPU time | lowest to highest round | speed-up, wall time |\n| --- | --- | --- | --- |\n"
    )
    for batch, row in found["batches"].items():
        spread = f"{row['cpu_lowest']:.2f}x to {row['cpu_highest']:.2f}x"
        text += f"| {batch} | {row['cpu_speedup']:.2f}x | {spread} | {row['speedup']:.2f}x |\n"
    return text + (
        f"\nFloat and int8 program are both compiled by Inductor and take turns for {found['rounds']} rounds; PyTorch "
        f"{found['lowered_by']}, {found['machine']}, {found['threads']} thread.  The machine was busy with other work, "
        "so that the ratio of CPU times says more than that of wall times.\n"
    )


if __name__ == "__main__":
    write(RESULTS / "deploy")
