"""CL-Calib (Shang, Liu, Kompella, Yan, CVPR 2024): the contrastive term, added to any recipe.

L = L_host + weight * L_contrastive: the positive pair is one image's quantized and float activation, the negatives are
the float activations of the other images; both sides are read behind the frozen float remainder of the network.
"""

from __future__ import annotations

import dataclasses

from clcalib.calibrate.recipe import Recipe, Term
from clcalib.errors import ArgumentError
from clcalib.objectives.contrastive import Contrastive
from clcalib.objectives.critics import CRITICS

# This and the default temperature were chosen by the ablation of benchmarks/accuracy.py.
SHARE = 0.1


def with_contrastive(
    recipe: Recipe,
    *,
    weight: float = 1.0,
    temperature: float = 0.5,
    loss: str = "info_nce",
    read: str = "features",
    critic: str = "cosine",
    false_negatives: str = "keep",
    interval: int = 1,
    images: int | None = None,
    share: float = SHARE,
) -> Recipe:
    """Return the recipe with the contrastive term in every phase, the last one over the whole network included.

    Args:
        recipe: any recipe that optimises something.
        weight: of the contrastive term.  At weight 1 it is ``share`` times as large as the host's own loss.
        temperature: divides the cosines.  0.1 sees the hardest negatives, often images of the same class.
        loss: ``"info_nce"``, ``"sigmoid_nce"``, ``"crd_nce"`` or ``"normalised_crd_nce"``.
        read: ``"features"`` (penultimate) or ``"logits"``.
        critic: ``"cosine"`` or ``"centred_cosine"``.
        false_negatives: ``"keep"``, ``"same_prediction"`` or ``"similar"``.
        interval: compute the term at every ``interval``-th step (``Term.interval``).
        images: compute it on this many images of each batch (``Term.images``); by default on all.
        share: size of the term at weight 1, relative to the host's loss for the same unit (``Term.is_relative``).

    Raises:
        ArgumentError: a name is unknown, a number out of range, or the recipe optimises nothing.

    Source: CL-Calib, CVPR 2024; deviations in docs/deviations.md.
    """
    if not recipe.all_phases:
        raise ArgumentError("recipe", "one that optimises something", recipe.name, "use adaround, brecq or qdrop")
    if recipe.contrastive is not None:
        raise ArgumentError("recipe", "one without a contrastive term", recipe.name)
    if not 0 < weight < float("inf"):
        raise ArgumentError("weight", "a positive number", weight, "leave the term out instead of weighting it 0")
    if not 0 < share < float("inf"):
        raise ArgumentError("share", "a positive number", share)
    if critic not in CRITICS:
        raise ArgumentError("critic", f"one of {', '.join(CRITICS)}", repr(critic))
    objective = Contrastive(loss, read, CRITICS[critic](temperature), false_negatives)
    term = Term(objective, weight * share, is_relative=True, interval=interval, images=images)
    phases = tuple(dataclasses.replace(phase, terms=(*phase.terms, term)) for phase in recipe.phases)
    last = recipe.last_phase
    if last is not None:
        last = dataclasses.replace(last, terms=(*last.terms, term))
    settings = {
        "weight": weight,
        "temperature": temperature,
        "loss": loss,
        "read": read,
        "critic": critic,
        "false_negatives": false_negatives,
        "interval": interval,
        "images": images,
        "share": share,
    }
    name = f"{recipe.name}+contrastive"
    return dataclasses.replace(recipe, name=name, phases=phases, last_phase=last, contrastive=settings)
