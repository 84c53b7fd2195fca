"""Raising the widths of the units that hurt most, run after run, until an accuracy is kept.

A round is a whole run of ``quantize``.  What it loses is measured on images that decide; the record's accuracies are
those on other images, since the former were used to choose and are optimistic.

The most sensitive units, which together make up half of the divergence that single units cause
(``evaluate/sensitivity.py``), get the next width: 2, 3, 4, 6, 8 bits, for weights and inputs.
"""

from __future__ import annotations

import dataclasses
import glob
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from clcalib.calibrate.caches import RANGE_IMAGES
from clcalib.calibrate.observer import Observer, SilentObserver
from clcalib.calibrate.recipe import Recipe
from clcalib.capture.chain import Chain, capture
from clcalib.capture.describe import describe
from clcalib.capture.placing import move
from clcalib.data.calibration import CalibrationSet, EvaluationSet
from clcalib.durable.state import has_state
from clcalib.errors import ArgumentError, ClcalibWarning, TargetNotMetWarning
from clcalib.evaluate.accuracy import agreement, logits, top1
from clcalib.evaluate.sensitivity import unit_sensitivities
from clcalib.modes import usual_modes
from clcalib.pipeline import QuantizationResult, quantize
from clcalib.quant.policy import RAISED, Bits, LayerPolicy, Override, Overrides
from clcalib.quant.reparameterize import reparameterize_layer_norm
from clcalib.quant.spec import QuantSpec
from clcalib.report.record import TargetRecord, TargetRound

LADDER = (2, 3, 4, 6, 8)
SHARE = 0.5  # of the summed divergence, which the units that are raised in a round make up
SENSITIVITY_IMAGES = 256
ROUNDS = 6


@usual_modes()
def quantize_to_target(
    model: nn.Module,
    calibration: CalibrationSet,
    *,
    max_drop: float,
    deciding: EvaluationSet,
    recipe: Recipe,
    bits: Bits,
    rounds: int = ROUNDS,
    overrides: Overrides | None = None,
    observer: Observer | None = None,
    **options: Any,
) -> QuantizationResult:
    """Quantize, and raise widths until at most ``max_drop`` points are lost.

    Args:
        model: as for ``quantize``.
        calibration: as for ``quantize``.
        recipe: as for ``quantize``.
        observer: as for ``quantize``.
        max_drop: the most that may be lost on ``deciding``, in percentage points of top-1 accuracy, or without labels
            of agreement with the float network.
        deciding: images that choose the widths.  They must not be those that report (``options["evaluation"]``):
            ``clcalib.halves(evaluation)`` makes two sets of one.
        bits: the widths to begin with.
        rounds: the most runs.
        overrides: as for ``quantize``; layers that are left in float stay so, other widths may be raised.
        options: everything else that ``quantize`` takes; ``evaluation`` for an unbiased figure.

    Returns:
        The first result that keeps the accuracy, or else the best one; ``record.target`` has all rounds.

    Raises:
        ArgumentError: not even 8 bits everywhere keep the accuracy, or a ``submodule`` is named.

    Warns:
        TargetNotMetWarning: no round came to it.
    """
    if not 0 < max_drop < 100:
        raise ArgumentError("max_drop", "percentage points above 0 and below 100", max_drop)
    if isinstance(rounds, bool) or not isinstance(rounds, int) or rounds < 1:
        raise ArgumentError("rounds", "a whole number of runs, at least 1", rounds)
    check_is_whole(options.get("submodule"))
    observer = observer or SilentObserver()
    device = torch.device(options.get("device", "cpu"))
    patterns: Sequence[str] = options.get("unit_patterns", ())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ClcalibWarning)  # every run tells them
        chain = capture(model, calibration.images[:2], unit=recipe.unit, patterns=patterns)
    move(chain.module, device)
    if options.get("is_layer_norm_reparameterized"):  # as in every run: units are exchanged between both chains
        chain = reparameterize_layer_norm(chain, calibration.images[:RANGE_IMAGES].to(device))
    search = _Search(chain, deciding, logits(chain.module, deciding.images, device=device), device)

    members = {row.name: (*row.layers, *row.products) for row in describe(chain)}

    def attempt(own: Overrides, name: str, **changes: Any) -> QuantizationResult:
        state = _state_of(name, options.get("state_folder"), is_resumed=options.get("is_resumed", False))
        settings: dict[str, Any] = {"recipe": recipe, "observer": observer, **options, **state, **changes}
        return quantize(model, calibration, bits=bits, overrides=own, **settings)

    own, tried, best = dict(overrides or {}), list[TargetRound](), None
    for number in range(rounds):
        observer.stage(f"round {number + 1} of at most {rounds}")
        # Later rounds have other widths of the same graph, which the first one rehearsed.
        result = attempt(own, f"round-{number}", **({} if number == 0 else {"is_rehearsed": False}))
        drop = search.drop(result.model)
        best = (drop, result) if best is None or drop < best[0] else best
        tried.append(search.round(result, drop, calibration.images[:SENSITIVITY_IMAGES].to(device)))
        units = () if drop <= max_drop else _most_sensitive(members, result.policy, tried[-1].sensitivities)
        if not units:
            break
        if number == 0:
            everywhere = (*chain.layers, *chain.products)
            widest = {**own, **_raised(everywhere, result.policy, lambda bits: LADDER[-1])}
            _check_reachable(attempt, search, max_drop, widest, recipe)
        raised = _raised([name for unit in units for name in members[unit]], result.policy, _next)
        own = {name: widths for name, widths in own.items() if name not in raised} | raised
        tried[-1] = tried[-1].model_copy(update={"raised": units})
    assert best is not None
    drop, result = best
    if drop > max_drop:
        warnings.warn(
            f"the best of {len(tried)} runs loses {drop:.2f} points, and at most {max_drop:g} were asked for: allow "
            "more rounds, begin with more bits, or take a recipe with more steps",
            TargetNotMetWarning,
            stacklevel=3,
        )
    target = TargetRecord(
        max_drop=max_drop,
        measure="agreement" if deciding.labels is None else "top1",
        images=len(deciding),
        is_met=drop <= max_drop,
        rounds=tuple(tried),
    )
    return dataclasses.replace(result, record=result.record.model_copy(update={"target": target}))


def check_is_whole(submodule: str | None) -> None:
    """Raise where widths are to be raised for an accuracy in a part of the model: sensitivities are of all units."""
    if submodule is not None:
        remedy = "leave out the submodule, or the bound on the accuracy"
        raise ArgumentError("submodule", "the whole model where an accuracy is to be kept", repr(submodule), remedy)


@dataclasses.dataclass(frozen=True)
class _Search:
    """What all rounds are measured with."""

    chain: Chain
    deciding: EvaluationSet
    floats: Tensor
    device: torch.device

    def drop(self, model: nn.Module) -> float:
        """What the network loses on the deciding images, in percentage points."""
        own, labels = logits(model, self.deciding.images, device=self.device), self.deciding.labels
        lost = 1 - agreement(own, self.floats) if labels is None else top1(self.floats, labels) - top1(own, labels)
        return 100 * lost

    def round(self, result: QuantizationResult, drop: float, images: Tensor) -> TargetRound:
        """What is kept of one run."""
        weights = {layer: result.quantized.weight(layer) for layer in result.quantized.weights}
        count = sum(weight.codes.numel() for weight in weights.values())
        return TargetRound(
            drop=drop,
            mean_weight_bits=sum(weight.codes.numel() * weight.spec.bits for weight in weights.values())
            / max(1, count),
            widths={row.layer: str(Bits(_bits(row.weight), _bits(row.input))) for row in result.policy},
            sensitivities=unit_sensitivities(self.chain, result.quantized.chain, images),
        )


def _most_sensitive(
    members: Mapping[str, Sequence[str]], policy: Sequence[LayerPolicy], sensitivities: Mapping[str, float]
) -> tuple[str, ...]:
    """The units, worst first, that make up ``SHARE`` of the divergence of all that can still be raised."""
    units = [unit for unit, names in members.items() if _raised(names, policy, _next)]
    units.sort(key=lambda name: -sensitivities[name])
    total, reached, chosen = sum(sensitivities[name] for name in units), 0.0, list[str]()
    for name in units:
        if chosen and reached >= SHARE * total:
            break
        chosen.append(name)
        reached += sensitivities[name]
    return tuple(chosen)


def _raised(
    layers: Sequence[str], policy: Sequence[LayerPolicy], raise_to: Callable[[int], int]
) -> dict[str, Override]:
    """Overrides with more bits for these layers and products, but for those that have the most, or are in float."""
    found, rows = dict[str, Override](), {row.layer: row for row in policy}
    for layer in layers:
        now = (_bits(rows[layer].weight), _bits(rows[layer].input))
        weights, inputs = (None if bits is None else raise_to(bits) for bits in now)
        if (weights, inputs) != now:
            found[glob.escape(layer)] = Override(weights, inputs, reason=RAISED)
    return found


def _check_reachable(
    attempt: Callable[..., QuantizationResult], search: _Search, max_drop: float, widest: Overrides, recipe: Recipe
) -> None:
    """Raise where 8 bits everywhere lose too much, with nearest rounding and with the recipe."""
    drops = []
    for number, host in enumerate((Recipe("nearest", unit=recipe.unit), recipe)):
        more = {"recipe": host, "evaluation": None, "measured_images": 0, "observer": SilentObserver()}
        more["is_rehearsed"] = False
        drops.append(search.drop(attempt(widest, f"widest-{number}", **more).model))
        if drops[-1] <= max_drop:
            return
    raise ArgumentError(
        "max_drop",
        f"at least {min(drops):.2f}, which is what {LADDER[-1]} bits everywhere lose",
        f"{max_drop:g}",
        'leave layers in float (overrides={"layer": "float"}, --float), give more calibration images, or ask for less',
    )


def _state_of(name: str, folder: str | Path | None, *, is_resumed: bool) -> dict[str, Any]:
    """Where one of several runs has its state: in a folder of its own, and it goes on where that has one."""
    if folder is None:
        return {}
    own = Path(folder) / name
    return {"state_folder": own, "is_resumed": is_resumed and has_state(own)}


def _next(bits: int) -> int:
    return next((step for step in LADDER if step > bits), bits)


def _bits(spec: QuantSpec | None) -> int | None:
    return None if spec is None else spec.bits
