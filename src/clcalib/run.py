"""From a configuration to a folder of results: load, check, quantize, save.

Everything that a user can have wrong is found before the optimisation begins.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from clcalib.attending import attend
from clcalib.calibrate.observer import Observer, Observers, SilentObserver
from clcalib.calibrate.precision import convolution_dtype
from clcalib.calibrate.recipes import ADDITIONS
from clcalib.checks import checked_device
from clcalib.config import make_recipe
from clcalib.config_sections import EvaluationConfig, OnnxEvaluationConfig, RunConfig
from clcalib.config_sources import CONFIG_FILE
from clcalib.data.augmentation import augmented
from clcalib.data.calibration import CalibrationSet, EvaluationSet, digest
from clcalib.data.division import halves, kept_aside
from clcalib.data.sources import load_calibration, load_evaluation
from clcalib.deployment import deploy, deployment_of
from clcalib.errors import ArgumentError
from clcalib.estimate import Estimate, estimate
from clcalib.export.checkpoint import load_chain, saved_target
from clcalib.export.deployed import PAPER, check_operators, require_writer, write_float
from clcalib.mixed_precision import choose_widths, quantize_to_budget
from clcalib.model_source import load_model, load_trained_model
from clcalib.output import STATE_FOLDER, check_output_folder, has_unfinished, kept, occupied
from clcalib.pipeline import RECORD_FILE, QuantizationResult, quantize
from clcalib.quant.allocation import check_solver
from clcalib.quant.targets import Target, target_of
from clcalib.report.deployment import DeploymentRecord
from clcalib.report.environment import collected_warnings
from clcalib.report.page.render import write_report
from clcalib.report.record import RunRecord, write_record
from clcalib.reporting import leave_page
from clcalib.target_accuracy import check_is_whole, quantize_to_target
from clcalib.team.line import Line
from clcalib.team.team import Team
from clcalib.tracking.measures import flattened
from clcalib.tracking.opening import require_trackers, trackers
from clcalib.tracking.tracker import Tracker
from clcalib.width_checks import check_is_one_network

USUAL_CALIBRATION_IMAGES = 1024
Share = Team | Line  # of a worker in a run: images, or units


def run(config: RunConfig, observer: Observer, *, is_resumed: bool = False, share: Share | None = None) -> RunRecord:
    """Carry out one run and leave in ``config.run.out`` the model, ``run.json``, ``config.json`` and a page about it.

    While it goes on, what is finished is saved in the folder ``state`` there; when the result is written, that is
    removed.

    Args:
        config: of the run.
        observer: told of the progress.
        is_resumed: whether to go on with what an interrupted run left in ``config.run.out``, if it left something.
        share: where several workers share the run, that of worker 0; the others ``follow``.

    Raises:
        OutputExistsError: the folder is not empty and overwriting was not asked for; told before any work.
        FolderInUseError: another process works in the folder.
        StorageError: a file could not be written; what was saved before still is.
        ResumeError: what is saved is of other settings, or cannot be read.
        ClcalibError: the model or the images cannot be used; told before the optimisation begins.
        Interrupted: by Ctrl-C or a signal; says how to go on.
    """
    check_goal(config)
    target = _check_writer(config)
    require_trackers(**config.tracking.model_dump())
    out = config.run.out
    check_output_folder(out, is_emptied=config.run.overwrite or is_resumed)
    with occupied(out), limited_threads(config.run.threads):
        check_output_folder(out, is_emptied=config.run.overwrite or is_resumed)  # another run may have ended meanwhile
        own = pinned(config)
        with kept(out, own, is_resumed=is_resumed), _trackers(config) as trackers:
            result = _run(own, target, Observers(observer, *trackers), share)
            for tracker in trackers:
                tracker.finish(result.record, result.trace, {CONFIG_FILE: own.model_dump_json(indent=2)})
            return result.record


def follow(config: RunConfig, share: Share) -> None:
    """Do the part of a worker other than worker 0, which carries out the same ``run``; nothing is written or shown.

    Args:
        config: of the run; its output folder is not looked at.
        share: this worker's.

    Raises:
        WorkerLostError: another worker is gone.
        ClcalibError: the model or the images cannot be used, or are not those of worker 0.
    """
    check_goal(config)
    with limited_threads(config.run.threads):
        model, arguments = load_trained_model(config.model), _arguments(config, SilentObserver(), share)
        if isinstance(share, Line):
            attend(model, **arguments)
            return
        # What worker 0 does alone.
        _calibrated(config, model, arguments | {"evaluation": None, "is_rehearsed": False})


def _run(config: RunConfig, target: Target | None, observer: Observer, share: Share | None) -> QuantizationResult:
    """Calibrate with the state in the output folder, and write the result."""
    out = config.run.out
    observer.stage("loading")
    with collected_warnings() as messages:
        model, arguments = load_trained_model(config.model), _arguments(config, observer, share)
    arguments["state_folder"] = out / STATE_FOLDER
    arguments["is_resumed"] = has_unfinished(out)
    result = _calibrated(config, model, arguments)
    observer.stage("saving")
    told = tuple(dict.fromkeys([*messages, *result.record.warnings]))
    result = dataclasses.replace(result, record=result.record.model_copy(update={"warnings": told}))
    result.save(out, overwrite=True)
    if target is not None:
        observer.stage("export")
        checked = None if config.model.submodule is not None else arguments["evaluation"]
        result = deploy(result, out / target.file, checked)
        write_record(result.record, out / RECORD_FILE)
    observer.stage("report")
    if isinstance(share, Line):
        write_report(out)  # without what is gathered from the whole network
        return result
    leave_page(result, out, arguments["evaluation"] or arguments["calibration"], config.data)
    return result


def _calibrated(config: RunConfig, model: nn.Module, arguments: dict[str, Any]) -> QuantizationResult:
    """The result, with the widths that are given or found."""
    if config.budget is not None:
        return quantize_to_budget(model, **arguments, budget=config.budget.budget())
    if config.target is None:
        return quantize(model, **arguments)
    arguments["deciding"], arguments["evaluation"] = halves(arguments["evaluation"])
    return quantize_to_target(model, **arguments, **config.target.model_dump())


def _trackers(config: RunConfig) -> AbstractContextManager[tuple[Tracker, ...]]:
    """The trackers that the configuration names, open for this run."""
    settings = flattened(config.model_dump(mode="json", exclude={"tracking"}))
    out = config.run.out
    return trackers(out, **config.tracking.model_dump(), settings=settings, is_resumed=has_unfinished(out))


def pinned(config: RunConfig) -> RunConfig:
    """The same with the number of threads that it has now, since sums differ by it, and a precision that is no more
    decided by a clock, which might decide otherwise when the run goes on.
    """
    dtype = convolution_dtype(config.run.precision, checked_device(config.run.device))
    own = {"threads": torch.get_num_threads(), "precision": str(dtype).removeprefix("torch.")}
    return config.model_copy(update={"run": config.run.model_copy(update=own)})


def export(folder: Path, config: EvaluationConfig, path: Path, float_path: Path | None = None) -> DeploymentRecord:
    """Write the result of an earlier run as a file for the target that it was calibrated for, and check the file.

    Args:
        folder: what ``run`` left.
        config: of the model and, where there are some, of the images on which runtime and simulation are compared.
        path: of the file.
        float_path: where the float network goes, to be timed against; None for nowhere.

    Raises:
        ClcalibError: the folder, the model or the images cannot be used, or an operator cannot be written.
    """
    require_writer(saved_target(folder))
    with limited_threads(config.run.threads):
        loaded = load_chain(folder, load_model(config.model))
        evaluation = None if loaded.part is not None else evaluation_images(config)
        check_operators(loaded.floating, loaded.target)
        if float_path is not None:
            write_float(loaded.floating, float_path, loaded.target)
        return deployment_of(loaded.quantized, loaded.target or PAPER, path, evaluation)


def dry_run(config: RunConfig, observer: Observer, workers: int | None = None) -> Estimate:
    """Say what ``run`` would take and leave in float, and what its target would refuse; nothing is written.

    Args:
        config: of the run.
        observer: told of the progress.
        workers: among how many the units of the network are to be dealt; None where they are not.
    """
    check_goal(config)
    _check_writer(config)
    require_trackers(**config.tracking.model_dump())
    with limited_threads(config.run.threads):
        observer.stage("loading")
        line = None if workers is None else Line(workers)
        model, arguments = load_model(config.model), _arguments(config, observer, line)
        if config.budget is None:
            return estimate(model, **arguments)
        settings = {name: value for name, value in arguments.items() if name not in ("bits", "overrides")}
        choice = choose_widths(model, **arguments, budget=config.budget.budget())
        found = estimate(model, **settings, bits=choice.bits, overrides=choice.overrides)
        stages = {"widths": choice.seconds, **found.seconds_per_stage}
        return dataclasses.replace(found, seconds_per_stage=stages, budget=choice.record)


def _check_writer(config: RunConfig) -> Target | None:
    """The target; raises where what writes its file is not installed."""
    target = target_of(config.quantization.target)
    if target is not None:
        require_writer(target)
    return target


def check_goal(config: RunConfig) -> None:
    """Raise where widths are to be found for a goal, and it is none, or nothing can measure it, or there are two."""
    if config.budget is not None:
        config.budget.budget()
        check_is_one_network(config.model.submodule)
        check_solver()
    if config.target is None:
        return
    if config.budget is not None:
        remedy = "leave one of them out"
        raise ArgumentError("target, budget", "either --max-drop or --size-budget and --cost-budget", "both", remedy)
    check_is_whole(config.model.submodule)
    if config.data.evaluation is None:
        remedy = "half of them choose the widths, the others judge the result"
        raise ArgumentError("data.evaluation", "evaluation images with --max-drop", "none", remedy)


def _arguments(config: RunConfig, observer: Observer, share: Share | None = None) -> dict[str, Any]:
    """What ``quantize`` is called with, but for the model."""
    evaluation, originals = evaluation_images(config), _calibration_images(config)
    held_out: CalibrationSet | None
    if config.guard.images:
        originals, held_out = kept_aside(originals, config.guard.images)
    else:
        deciding = evaluation if evaluation is None or config.target is None else halves(evaluation)[0]
        held_out = held_out_images(deciding, originals, config.data.held_out_count)
    copies, seed = config.data.augment_copies, config.run.seed
    augment = config.data.augment
    return {
        "calibration": augmented(originals, augment, copies=copies, seed=seed) if augment else originals,
        "recipe": make_recipe(config.recipe, {name: getattr(config, name) for name in ADDITIONS}),
        "bits": config.quantization.bits(),
        "seed": seed,
        "setting": config.quantization.setting,
        "first_last_bits": config.quantization.edge_bits(),
        "overrides": config.quantization.layer_overrides(),
        "unit_patterns": config.quantization.unit_patterns,
        "submodule": config.model.submodule,
        "target": config.quantization.target,
        "weight_range": config.quantization.weight_range,
        "activation_range": config.quantization.activation_range,
        "softmax_grid": config.quantization.softmax_grid,
        "gelu_grid": config.quantization.gelu_grid,
        "is_layer_norm_reparameterized": config.quantization.reparameterized_layer_norm,
        "evaluation": evaluation,
        "held_out": held_out,
        "device": config.run.device,
        "memory_budget": config.run.memory_budget,
        "spill_folder": config.run.spill_folder,
        "precision": config.run.precision,
        "cache_precision": config.run.cache_precision,
        "is_guarded": config.guard.enabled,
        "guard_tolerance": config.guard.tolerance,
        "observer": observer,
        "team": share if isinstance(share, Team) else Team(shards=config.run.shards),
        "line": share if isinstance(share, Line) else None,
    }


@contextlib.contextmanager
def limited_threads(threads: int | None) -> Iterator[None]:
    """Let torch use this many threads inside the block; None changes nothing."""
    before = torch.get_num_threads()
    try:
        if threads is not None:
            torch.set_num_threads(threads)
        yield
    finally:
        torch.set_num_threads(before)


def evaluation_images(config: RunConfig | EvaluationConfig | OnnxEvaluationConfig) -> EvaluationSet | None:
    """The evaluation images, or None where no path is given.  Their choice does not depend on the run's seed."""
    if config.data.evaluation is None:
        return None
    return load_evaluation(
        config.data.evaluation,
        transform=config.data.transform(),
        count=config.data.evaluation_count,
        seed=0,
        most_pixels=config.data.most_pixels,
    )


def held_out_images(evaluation: EvaluationSet | None, calibration: CalibrationSet, count: int) -> CalibrationSet | None:
    """The first ``count`` evaluation images that are not calibration images, or None where there are none."""
    if evaluation is None or count == 0:
        return None
    used = set(_image_digests(calibration.images))
    free = [index for index, digest in enumerate(_image_digests(evaluation.images)) if digest not in used][:count]
    if not free:
        return None
    origin = evaluation.provenance
    places = None if origin.indices is None else [origin.indices[index] for index in free]
    return CalibrationSet.from_tensor(
        evaluation.images[free], source=origin.source, indices=places, transform=origin.transform
    )


def _image_digests(images: Tensor) -> list[str]:
    return [digest(image) for image in images]


def _calibration_images(config: RunConfig) -> CalibrationSet:
    data = config.data
    return load_calibration(
        data.calibration,
        transform=data.transform(),
        count=data.count,
        seed=config.run.seed,
        at_most=USUAL_CALIBRATION_IMAGES,
        most_pixels=data.most_pixels,
    )
