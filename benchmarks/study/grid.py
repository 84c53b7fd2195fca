"""What the study runs: the declared cells of its four parts, and how they are compared.

A cell has a key, PART/NETWORK/NAME, that is also the place of its results.  A cell that serves two parts exists once.
"""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any

import clcalib
from clcalib.calibrate.recipes import RECIPES

STEPS = 300
CALIBRATION_IMAGES = 1024
WIDTHS = ((4, 4), (2, 4), (4, 2), (3, 3), (2, 2))
NETWORK_NAMES = ("mobilenetv2", "resnet20", "demo", "resnet56")  # the cheap ones first
SEEDS = {"hosts": (0, 1, 2, 3, 4), "rates": (0, 1, 2), "ablations": (0, 1, 2), "biases": (0, 1, 2), "tuning": (0, 1, 2)}

# The default of the study: every fourth step, as in the other benchmarks; all else as ``with_contrastive`` has it.
CONTRASTIVE: dict[str, Any] = {"interval": 4, "images": "all"}

# Hosts: a recipe and its options.  PD-Quant's correction has 20 steps of its 500, which would take 50 times as long as
# all else together.
HOSTS: dict[str, tuple[str, dict[str, Any]]] = {
    "scale_only": ("scale_only", {}),
    "adaround": ("adaround", {}),
    "brecq": ("brecq", {}),
    "brecq_fisher": ("brecq", {"is_fisher_weighted": True}),
    "qdrop": ("qdrop", {}),
    "fast": ("fast", {}),
    "pd_quant": ("pd_quant", {"correction_steps": 20}),
    "genie_m": ("genie_m", {}),
    "straight_through": ("straight_through", {}),
}
# What the papers set otherwise for MobileNetV2, here for its relatives too; an option that a recipe does not have is
# left out.
_MOBILE = {"rounding_weight": 0.1, "temperature": 1.0, "correction_strength": 0.005}
NETWORK_OPTIONS = {
    **{name: _MOBILE for name in ("mobilenetv2", "mobilenet_v2", "efficientnet_lite0", "efficientnet_lite1")},
    "efficientnet_lite2": _MOBILE,
}
TUNED = frozenset({"fast"})  # its penalty is its own

RATE_FACTORS = (0.5, 1.0, 2.0, 4.0)
RATE_NETWORKS = ("resnet20", "mobilenetv2")


@dataclasses.dataclass(frozen=True)
class Cell:
    """One method on one network at one pair of widths.

    Args:
        part: a name in ``PARTS``, with the number of steps behind it where that is not the default.
        network: a name in ``NETWORKS``.
        name: of the cell, unique among those of its part and network.
        host: a name in ``HOSTS``, or ``nearest``.
        weights, activations: bits.
        steps: for each unit and phase.
        contrastive: settings of the term, None for none.
        rate: multiplies the host's rounding rate (that of its scales, where it rounds nothing).
        calibration_images: how many.
        bias_rate: of ``with_biases``, None without it.
        tuning: settings of ``with_tuning``, None without it.
    """

    part: str
    network: str
    name: str
    host: str
    weights: int
    activations: int
    steps: int = STEPS
    contrastive: dict[str, Any] | None = None
    rate: float = 1.0
    calibration_images: int = CALIBRATION_IMAGES
    bias_rate: float | None = None
    tuning: dict[str, Any] | None = None

    @property
    def key(self) -> str:
        return f"{self.part}/{self.network}/{self.name}"

    def missing(self) -> str | None:
        """Why the cell cannot be run with this version, or None."""
        recipe = HOSTS.get(self.host, ("nearest", {}))[0]
        return None if recipe in RECIPES else f"there is no recipe {recipe}"

    def make(self) -> clcalib.Recipe:
        if self.host == "nearest":
            return RECIPES["nearest"]()
        name, options = HOSTS[self.host]
        known = inspect.signature(RECIPES[name]).parameters
        special = {} if self.host in TUNED else NETWORK_OPTIONS.get(self.network, {})
        special = {option: value for option, value in special.items() if option in known}
        recipe = with_rate(RECIPES[name](steps=self.steps, **{**options, **special}), self.rate)
        recipe = recipe if self.bias_rate is None else clcalib.with_biases(recipe, rate=self.bias_rate)
        recipe = recipe if self.tuning is None else clcalib.with_tuning(recipe, **self.tuning)
        return recipe if self.contrastive is None else clcalib.with_contrastive(recipe, **self.contrastive)


def with_rate(recipe: clcalib.Recipe, factor: float) -> clcalib.Recipe:
    """The recipe with its rounding rates multiplied, or those of its scales, if it rounds nothing."""
    if factor == 1.0:
        return recipe
    field = "rounding_rate" if any(phase.rounding_rate is not None for phase in recipe.phases) else "activation_rate"
    phases = []
    for phase in recipe.phases:
        rate = getattr(phase, field)
        phases.append(phase if rate is None else dataclasses.replace(phase, **{field: rate * factor}))
    return dataclasses.replace(recipe, phases=tuple(phases))


def _folder(part: str, steps: int) -> str:
    return part if steps == STEPS else f"{part}-steps-{steps}"


def hosts(steps: int = STEPS) -> list[Cell]:
    """Every host plain and with the term, at every pair of widths, on every network; nearest rounding first."""
    cells = []
    for network in NETWORK_NAMES:
        for weights, activations in WIDTHS:
            for host in ("nearest", *HOSTS):
                for term in (None, CONTRASTIVE) if host != "nearest" else (None,):
                    name = f"w{weights}a{activations}-{host}" + ("" if term is None else "-contrastive")
                    part = "hosts" if host == "nearest" else _folder("hosts", steps)
                    cells.append(Cell(part, network, name, host, weights, activations, steps, term))
    return cells


def host_key(network: str, host: str, *, is_contrastive: bool, widths: str = "w2a2", steps: int = STEPS) -> str:
    """The key of a cell of the part ``hosts``."""
    return f"{_folder('hosts', steps)}/{network}/{widths}-{host}" + ("-contrastive" if is_contrastive else "")


def rates(steps: int = STEPS) -> list[Cell]:
    """Every host plain and with the term at several rates, at W2A2; the rate as it is belongs to ``hosts``."""
    cells = []
    for network in RATE_NETWORKS:
        for host in HOSTS:
            for factor in RATE_FACTORS:
                for term in (None, CONTRASTIVE):
                    if factor != 1.0:
                        name = f"{host}-rate-x{factor:g}" + ("" if term is None else "-contrastive")
                        part = _folder("rates", steps)
                        cells.append(Cell(part, network, name, host, 2, 2, steps, term, factor))
    return cells


def rate_key(network: str, host: str, factor: float, *, is_contrastive: bool, steps: int = STEPS) -> str:
    """The key of a host at a rate."""
    if factor == 1.0:
        return host_key(network, host, is_contrastive=is_contrastive, steps=steps)
    return f"{_folder('rates', steps)}/{network}/{host}-rate-x{factor:g}" + ("-contrastive" if is_contrastive else "")


# Ablations: one factor at a time around the default, on QDrop, ResNet-20, W2A2.  None is the host without the term.
READS = ("features", "logits")
FORMS = ("info_nce", "sigmoid_nce", "crd_nce", "normalised_crd_nce")
FACTORS: dict[str, dict[str, dict[str, Any] | None]] = {
    "loss and read": {f"{loss}, {read}": {"loss": loss, "read": read} for loss in FORMS for read in READS},
    "temperature": {f"{value:g}": {"temperature": value} for value in (0.05, 0.1, 0.2, 0.5, 1.0)},
    "weight": {"0": None, **{f"{value:g}": {"weight": value} for value in (0.1, 0.3, 1.0, 3.0, 10.0)}},
    "false negatives": {name: {"false_negatives": name} for name in ("keep", "same_prediction", "similar")},
    "keys": {"32, of the batch": {"keys": "batch"}, "128": {"keys": 128}, "1024": {"keys": None}},
    "critic": {
        "frozen remainder": {},
        "frozen remainder, centred": {"critic": "centred_cosine"},
        "learned head": {"read": "learned_head"},
        "pooled activations": {"read": "pooled_activations"},
        "raw activations": {"read": "activations"},
    },
    "interval, images": {
        "1, all": {"interval": 1, "images": "all"},
        "4, all": {"interval": 4, "images": "all"},
        "8, 8": {"interval": 8, "images": 8},
        "4, 4": {"interval": 4, "images": 4},
    },
}
IMAGE_COUNTS = (32, 128, 512, 1024)
# A setting that is the default says nothing, so that it is no cell of its own.
DEFAULTS = {
    name: parameter.default
    for name, parameter in inspect.signature(clcalib.with_contrastive).parameters.items()
    if parameter.default is not inspect.Parameter.empty
} | CONTRASTIVE


def ablation(changes: dict[str, Any] | None, images: int = CALIBRATION_IMAGES, steps: int = STEPS) -> Cell:
    """The cell of one changed setting; the default and the host alone are cells of ``hosts``."""
    changed = {name: value for name, value in (changes or {}).items() if DEFAULTS[name] != value}
    term = None if changes is None else CONTRASTIVE | changed
    if not changed and images == CALIBRATION_IMAGES:
        name = "w2a2-qdrop" + ("" if term is None else "-contrastive")
        return Cell(_folder("hosts", steps), "resnet20", name, "qdrop", 2, 2, steps, term)
    words = [f"{name}-{value}" for name, value in changed.items()] or ["plain" if term is None else "default"]
    words += [f"calibration-{images}"] if images != CALIBRATION_IMAGES else []
    part = _folder("ablations", steps)
    return Cell(part, "resnet20", "_".join(words), "qdrop", 2, 2, steps, term, calibration_images=images)


def ablation_tables(steps: int = STEPS) -> dict[str, dict[str, tuple[Cell, Cell]]]:
    """By factor and level: the cell with the term, and the plain one that it is compared with."""
    plain = ablation(None, steps=steps)
    tables = {
        factor: {level: (ablation(changes, steps=steps), plain) for level, changes in levels.items()}
        for factor, levels in FACTORS.items()
    }
    pairs = {f"{count}": (ablation({}, count, steps), ablation(None, count, steps)) for count in IMAGE_COUNTS}
    return {**tables, "calibration images": pairs}


def ablations(steps: int = STEPS) -> list[Cell]:
    """Every cell that the tables name, the plain ones too; each once."""
    pairs = [pair for levels in ablation_tables(steps).values() for pair in levels.values()]
    return list({cell.key: cell for pair in pairs for cell in reversed(pair)}.values())


# Trained biases beside each host without them, on the same machine; and `fast` at other rates of theirs.
BIAS_HOSTS = ("fast", "qdrop", "brecq", "adaround", "scale_only", "straight_through")
BIAS_NETWORKS = ("mobilenetv2", "resnet20", "demo")
BIAS_WIDTHS = ((2, 2), (4, 4))
BIAS_RATE = 0.03
BIAS_RATES = (0.01, 0.1)


def bias_cell(
    network: str, host: str, rate: float | None, widths: tuple[int, int] = BIAS_WIDTHS[0], steps: int = STEPS
) -> Cell:
    """A host with trained biases, or without, None."""
    weights, activations = widths
    tail = "" if rate is None else "-biases" if rate == BIAS_RATE else f"-biases-rate-{rate:g}"
    name = f"w{weights}a{activations}-{host}{tail}"
    return Cell(_folder("biases", steps), network, name, host, weights, activations, steps, bias_rate=rate)


def bias_pairs(steps: int = STEPS) -> list[tuple[Cell, Cell]]:
    """Each cell with trained biases, and the one without that it is compared with."""
    pairs = []
    for network in BIAS_NETWORKS:
        for widths in BIAS_WIDTHS:
            rated = [(host, BIAS_RATE) for host in BIAS_HOSTS]
            rated += [("fast", rate) for rate in BIAS_RATES] if widths == BIAS_WIDTHS[0] else []
            for host, rate in rated:
                ours, plain = (bias_cell(network, host, own, widths, steps) for own in (rate, None))
                pairs.append((ours, plain))
    return pairs


def biases(steps: int = STEPS) -> list[Cell]:
    """Every cell of these pairs, each once."""
    return list({cell.key: cell for pair in bias_pairs(steps) for cell in reversed(pair)}.values())


# Tuning of the whole network behind hosts with trained biases, beside the same without it.
TUNINGS: dict[str, dict[str, Any]] = {
    "tuning": {},
    "tuning-as-they-are": {"augmentation": []},
    "tuning-steps-600": {"steps": 600},
}
TUNING_HOSTS = ("fast", "qdrop")


def tuning_pairs(steps: int = STEPS) -> list[tuple[Cell, Cell]]:
    """Each cell with tuning, and the one without that it is compared with; it is one of the part ``biases``."""
    pairs = []
    for network in BIAS_NETWORKS:
        for widths in BIAS_WIDTHS:
            named = [(host, "tuning") for host in TUNING_HOSTS]
            named += [("fast", name) for name in list(TUNINGS)[1:]] if widths == BIAS_WIDTHS[0] else []
            for host, name in named:
                plain = bias_cell(network, host, BIAS_RATE, widths, steps)
                ours = {"part": _folder("tuning", steps), "name": f"{plain.name}-{name}", "tuning": TUNINGS[name]}
                pairs.append((dataclasses.replace(plain, **ours), plain))
    return pairs


def tunings(steps: int = STEPS) -> list[Cell]:
    """The cells with tuning."""
    return [ours for ours, _ in tuning_pairs(steps)]


PARTS = {"hosts": hosts, "rates": rates, "ablations": ablations, "biases": biases, "tuning": tunings}
