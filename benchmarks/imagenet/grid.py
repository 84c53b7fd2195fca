"""Which methods are compared on the ImageNet networks, at which widths; the cells are those of the study's kind."""

from __future__ import annotations

from study.grid import CONTRASTIVE, Cell

# 8-bit weights are not worth a comparison of methods on MobileNetV2: its own lie on an 8-bit grid.
WIDTHS = ((8, 8), (4, 8), (4, 4), (3, 3), (2, 4), (2, 2))
HOSTS = ("qdrop", "fast", "pd_quant")
SEEDS = (0, 1, 2)
STEPS = 100
CALIBRATION_IMAGES = 256
# Rates of short runs have a ceiling (``short_run_rate``), which below so many steps leaves the rounding undecided: with
# 100 steps at 0.01, Adam moves a variable by 1 at most, of some 2.4.  Fewer steps have a rate as many times as large.
DECISIVE_STEPS = 400


def cell(
    network: str,
    widths: tuple[int, int],
    host: str,
    *,
    is_contrastive: bool = False,
    steps: int = STEPS,
    images: int = CALIBRATION_IMAGES,
) -> Cell:
    """The cell of a host, or of ``nearest``, which takes no steps."""
    weights, activations = widths
    steps = 0 if host == "nearest" else steps
    name = f"w{weights}a{activations}-{host}" + ("-contrastive" if is_contrastive else "")
    part, term = f"steps-{steps}-images-{images}", CONTRASTIVE if is_contrastive else None
    rate = max(1.0, DECISIVE_STEPS / steps) if host in ("qdrop", "pd_quant") else 1.0
    return Cell(part, network, name, host, weights, activations, steps, term, rate, images)


def cells(network: str, steps: int = STEPS, images: int = CALIBRATION_IMAGES) -> list[Cell]:
    """Every host plain and with the term, at every pair of widths; nearest rounding first."""
    size = {"steps": steps, "images": images}
    found = [cell(network, widths, "nearest", **size) for widths in WIDTHS]
    for widths in WIDTHS:
        for host in HOSTS:
            found += [cell(network, widths, host, is_contrastive=own, **size) for own in (False, True)]
    return found
