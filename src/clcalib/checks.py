"""What can be wrong with the arguments of a run, found before any work is done."""

from __future__ import annotations

import difflib
import os
import re
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from clcalib.calibrate.recipe import Recipe
from clcalib.capture.chain import Chain
from clcalib.capture.graph import value_of
from clcalib.capture.outputs import output_nodes
from clcalib.data.augmentation import MIXES
from clcalib.data.calibration import CalibrationSet, EvaluationSet
from clcalib.errors import ArgumentError, SmallCalibrationWarning
from clcalib.objectives.batch import Need
from clcalib.objectives.contrastive import Contrastive
from clcalib.objectives.keys import KeySet
from clcalib.objectives.local import CONTRASTIVE, batch_of
from clcalib.quant.grids import GELU_GRIDS, SOFTMAX_GRIDS
from clcalib.quant.policy import Bits
from clcalib.quant.ranges import RANGE_RULES, RangeRule
from clcalib.quant.spec import Grid

T = TypeVar("T")

_TRUE = ("true", "1", "yes", "on")

BYTES = 'a number of bytes above 0, or a text such as "2GB", "512MB" or "1.5GiB"'
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*(?:([kMGT])(i?))?B?", re.IGNORECASE)


def check_arguments(
    calibration: CalibrationSet,
    recipe: Recipe,
    bits: Bits,
    others: Iterable[tuple[str, CalibrationSet | EvaluationSet | None]],
) -> None:
    """Raise for what no run can begin with; warn of too few images.

    Raises:
        ArgumentError: a type or shape is wrong, or a contrastive term has no negatives.
    """
    for name, value, kind, remedy in (
        ("calibration", calibration, CalibrationSet, "make one with CalibrationSet.from_tensor(images)"),
        ("recipe", recipe, Recipe, "take one of clcalib.recipes, e.g. recipes.qdrop(steps=500)"),
        ("bits", bits, Bits, "e.g. clcalib.Bits(weights=4, activations=4)"),
    ):
        if not isinstance(value, kind):
            raise ArgumentError(name, f"a {kind.__name__}", type(value).__name__, remedy)
    shape = calibration.images.shape[1:]
    for name, other in others:
        check_images(name, other)
        if other is not None and other.images.shape[1:] != shape:
            raise ArgumentError(
                name, f"images of shape {tuple(shape)}, as in calibration", str(tuple(other.images.shape[1:]))
            )
    _check_has_negatives(recipe, calibration)
    if recipe.all_phases:
        _check_threads_come()
    batch = max((phase.batch_size for phase in recipe.all_phases), default=1)
    if len(calibration) < batch:
        warnings.warn(
            f"calibration holds {len(calibration)} image(s), fewer than a mini-batch of {batch}: every step uses "
            "all of them; about 1,000 are usual",
            SmallCalibrationWarning,
            stacklevel=3,
        )


def check_images(argument: str, found: object) -> None:
    """Raise ``ArgumentError`` for images that are neither None nor in one of the classes for them."""
    if found is not None and not isinstance(found, CalibrationSet | EvaluationSet):
        remedy = f"make one with {EvaluationSet.__name__}.from_tensor(images, labels)"
        raise ArgumentError(argument, f"an {EvaluationSet.__name__}, or None", type(found).__name__, remedy)


def _check_threads_come() -> None:
    """Raise where OpenMP may give fewer threads than are asked for.

    oneDNN's backward convolutions then wait for the others, and the run would stand still for ever (pytorch #91547).
    """
    threads = torch.get_num_threads()
    limit = os.environ.get("OMP_THREAD_LIMIT", "")
    for name, is_harm in (
        ("OMP_DYNAMIC", os.environ.get("OMP_DYNAMIC", "").strip().lower() in _TRUE),
        ("OMP_THREAD_LIMIT", limit.strip().isdecimal() and int(limit) < threads),
    ):
        if threads > 1 and is_harm:
            raise ArgumentError(
                name,
                f"it not to keep OpenMP from giving {threads} threads, for which torch's convolutions wait for ever",
                f"{os.environ[name]} in the environment",
                "unset it, or compute with one thread (--threads 1, torch.set_num_threads(1))",
            )


def _check_has_negatives(recipe: Recipe, calibration: CalibrationSet) -> None:
    """Raise where a contrastive term would be zero at every step: it has one image in all, or one a step."""
    terms = [(phase, term) for phase in recipe.all_phases for term in phase.terms]
    terms = [(phase, term) for phase, term in terms if isinstance(term.objective, CONTRASTIVE)]
    images = calibration.images
    if terms and not bool((images != images[:1]).any()):
        raise ArgumentError(
            "calibration",
            "at least two different images for a contrastive objective",
            f"{len(images)} image(s), 1 of them distinct",
            "add images, or use the recipe without the contrastive term",
        )
    for phase, term in terms:
        size = min(phase.batch_size, term.images or phase.batch_size)
        if size < 2 and batch_of(term.objective) is not None:
            raise ArgumentError(
                "batch_size",
                "at least 2 images a step where the keys of the contrastive term are those of the batch",
                f"{size} in phase {phase.name!r}",
                'raise batch_size, or take keys=None with read="features" or "logits"',
            )


def check_can_be_changed(recipe: Recipe, images: Tensor) -> None:
    """Raise where a phase changes the images of each step, and they are not (N, C, H, W), or too few to be mixed.

    Args:
        recipe: of the run.
        images: what the chain reads.

    Raises:
        ArgumentError: it says how to leave the augmentation out.
    """
    names = [name for phase in recipe.all_phases for name in phase.augmentation]
    if names and not (images.ndim == 4 and images.is_floating_point()):
        got = f"{str(images.dtype).removeprefix('torch.')} of shape {tuple(images.shape)}"
        remedy = "with_tuning(recipe, augmentation=()), augmentation = [] in [tuning]"
        raise ArgumentError("calibration", "images (N, C, H, W) for the augmentation of the tuning", got, remedy)
    if len(images) < 2 and set(names) & set(MIXES):
        raise ArgumentError("calibration", "at least two images to mix", "1 image", "take flip or crop alone")


def check_output(chain: Chain, recipe: Recipe, evaluation: EvaluationSet | None) -> None:
    """Raise where a unit has no output to reconstruct, or where classes are asked for and there is no (N, classes)."""
    values = {node.name: value_of(node) for node in chain.module.graph.nodes}
    for unit in chain.units:
        if not values[unit.target].is_floating_point():
            kind = str(values[unit.target].dtype).removeprefix("torch.")
            remedy = "return what these are made of, such as logits, or quantize a submodule before them"
            raise ArgumentError("model", f"floating values behind the unit {unit.name}", f"{kind} only", remedy)
    outputs = output_nodes(chain.module.graph)
    dimensions = outputs[0].meta["val"].ndim
    got = f"an output of {dimensions} dimensions" if len(outputs) == 1 else f"{len(outputs)} outputs"
    asked = {
        "evaluation": evaluation is not None,
        "false_negatives": (recipe.contrastive or {}).get("false_negatives") == "same_prediction",
        "recipe": Need.FLOAT_GRADIENT in recipe.needs,
    }
    for argument, is_asked in asked.items():
        if is_asked and (dimensions != 2 or len(outputs) > 1):
            raise ArgumentError(
                argument,
                "a network with output (N, classes), since predicted classes are compared",
                got,
                "leave it out",
            )


def check_negatives(recipe: Recipe, keys: Mapping[Need, KeySet]) -> None:
    """Raise where a mask of false negatives leaves no image any negative.

    Raises:
        ArgumentError: the contrastive term would be zero at every step.
    """
    for phase in recipe.all_phases:
        for term in phase.terms:
            if not isinstance(term.objective, Contrastive) or term.objective.need not in keys:
                continue
            own = keys[term.objective.need]
            index = torch.arange(len(own), device=own.mean.device)
            excluded = term.objective.excluded(own, index)
            if excluded is not None and bool(excluded.all()):
                raise ArgumentError(
                    "false_negatives",
                    "a mask that leaves negatives",
                    f"{term.objective.false_negatives!r}, which masks every pair of these calibration images",
                    'use "keep", or images of more classes',
                )


def range_rule(argument: str, rule: str | RangeRule) -> RangeRule:
    """Look up a range rule; one that is no name is taken as it is."""
    return rule if callable(rule) else named(argument, rule, RANGE_RULES)


def checked_grids(softmax: Grid, gelu: Grid) -> dict[str, Grid]:
    """The grids of ``fit_policy``."""
    for argument, name, valid in (("softmax_grid", softmax, SOFTMAX_GRIDS), ("gelu_grid", gelu, GELU_GRIDS)):
        named(argument, name, {known: known for known in valid})
    return {"softmax": softmax, "gelu": gelu}


def byte_count(argument: str, size: int | str, remedy: str = "leave it out to keep everything in memory") -> int:
    """A size as a number of bytes; kB, MB, GB and TB are powers of 1000, KiB to TiB powers of 1024.

    Raises:
        ArgumentError: it is not above 0, or another text.

    Example:
        >>> byte_count("memory_budget", "512MB"), byte_count("memory_budget", "2 GiB")
        (512000000, 2147483648)
    """
    count = size if type(size) is int else 0
    match = _SIZE.fullmatch(size.strip()) if isinstance(size, str) else None
    if match is not None:
        number, prefix, binary = match.groups()
        count = int(float(number) * (1024 if binary else 1000) ** " kmgt".index((prefix or " ").lower()))
    if count < 1:
        raise ArgumentError(argument, BYTES, repr(size), remedy)
    return count


def checked_folder(argument: str, folder: str | Path) -> Path:
    """Return the folder if files can be made in it.

    Raises:
        ArgumentError: there is no such folder, or it cannot be written to.
    """
    path = Path(folder)
    if not path.is_dir() or not os.access(path, os.W_OK | os.X_OK):
        raise ArgumentError(argument, "a folder that exists and can be written to", str(folder))
    return path


def checked_device(device: str | torch.device) -> torch.device:
    """Return the device if tensors can be made on it.

    Raises:
        ArgumentError: torch does not know it, or this machine does not have it.
    """
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise ArgumentError("device", "one that torch can use here", f"{device!s} ({reason})", "use cpu") from None


def checked_share(argument: str, value: float) -> float:
    """Return a share of something.

    Raises:
        ArgumentError: it is below 0, not finite, or no number.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < float("inf"):
        raise ArgumentError(argument, "a share from 0 on, such as 0.05 for 5 %", repr(value))
    return float(value)


def named(argument: str, name: str, table: Mapping[str, T]) -> T:
    """Look up a name in a literal table; the error tells the nearest one."""
    if name not in table:
        near = difflib.get_close_matches(name, table, 1, 0.0)
        raise ArgumentError(argument, f"one of {', '.join(table)}", repr(name), f"nearest: {near[0]}")
    return table[name]


def check_line(recipe: Recipe, others: Mapping[str, bool], device: torch.device) -> None:
    """Raise for what needs the whole network on one worker, where the units are with several.

    Args:
        recipe: of the run.
        others: by the name of an argument, whether it is another one than the default.
        device: where to compute.

    Raises:
        ArgumentError: it names the argument.
    """
    remedy = "leave it out, or share the images instead (--split images)"
    if recipe.last_phase is not None:
        raise ArgumentError("last_phase", "no last phase with --split units", "one over the whole network", remedy)
    for name, is_given in others.items():
        if is_given:
            raise ArgumentError(name, "the default with --split units", "another value", remedy)
    if device.type != "cpu":
        raise ArgumentError("device", "cpu with --split units", device, remedy)
