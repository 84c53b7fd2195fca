"""Which architectures are captured and quantized: a table of torchvision's and timm's families with random weights.

Each architecture runs in a process of its own with a limit on processor time, and leaves
``results/coverage/NAME.json``, so a broken one stops nothing and an interrupted table goes on where it was.
What is done to one:

* built with random weights; parameters that start as one small number everywhere (zero-initialised residual branches,
  layer scales of 1e-6) become 0.5, or else their branches are nothing; heads of zeros become small random numbers;
  batch norm gets its statistics from 16 random images, as a cumulative mean over two batches in train mode (of batch
  norm alone), so activations stay in range;
* captured; the graph's output is compared with the model's, and suffix(body(prefix(x))) with the graph's, bit for
  bit, at ``CHECKED_UNITS`` units spread over the network;
* quantized to W4A4 with min-max ranges; QDrop with ``STEPS`` steps on ``IMAGES`` images for each unit.  The mean
  ratio of a unit's reconstruction error after and before (geometric, over the units with an error) says that the
  reconstruction works there; with so few steps and random weights it says nothing of accuracy.

    python benchmarks/coverage.py run [--only NAME ...] [--redo]    # what is missing, then the table
    python benchmarks/coverage.py table                             # results/coverage.json and docs/coverage.md
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import resource
import signal
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import timm
import torch
import torchvision
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

import clcalib
from architectures import ARCHITECTURES
from clcalib.calibrate.observer import SilentObserver
from clcalib.calibrate.walk import Walk
from clcalib.capture.chain import Chain, capture
from clcalib.capture.describe import float_operators
from clcalib.capture.graph import data_nodes, operator_name
from clcalib.capture.outputs import whole
from clcalib.errors import ClcalibError
from clcalib.files import write_atomically
from clcalib.quant.insert import chain_policy, insert_quantizers
from clcalib.quant.policy import LayerPolicy
from clcalib.quant.ranges import RANGE_RULES
from common import RESULTS, ROOT, provenance, write_result

FOLDER = RESULTS / "coverage"
PAGE = ROOT / "docs" / "coverage.md"
STEPS, IMAGES, BATCH, CHECKED_UNITS, SEED = 10, 16, 8, 4, 0
LIMIT, LONGEST = 600, 3600  # seconds for one architecture: of the processor's time, and by the clock
PRODUCTS = ("matmul", "bmm", "baddbmm", "einsum", "scaled_dot_product_attention")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=("run", "table"))
    parser.add_argument("--only", nargs="+", default=list(ARCHITECTURES), choices=list(ARCHITECTURES))
    parser.add_argument("--redo", action="store_true", help="also what has a result")
    options = parser.parse_args()
    if options.action == "run":
        for name in options.only:
            if options.redo or not path_of(name).exists():
                in_own_process(name)
    table()


def path_of(name: str) -> Path:
    return FOLDER / f"{name}.json"


def write(name: str, row: dict[str, Any]) -> None:
    architecture = ARCHITECTURES[name]
    about = {"family": architecture.family, "library": architecture.library, "pixels": architecture.size}
    FOLDER.mkdir(parents=True, exist_ok=True)
    content = json.dumps(about | row | {"provenance": versions()}, indent=1) + "\n"
    write_atomically(path_of(name), content.encode())


def versions() -> dict[str, Any]:
    return provenance(torchvision=torchvision.__version__, timm=timm.__version__, seed=SEED)


def in_own_process(name: str) -> None:
    start = time.time()
    process = multiprocessing.get_context("fork").Process(target=one, args=(name,))  # what is imported, it has
    process.start()
    process.join(LONGEST)
    if process.is_alive() or process.exitcode == -signal.SIGXCPU:
        process.kill()
        write(name, {"error": f"no result within {LIMIT} s of processor time or {LONGEST} s by the clock"})
    elif process.exitcode:
        write(name, {"error": f"the process ended with {process.exitcode}"})
    row = json.loads(path_of(name).read_text())
    print(
        f"{name}: {row.get('error') or row.get('quantization_error') or 'ok'} ({time.time() - start:.0f} s)", flush=True
    )


def one(name: str) -> None:
    resource.setrlimit(resource.RLIMIT_CPU, (LIMIT, LIMIT + 10))
    try:
        write(name, measured(name))
    except Exception as error:
        write(name, {"error": f"{type(error).__name__}: {str(error).splitlines()[0][:300]}"})


def measured(name: str) -> dict[str, Any]:
    architecture = ARCHITECTURES[name]
    torch.manual_seed(SEED)
    images = torch.randn(IMAGES, 3, architecture.size, architecture.size)
    model = prepared(architecture.build(), images)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        clock = time.process_time()
        try:
            chain = capture(model, images[:2])
        except ClcalibError as error:
            return {"error": str(error)}
        row = (
            facts(chain) | {"capture_seconds": round(time.process_time() - clock, 1)} | exactness(chain, model, images)
        )
        clock = time.process_time()
        try:
            row |= quantized(chain, images)
        except ClcalibError as error:
            row["quantization_error"] = str(error)
        return row | {"quantization_seconds": round(time.process_time() - clock, 1)}


@torch.no_grad()
def prepared(model: nn.Module, images: Tensor) -> nn.Module:
    """The model in eval mode, with activations of sensible size (see above)."""
    for name, parameter in model.named_parameters():
        is_vector = parameter.numel() == max(parameter.shape, default=1) and not name.endswith("bias")
        if is_vector and bool((parameter == parameter.flatten()[0]).all()) and parameter.flatten()[0].abs() < 0.2:
            parameter.fill_(0.5)
        elif parameter.dim() > 1 and not bool(parameter.any()):
            parameter.normal_(std=0.02)
    model.eval()
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.reset_running_stats()
            module.momentum = None  # a cumulative mean
            module.train()
    for batch in images.split(BATCH):
        model(batch)
    return model.eval()


def facts(chain: Chain) -> dict[str, Any]:
    """What the chain looks like, and what of it is not quantized."""
    data = data_nodes(chain.module.graph)
    policy = chain_policy(chain, clcalib.Bits(4, 4))
    weighted = [node for node in data if "conv" in operator_name(node) or operator_name(node) == "linear"]
    return {
        "units": len(chain.units),
        "blocks": sum(unit.kind == "block" for unit in chain.units),
        "most_tensors_at_a_cut": max(len(unit.outputs) for unit in chain.units),
        "outputs": len(chain.output_names),
        "layers": len(chain.layers),
        "layers_in_float": [row.layer for row in policy if row.weight is None and row.layer in chain.layers]
        + [node.name for node in weighted if node.args[1].op != "get_attr"],  # a weight made from the images
        "products": len(chain.products),
        "float_products": products_in_float(chain, policy),
        "parameters": sum(parameter.numel() for parameter in chain.module.parameters()),
    }


def products_in_float(chain: Chain, policy: Sequence[LayerPolicy]) -> dict[str, int]:
    """Matrix products of two activations that no row of the policy quantizes, by operator."""
    quantized = {row.layer for row in policy if row.input is not None}
    return {name: count for name, count in float_operators(chain, quantized).items() if name in PRODUCTS}


@torch.no_grad()
def exactness(chain: Chain, model: nn.Module, images: Tensor) -> dict[str, Any]:
    """Largest difference of graph and model, relative to the largest output, and whether all checked cuts are exact."""
    few = images[:3]
    expected = torch.utils._pytree.tree_leaves(model(few))
    own = torch.utils._pytree.tree_leaves(whole(chain.module)(few))
    difference = max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(own, expected, strict=True))
    ends = chain.subgraph((chain.input_name,), chain.output_names)(few)
    count = len(chain.units)
    checked = sorted({round(i * (count - 1) / (CHECKED_UNITS - 1)) for i in range(CHECKED_UNITS)})
    exact = 0
    for index in checked:
        state = chain.body(index)(*chain.prefix(index)(few))
        results = chain.subgraph(chain.units[index].outputs, chain.output_names)(*state)
        exact += all(torch.equal(a, b) for a, b in zip(results, ends, strict=True))
    return {"folded_difference": difference, "units_checked": len(checked), "units_exact": exact}


def quantized(chain: Chain, images: Tensor) -> dict[str, Any]:
    """A short reconstruction of every unit."""
    rule = RANGE_RULES["minmax"]
    policy = chain_policy(chain, clcalib.Bits(4, 4))
    copy = insert_quantizers(chain, policy, rule)
    recipe = clcalib.recipes.qdrop(steps=STEPS, batch_size=BATCH)
    walk = Walk(chain, copy, recipe, rule, {}, SEED, SilentObserver(), is_guarded=False)  # what is learned, as it is
    traces = list(walk.run(images, None))
    ratios = [trace.error_after / trace.error_before for trace in traces if trace.error_before > 0]
    return {
        "error_ratio": round(math.exp(sum(map(math.log, ratios)) / len(ratios)), 4),
        "units_better": sum(ratio < 1 for ratio in ratios),
        "units_with_error": len(ratios),
    }


def table() -> None:
    rows = {name: json.loads(path_of(name).read_text()) for name in ARCHITECTURES if path_of(name).exists()}
    settings = {"steps": STEPS, "images": IMAGES, "batch": BATCH, "bits": "W4A4", "ranges": "minmax", "recipe": "qdrop"}
    write_result("coverage", {"settings": settings, "provenance": versions(), "architectures": rows})
    lines = [line for name, row in rows.items() for line in [shown(name, row)]]
    captured = [row for row in rows.values() if "error" not in row]
    done = [row for row in captured if "error_ratio" in row]
    exact = sum(row["units_exact"] == row["units_checked"] for row in captured)
    better = sum(row["error_ratio"] < 1 for row in done)
    PAGE.write_text(
        PAGE_HEAD.format(
            total=len(rows),
            listed=len(ARCHITECTURES),
            captured=len(captured),
            done=len(done),
            exact=exact,
            better=better,
            steps=STEPS,
            images=IMAGES,
            checked=CHECKED_UNITS,
            torch=torch.__version__,
            torchvision=torchvision.__version__,
            timm=timm.__version__,
        )
        + "\n".join(lines)
        + "\n"
        + failures(rows)
        + detectors()
    )


PAGE_HEAD = """# Which networks work

Generated by `benchmarks/coverage.py` from [coverage.json](../benchmarks/results/coverage.json); do not edit.
torch {torch}, torchvision {torchvision}, timm {timm}; random weights, the smallest variant of each family.

Of {total} architectures ({listed} are listed in `benchmarks/architectures.py`)
{captured} are captured, {done} quantized. In {exact} of {captured} the pieces
before, inside and behind a unit give the network's output bit for bit at all of up to {checked} units that were
checked. In {better} of {done} a short reconstruction (QDrop, W4A4, {steps} steps for each unit on {images}
random images) lowers the mean unit error below that of nearest rounding. No architecture has a line of code of its own.

* **units** (blocks): what is reconstructed at a time. **tensors**: the most that a cut between two units carries.
* **layers**: convolutions and linear layers, all quantized unless noted. **products**: matrix products of two
  activations (attention), all quantized unless noted.
* **folded**: largest difference of the captured network, batch norm folded, to the model, relative to its largest
  output.
* **exact**: units at which prefix, body and suffix give the network bit for bit, of those checked.
* **error**: a unit's reconstruction error after the short reconstruction, relative to nearest rounding, geometric mean.
* **seconds**: CPU time of one thread to capture + to quantize.

| architecture | family | pixels | units | tensors | layers | products | folded | exact | error | seconds |
|---|---|---|---|---|---|---|---|---|---|---|
"""


def shown(name: str, row: dict[str, Any]) -> str:
    start = f"| `{name}` | {row['family']} | {row['pixels']}"
    if "error" in row:
        return f"{start} | not captured, see below |" + " |" * 7
    in_float = f" ({len(row['layers_in_float'])} in float)" if row["layers_in_float"] else ""
    left = sum(row["float_products"].values())
    products = f"{row['products'] or '-'}" + (f" ({left} in float)" if left else "")
    ratio = f"{row['error_ratio']:.2f}" if "error_ratio" in row else "see below"
    cells = [
        f"{row['units']} ({row['blocks']})",
        row["most_tensors_at_a_cut"],
        f"{row['layers']}{in_float}",
        products,
        f"{row['folded_difference']:.0e}",
        f"{row['units_exact']}/{row['units_checked']}",
        ratio,
        f"{row['capture_seconds']:.0f} + {row['quantization_seconds']:.0f}",
    ]
    return f"{start} | " + " | ".join(str(cell) for cell in cells) + " |"


def failures(rows: dict[str, Any]) -> str:
    told = {name: row.get("error") or row.get("quantization_error") for name, row in rows.items()}
    lines = [f"* `{name}`: {message}" for name, message in told.items() if message]
    return "\n## What does not work\n\n" + ("\n".join(lines) if lines else "Nothing in this table.") + "\n"


def detectors() -> str:
    """The section that ``detectors.py`` measures."""
    path = RESULTS / "detectors.json"
    if not path.exists():
        return ""
    lines = ["", "## Detectors", "", DETECTORS_HEAD]
    for name, row in json.loads(path.read_text())["detectors"].items():
        for part, about in row["parts"].items():
            lines.append(f"* `{name}`, `{part}`: {about['units']} units, {about['layers']} layers")
        for bits, found in row["agreement"].items():
            lines.append(
                f"* `{name}`, {bits}: {100 * found['matched']:.0f} % of {found['float_detections']} boxes matched"
            )
    return "\n".join(lines) + "\n"


DETECTORS_HEAD = """`submodule="backbone"` quantizes a part of a model; anchors, the choice of boxes and the suppression
of overlaps stay in float around it. Generated from [detectors.json](../benchmarks/results/detectors.json): parts
quantized one after the other, random weights, small images; learned rounding with a few steps, of the backbone alone.
A box of the float network is matched by
one of the same label with an intersection over union of at least 0.5 and a score above the same threshold. Scores of a
network with random weights lie close together, so these shares are far below what a trained detector keeps.
"""


if __name__ == "__main__":
    main()
