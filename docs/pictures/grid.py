"""A trained weight as a histogram, and the codes of two range rules on it."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file

from clcalib.quant.functional import fake_quantize
from clcalib.quant.ranges import RANGE_RULES
from clcalib.quant.spec import QuantSpec
from svg import FAINT, GREY, ORANGE, Page, Panel

WEIGHTS = Path(__file__).resolve().parent.parent.parent / "examples" / "demo" / "resnet20.safetensors"
LAYER, BITS, BINS = "layer2.1.conv1.weight", 3, 80
TITLES = {"minmax": "minmax: the whole range", "mse_grid": "mse_grid: the least error"}


def draw() -> str:
    values = load_file(WEIGHTS)[LAYER].flatten().double()
    page = Page(960, 330, f"Two range rules on {LAYER}")
    reach = float(values.abs().max()) * 1.05
    for place, (rule, title) in enumerate(TITLES.items()):
        spec = QuantSpec(BITS)
        found = RANGE_RULES[rule](values.float(), spec)
        scale, zero = float(found.scale), float(found.zero_point)
        panel = Panel(page, (40 + place * 480, 60, 410, 210), (-reach, reach), (0, 1))
        _bars(panel, values, reach)
        codes = [scale * (code - zero) for code in range(spec.q_min, spec.q_max + 1)]
        for code in codes:
            panel.curve([(code, 0), (code, 1)], ORANGE, 1.6)
            panel.page.circle(*panel.at(code, 0), 3.5, ORANGE)
        error = values - fake_quantize(values, found.scale, found.zero_point, spec.q_min, spec.q_max).double()
        share = float(error.square().sum() / values.square().sum())
        panel.frame(title, f"value of a weight; step {scale:.3f}, squared error {share:.1%} of theirs", "")
        panel.x_ticks((-0.3, -0.2, -0.1, 0, 0.1, 0.2, 0.3), ("-0.3", "-0.2", "-0.1", "0", "0.1", "0.2", "0.3"))
    return page.text()


def _bars(panel: Panel, values: torch.Tensor, reach: float) -> None:
    counts = torch.histc(values, BINS, -reach, reach).tolist()
    width = 2 * reach / BINS
    for index, count in enumerate(counts):
        x, y = panel.at(-reach + index * width, count / max(counts))
        right, bottom = panel.at(-reach + (index + 1) * width, 0)
        panel.page.rectangle(x, y, right - x, bottom - y, FAINT if count < 1 else "#B9C6D3", GREY if count else "none")
