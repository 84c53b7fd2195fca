"""CL-Calib (Shang, Liu, Kompella, Yan, CVPR 2024): the contrastive term, added to any recipe, and the paper's method.

L = L_host + weight * L_contrastive: the positive pair is one image's quantized and float activation, the negatives are
the float activations of the other images; both sides are read behind the frozen float remainder of the network.

When to use: for the results of the paper, with its steps; ``fast`` with the contrastive term is its quick form.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any, Literal

from clcalib.calibrate.recipe import Pass, Phase, Recipe, Term
from clcalib.calibrate.recipes.pd_quant import PAPER_STEPS, pd_quant
from clcalib.errors import ArgumentError
from clcalib.objectives.batch import Objective
from clcalib.objectives.contrastive import Contrastive
from clcalib.objectives.critics import CRITICS
from clcalib.objectives.local import LearnedHead, LocalContrastive, for_batch

# This and the default temperature were chosen by the ablation of benchmarks/accuracy.py.
SHARE = 0.1
INTERVAL, IMAGES = 8, 8  # chosen by the cost of a step, as accuracy did not tell them apart (benchmarks/fewer_steps.py)

LOCAL_READS = ("activations", "pooled_activations", "learned_head")
READS = ("features", "logits", *LOCAL_READS)


def with_contrastive(
    recipe: Recipe,
    *,
    weight: float = 1.0,
    temperature: float = 0.5,
    loss: str = "info_nce",
    read: str = "features",
    critic: str = "cosine",
    false_negatives: str = "keep",
    keys: int | Literal["batch"] | None = None,
    interval: int | None = None,
    images: int | Literal["all"] | None = None,
    on: Pass | None = None,
    share: float = SHARE,
) -> Recipe:
    """Return the recipe with the contrastive term in every phase, the last one over the whole network included.

    Only a phase that changes its images in each step (``with_tuning``) goes without: the keys are of stored images.

    Args:
        recipe: any recipe that optimises something.
        weight: of the contrastive term.  At weight 1 it is ``share`` times as large as the host's own loss.
        temperature: divides the cosines.  0.1 sees the hardest negatives, often images of the same class.
        loss: ``"info_nce"``, ``"sigmoid_nce"``, ``"crd_nce"`` or ``"normalised_crd_nce"``.
        read: ``"features"`` (penultimate) or ``"logits"`` behind the frozen float remainder.  For ablations, the
            unit's own output in its place: ``"activations"``, ``"pooled_activations"``, or ``"learned_head"``, a
            linear head that is trained along (``objectives/local.py``); their keys are those of the batch.
        critic: ``"cosine"`` or ``"centred_cosine"``.
        false_negatives: ``"keep"``, ``"same_prediction"`` or ``"similar"``.
        keys: how many keys a query is compared with: a number, ``"batch"`` or None for all (``Contrastive.keys``).
        interval: compute the term at every ``interval``-th step (``Term.interval``); by default every 8th, or every one
            where the host sends its quantized pass through the rest of the network anyway.
        images: compute it on this many images of each batch (``Term.images``), or on ``"all"``; by default on 8, or on
            as many as the host's quantized pass has.  ``interval=1, images="all"`` is the published term; the defaults
            cost a fraction of the host's step (docs/speed.md compares them).
        on: which pass of the unit it looks at (``Term.on``); by default the host's quantized one where it has one, so
            that both share it, else the training pass.
        share: size of the term at weight 1, relative to the host's loss for the same unit (``Term.is_relative``).

    Raises:
        ArgumentError: a name is unknown, a number out of range, or the recipe optimises nothing.

    Source: CL-Calib, CVPR 2024; deviations in docs/deviations.md.
    """
    if all(phase.augmentation for phase in recipe.all_phases):
        raise ArgumentError("recipe", "one that optimises something", recipe.name, "use adaround, brecq or qdrop")
    if recipe.contrastive is not None:
        hint = "leave out one of the two terms"
        raise ArgumentError("recipe", "one without a contrastive term", recipe.name, hint)
    if not 0 < weight < float("inf"):
        raise ArgumentError("weight", "a positive number", weight, "leave the term out instead of weighting it 0")
    if not 0 < share < float("inf"):
        raise ArgumentError("share", "a positive number", share)
    if isinstance(images, str) and images != "all":
        raise ArgumentError("images", "a number of images, 'all' or None", repr(images))
    if read not in READS:
        raise ArgumentError("read", f"one of {', '.join(READS)}", repr(read))
    if critic not in CRITICS:
        raise ArgumentError("critic", f"one of {', '.join(CRITICS)}", repr(critic))
    settings: dict[str, Any] = {
        "weight": weight,
        "temperature": temperature,
        "loss": loss,
        "read": read,
        "critic": critic,
        "false_negatives": false_negatives,
        "keys": keys,
        "interval": interval,
        "images": images,
        "on": on,
        "share": share,
    }
    phases = tuple(extended(phase, settings) for phase in recipe.phases)
    last = None if recipe.last_phase is None else extended(recipe.last_phase, settings)
    made = dataclasses.replace(recipe, name=f"{recipe.name}+contrastive", phases=phases, last_phase=last)
    return dataclasses.replace(made, contrastive=recorded(settings, made.all_phases))


def cl_calib(
    *,
    steps: int = PAPER_STEPS,
    rounding_weight: float = 0.01,
    temperature: float = 4.0,
    correction_strength: float = 0.02,
    contrastive_weight: float = 1.0,
    batch_size: int = 32,
) -> Recipe:
    """Return the paper's method: PD-Quant with the contrastive term in every step and on whole batches.

    For other settings of either, ``with_contrastive(pd_quant(...), ...)``; for a result in minutes, ``fast``.

    Args:
        steps: optimiser steps for each block; in shorter runs than the paper's 20,000 ``pd_quant`` raises the rates and
            shortens the correction.
        rounding_weight: weight of the rounding penalty: 0.01 ResNet and RegNet, 0.1 MobileNetV2, 0.2 MNASNet.
        temperature: of the predictions: 4 ResNet and RegNet, 1 MobileNetV2 and MNASNet.
        correction_strength: how far the correction may move the input: 0.02 ResNet, 0.01 RegNet, 0.005 MobileNetV2,
            0.001 MNASNet.
        contrastive_weight: of the contrastive term (``weight`` of ``with_contrastive``).
        batch_size: images a step.

    *Deviation*: what the abstract does not say of the term is ours, its weight and temperature above all
    (docs/deviations.md).
    """
    host = pd_quant(
        steps=steps,
        rounding_weight=rounding_weight,
        temperature=temperature,
        correction_strength=correction_strength,
        batch_size=batch_size,
    )
    recipe = with_contrastive(host, weight=contrastive_weight, interval=1, images="all")
    return dataclasses.replace(recipe, name="cl_calib")


def extended(phase: Phase, settings: Mapping[str, Any]) -> Phase:
    """A phase with the contrastive term behind its own ones; as it is where its images are new in each step.

    Such images have no stored keys.

    Args:
        phase: one without the term.
        settings: the arguments of ``with_contrastive``, as ``Recipe.contrastive`` keeps them.
    """
    if phase.augmentation:
        return phase
    return dataclasses.replace(phase, terms=(*phase.terms, _placed(phase, settings)))


def recorded(settings: Mapping[str, Any], phases: Iterable[Phase]) -> dict[str, Any]:
    """The settings as they were asked for, and as ``resolved`` where the term, the last one, came to lie in each phase.

    Args:
        settings: the arguments of ``with_contrastive``.
        phases: all phases of the recipe, extended.
    """
    rows = []
    for phase in phases:
        if phase.augmentation:
            continue
        term = phase.terms[-1]
        count = min(phase.batch_size, term.images or phase.batch_size)
        rows.append({"phase": phase.name, "interval": term.interval, "images": count, "on": term.on})
    return {**settings, "resolved": rows}


def _placed(phase: Phase, settings: Mapping[str, Any]) -> Term:
    """The term on the pass that is asked for or the phase's quantized one, as often as asked for or as is cheap."""
    interval, images = settings["interval"], settings["images"]
    on: Pass | None = settings["on"]
    shared = [own for own in phase.terms if own.on == "quantized"]
    on = on or ("quantized" if shared else "training")
    usual: int = INTERVAL
    some: int | None = IMAGES
    if on == "quantized" and shared:
        usual = min(own.interval for own in shared)
        some = None if any(own.images is None for own in shared) else max(own.images or 0 for own in shared)
    chosen = some if images is None else None if images == "all" else images
    return Term(
        for_batch(_objective(settings), min(phase.batch_size, chosen or phase.batch_size)),
        settings["weight"] * settings["share"],
        is_relative=True,
        interval=usual if interval is None else interval,
        images=chosen,
        on=on,
    )


def _objective(settings: Mapping[str, Any]) -> Objective:
    loss, read, critic = settings["loss"], settings["read"], CRITICS[settings["critic"]](settings["temperature"])
    if read in LOCAL_READS:
        return _local(Contrastive(loss, critic=critic), read, settings["false_negatives"], settings["keys"])
    return Contrastive(loss, read, critic, settings["false_negatives"], settings["keys"])


def _local(term: Contrastive, read: str, false_negatives: str, keys: int | str | None) -> Objective:
    if false_negatives != "keep":
        raise ArgumentError("false_negatives", f"'keep' where read is {read!r}", repr(false_negatives))
    if keys not in (None, "batch"):
        raise ArgumentError("keys", f"'batch' or None where read is {read!r}", keys)
    if read == "learned_head":
        return LearnedHead(term.loss, term.critic)
    return LocalContrastive(term.loss, term.critic, is_pooled=read == "pooled_activations")
