"""The one module that knows every stage: model + calibration images + recipe -> quantized model + record."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from clcalib.calibrate.journal import Journal
from clcalib.calibrate.observer import Observer, SilentObserver
from clcalib.calibrate.recipe import Recipe
from clcalib.calibrate.space import StoreSpace
from clcalib.capture.chain import Chain
from clcalib.capture.submodule import Part
from clcalib.data.calibration import CalibrationSet, EvaluationSet
from clcalib.errors import OutputExistsError
from clcalib.evaluate.comparison import Predictions
from clcalib.export.checkpoint import Origin, load_checkpoint, save_checkpoint
from clcalib.export.float_weights import float_state_dict
from clcalib.identity import check_team
from clcalib.job import prepare
from clcalib.judging import detected, judged
from clcalib.keeping import opened_state
from clcalib.line_job import Holder, held
from clcalib.modes import usual_modes
from clcalib.quant.insert import QuantizedChain
from clcalib.quant.kernels import kernels_on
from clcalib.quant.policy import EDGE_BITS, Bits, EdgeBits, LayerPolicy, Overrides
from clcalib.quant.ranges import RangeRule
from clcalib.quant.spec import Grid
from clcalib.report.environment import StageClock, collected_warnings, model_digest, peak_memory, versions
from clcalib.report.evidence import EVIDENCE_FILE, Evidence, write_evidence
from clcalib.report.gathering import FEATURE_IMAGES, PART_IMAGES, Colours, gather
from clcalib.report.page.render import REPORT_FILE, write_report
from clcalib.report.record import RunRecord, write_record
from clcalib.report.trace import TRACE_FILE, RunTrace, write_trace
from clcalib.team.line import Line
from clcalib.team.team import Team
from clcalib.unit_records import float_records, last_phase_record, layer_records, run_trace

MEASURED_IMAGES = 256
RECORD_FILE = "run.json"


@dataclasses.dataclass(frozen=True)
class QuantizationResult:
    """What ``quantize`` returns.

    Attributes:
        model: the quantized network; same input and output as the float one.  Where a submodule was quantized, the
            whole model with the quantized one in its place.
        record: what was done and measured.
        trace: the losses of each unit.
        policy: the widths of every layer.
        quantized: the same network as a chain of units, with its quantizers by layer.
    """

    model: nn.Module
    record: RunRecord
    trace: RunTrace = dataclasses.field(repr=False)
    policy: tuple[LayerPolicy, ...]
    quantized: QuantizedChain = dataclasses.field(repr=False)
    _origin: Origin = dataclasses.field(repr=False)
    _floating: Chain = dataclasses.field(repr=False)
    _part: Part | None = dataclasses.field(repr=False)
    _predictions: Predictions | None = dataclasses.field(repr=False)
    _elsewhere: Mapping[str, Tensor] = dataclasses.field(repr=False, default_factory=dict)

    def float_state_dict(self, model: nn.Module) -> dict[str, Tensor]:
        """The quantized weights under the names of the float model, for ``model.load_state_dict``.

        A model with them computes in float what the result does with float activations, up to rounding.  Batch norms
        that were folded become the identity, and carry the folded bias where their layer has none
        (``export/float_weights.py``).  ``quantized.sources`` says which layer has which parameter.

        Args:
            model: the float model that was quantized, or one of its architecture; not changed.

        Raises:
            ArgumentError: it is another model, or a weight has no parameter of its own.

        Example:
            >>> import clcalib, torch
            >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 4), torch.nn.Linear(4, 2)).eval()
            >>> images = clcalib.CalibrationSet.from_tensor(torch.randn(64, 3, 2, 2))
            >>> result = clcalib.quantize(model, images, recipe=clcalib.recipes.nearest(), bits=clcalib.Bits(2, 8))
            >>> model.load_state_dict(result.float_state_dict(model))
            <All keys matched successfully>
        """
        return float_state_dict(self.quantized, model, self._origin.prefix)

    def evidence(self, images: CalibrationSet | EvaluationSet, *, colours: Colours | None = None) -> Evidence:
        """What a page shows beyond the record: predictions, changed images, histograms and features.

        Args:
            images: the evaluation images that ``quantize`` was given, or where there were none, those of calibration.
            colours: mean and standard deviation of the channels that these were normalised with, for their pictures;
                None where they are not known.

        Example:
            >>> import clcalib, torch
            >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 4), torch.nn.Linear(4, 2)).eval()
            >>> calibration = clcalib.CalibrationSet.from_tensor(torch.randn(64, 3, 2, 2))
            >>> recipe, bits = clcalib.recipes.nearest(), clcalib.Bits(4, 4)
            >>> result = clcalib.quantize(model, calibration, recipe=recipe, bits=bits)
            >>> [layer.name for layer in result.evidence(calibration).layers]
            ['1', '2']
        """
        read = images.images[: FEATURE_IMAGES if self._part is None else PART_IMAGES]
        if self._part is not None:
            read = self._part.rows(read)
        is_evaluation = isinstance(images, EvaluationSet)
        with usual_modes():
            return gather(
                self._floating,
                self.quantized,
                read,
                which="evaluation" if is_evaluation else "calibration",
                predictions=self._predictions if is_evaluation else None,
                evaluation=images if isinstance(images, EvaluationSet) else None,
                colours=colours,
            )

    def write_page(
        self, folder: str | Path, images: CalibrationSet | EvaluationSet, *, colours: Colours | None = None
    ) -> Path:
        """Write ``report.json`` and ``report.html`` into the folder of the saved result; return the page's path.

        The arguments are those of ``evidence``.
        """
        write_evidence(self.evidence(images, colours=colours), Path(folder) / EVIDENCE_FILE)
        return write_report(folder)

    def save(self, folder: str | Path, *, overwrite: bool = False) -> None:
        """Write ``model.safetensors``, ``model.json``, ``run.json`` and ``trace.json`` into ``folder``.

        Raises:
            OutputExistsError: the folder holds something and ``overwrite`` was not asked for.
        """
        folder = Path(folder)
        if folder.exists() and not overwrite and (not folder.is_dir() or any(folder.iterdir())):
            raise OutputExistsError(f"{folder} exists and is not empty; name another folder, or say overwrite=True")
        folder.mkdir(parents=True, exist_ok=True)
        for stale in (EVIDENCE_FILE, REPORT_FILE):  # what an earlier result left would speak of another one
            (folder / stale).unlink(missing_ok=True)
        save_checkpoint(folder, self.quantized, self._origin, self._elsewhere)
        write_trace(self.trace, folder / TRACE_FILE)
        write_record(self.record, folder / RECORD_FILE)


def quantize(
    model: nn.Module,
    calibration: CalibrationSet,
    *,
    recipe: Recipe,
    bits: Bits,
    seed: int = 0,
    setting: str = "qdrop",
    first_last_bits: EdgeBits = EDGE_BITS,
    overrides: Overrides | None = None,
    unit_patterns: Sequence[str] = (),
    submodule: str | None = None,
    target: str | None = None,
    weight_range: str | RangeRule = "mse_grid",
    activation_range: str | RangeRule = "mse_grid",
    softmax_grid: Grid = "uniform",
    gelu_grid: Grid = "uniform",
    is_layer_norm_reparameterized: bool = False,
    evaluation: EvaluationSet | None = None,
    held_out: CalibrationSet | None = None,
    measured_images: int = MEASURED_IMAGES,
    device: str | torch.device = "cpu",
    precision: str = "auto",
    cache_precision: str = "float32",
    memory_budget: int | str | None = None,
    spill_folder: str | Path | None = None,
    is_guarded: bool = True,
    guard_tolerance: float | None = None,
    is_rehearsed: bool = True,
    state_folder: str | Path | None = None,
    is_resumed: bool = False,
    observer: Observer | None = None,
    team: Team | None = None,
    line: Line | None = None,
) -> QuantizationResult:
    """Quantize a trained network from unlabelled images.

    Args:
        model: any module that ``torch.export`` takes; left untouched.
        calibration: about 1,000 images, normalised as the network expects them.
        recipe: a host method of ``clcalib.recipes``, with or without ``with_contrastive``.
        bits: the widths.
        seed: of every random choice; the caller's global generator is not used.
        setting: which edge layers have 8 bits, ``"qdrop"`` or ``"brecq"``.
        first_last_bits: the width of the first and last layer where that setting says 8; None leaves them in float,
            ``"same"`` treats them as all others.
        overrides: pattern -> widths, as ``Bits(4, 8)`` or as a text: ``"W4A8"``, ``"A8"``, ``"float"``.  A pattern is a
            glob of layer names or, as ``"@depthwise"`` or ``"@linear"``, a word of a layer's kind; the last one that
            fits wins, over the first and last layer's rule too.
        unit_patterns: globs of module paths; each module that matches is one unit.
        submodule: path of the part that is quantized, "backbone" say; the rest stays in float around it.  The images
            go through the whole model, and the part is calibrated on what it gets there.  Its layers and modules are
            named from the part on; a part that takes several tensors has its own name in front ("head.conv").
        target: the runtime whose integer kernels are to compute the result, a name in ``TARGETS`` ("onnxruntime"):
            widths, signs and the places of quantizers are those that its kernels have, so that nothing changes when the
            result is exported.  None is "paper": quantizers at what layers read, and nowhere else.
        weight_range: how a weight's range is found, a name in ``RANGE_RULES`` or a rule of your own.
        activation_range: the same for activations.
        softmax_grid: where the quantized values of a softmax lie, as attention's second product reads them:
            ``"uniform"``, ``"log2"`` or ``"log_sqrt2"`` (``quant/grids.py``).
        gelu_grid: the same for a GELU: ``"uniform"`` or ``"twin"``.
        is_layer_norm_reparameterized: whether the channels behind each layer norm are first brought to one range, which
            the layers that read them undo (``quant/reparameterize.py``); the float network stays the same.
        evaluation: images to judge the result on; with labels for accuracy.  Where a part of a detector is quantized,
            its boxes are compared instead.
        held_out: images on which the units' errors are measured, and nothing is fitted (but see ``is_guarded``).
        measured_images: how many images of either set the unit measures look at; 0 leaves them out.
        device: where to compute; the result stays there.
        precision: in which type convolutions compute while a unit is optimised: ``"float32"``, ``"bfloat16"``, or
            ``"auto"``, which is bfloat16 where this machine is faster in it.  Everything else, and the result, is
            float32.
        cache_precision: as what the float network's values between units, which are targets and part of the inputs, are
            stored: ``"float32"`` or ``"bfloat16"``, in half the memory.  The quantized network's are codes or float32.
        memory_budget: most bytes, as a number or as "2GB", that the units' stored inputs and targets have in memory;
            what does not fit goes to temporary files.  The result is the same, bit for bit.  None: all in memory.
        spill_folder: where these files are made; None is the system's folder for temporary files.  A folder that is
            itself in memory (as /tmp may be) saves none.
        is_guarded: whether a unit whose error after its optimisation is larger than with nearest rounding goes back to
            that.  The errors are those on ``held_out`` images, with fewer than 16 of these on calibration images.
        guard_tolerance: as a share of the error with nearest rounding, how much larger the other one may be.  None: 0
            on held-out images where the loss looks at the unit only; 0.05 on calibration images, and where a term looks
            behind the unit (prediction, contrastive, Fisher weights), as the error inside is not all that counts then.
        is_rehearsed: whether the file of a ``target`` is first written, loaded and run with quick ranges
            (``export/rehearsal.py``), so that what its runtime refuses is told in seconds.
        state_folder: where finished units are saved as the run goes on, and every minute the one under way, so that an
            interrupted run loses a minute at most.  None saves nothing.  It is for this run alone, and stays until you
            delete it.
        is_resumed: whether the run goes on with what an interrupted one left in ``state_folder``.  The result is the
            same, bit for bit, as without the interruption; the arguments must be the same too, but for
            ``memory_budget``, ``spill_folder``, ``evaluation``, ``measured_images`` and ``observer``.
        observer: told of the progress.
        team: in how many shards the images are, and which of them this process works on; by default one shard.  With
            several workers each calls this function with the same arguments and its own ``Team``, and gets the same
            result, bit for bit, which depends on the shards and not on the workers.  All measure and evaluate it; the
            first one alone touches ``state_folder``.
        line: this process among the workers that have the network's units, as worker 0, for a network that is larger
            than one worker's memory; the others ``attend``.  The result is that of one worker, bit for bit.  The
            parameters of ``model`` are let go of; ``save`` and ``record`` are all that is of use of the result.

    Returns:
        The quantized model, its record and its table of widths.

    Raises:
        ClcalibError: the model, the images or a setting cannot be used; told before any optimisation.
        UnsupportedOperatorError: the target cannot take the network; told before any optimisation, with what helps.
        StorageError: the state cannot be saved; what was saved before still is.
        FolderInUseError: another process works in ``state_folder``.
        ResumeError: there is nothing to go on with, or an argument is another one than it was.
        OutputExistsError: ``state_folder`` holds the state of another run, and ``is_resumed`` is false.
        WorkerLostError: another worker is gone; what is finished is saved.

    Warns:
        RuntimeMissingWarning: what writes or runs the target's file is not installed; told before any optimisation.

    Example:
        >>> import clcalib, torch
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.Flatten(), torch.nn.Linear(144, 5)).eval()
        >>> calibration = clcalib.CalibrationSet.from_tensor(torch.randn(64, 3, 8, 8))
        >>> result = clcalib.quantize(model, calibration, recipe=clcalib.recipes.nearest(), bits=clcalib.Bits(4, 4))
        >>> result.model(calibration.images).shape
        torch.Size([64, 5])
    """
    observer = observer or SilentObserver()
    with usual_modes(), collected_warnings() as messages, StageClock(observer.stage) as clock:
        job = prepare(
            model,
            calibration,
            recipe=recipe,
            bits=bits,
            seed=seed,
            setting=setting,
            first_last_bits=first_last_bits,
            overrides=overrides,
            unit_patterns=unit_patterns,
            submodule=submodule,
            target=target,
            weight_range=weight_range,
            activation_range=activation_range,
            softmax_grid=softmax_grid,
            gelu_grid=gelu_grid,
            is_layer_norm_reparameterized=is_layer_norm_reparameterized,
            evaluation=evaluation,
            held_out=held_out,
            measured_images=measured_images,
            device=device,
            precision=precision,
            cache_precision=cache_precision,
            memory_budget=memory_budget,
            spill_folder=spill_folder,
            is_guarded=is_guarded,
            guard_tolerance=guard_tolerance,
            is_rehearsed=is_rehearsed,
            observer=observer,
            clock=clock,
            team=team,
            line=line,
        )
        check_team(job)
        float_digest, holder = model_digest(model), None
        if line is not None:
            job = held(job)
            model.to("meta")
        with opened_state(job, state_folder, is_resumed=is_resumed) as state:
            with StoreSpace(job.memory_budget, job.spill_folder) as space:
                if line is not None:
                    holder = Holder(job, space, state)
                outcome = job.calibrate(space, Journal(state)) if holder is None else holder.calibrate()
            before, resumptions = (0.0, 0) if state is None else (state.seconds_before, state.resumptions)
        units = job.measure(outcome)
        clock.stage("evaluation")
        networks = [job.network(each) for each in (job.chain, outcome.before.chain, outcome.after.chain)]
        comparison, found, predictions = None, None, None
        if evaluation is not None and job.is_detector:
            found = detected(networks, evaluation, job.device)
        elif evaluation is not None:
            comparison, predictions = judged(networks, evaluation, job.device)
        elsewhere = {} if holder is None else holder.collected()
        if holder is not None:
            holder.dismiss()
    record = RunRecord(
        float_top1=None if comparison is None else comparison.float_top1,
        nearest_top1=None if comparison is None else comparison.nearest_top1,
        quantized_top1=None if comparison is None else comparison.quantized_top1,
        nearest_agreement=None if comparison is None else comparison.nearest_agreement,
        agreement=None if comparison is None else comparison.agreement,
        weight_bits=bits.weights or 32,
        activation_bits=bits.activations or 32,
        setting=setting,
        policy=layer_records(job.policy),
        float_parts=float_records(job.chain, job.policy),
        recipe=recipe.name,
        contrastive=recipe.contrastive,
        seed=seed,
        steps_per_unit=recipe.steps_per_unit,
        seconds=before + sum(clock.seconds.values()),
        resumptions=resumptions,
        seconds_per_stage=clock.seconds,
        peak_memory_bytes=peak_memory(job.device),
        stored_bytes=space.most_used,
        spilled_bytes=space.most_in_files,
        guard_tolerance=job.used_tolerance,
        units=units,
        submodule=submodule,
        runtime_target=target,
        detection=found,
        last_phase=None if outcome.network is None else last_phase_record(outcome.network),
        calibration_images=len(calibration),
        calibration_transform=calibration.provenance.transform,
        evaluation_images=0 if evaluation is None else len(evaluation.images),
        device=str(job.device),
        precision=str(job.dtype).removeprefix("torch."),
        cache_precision=cache_precision,
        kernels=kernels_on(job.device),
        threads=torch.get_num_threads(),
        shards=job.team.shards,
        workers=job.team.workers if line is None else line.workers,
        versions=versions(),
        model_digest=float_digest,
        calibration_digest=calibration.provenance.digest,
        evaluation_digest=None if evaluation is None else evaluation.provenance.digest,
        warnings=tuple(messages),
    )
    trace = run_trace(outcome.traces, outcome.network)
    form = None if job.part is None else job.part.form
    dtype = str(job.images.dtype).removeprefix("torch.")
    origin = Origin(recipe.unit, tuple(unit_patterns), tuple(job.images.shape[1:]), submodule, form, dtype, target)
    kept = job.chain, job.part, predictions, elsewhere
    return QuantizationResult(networks[-1], record, trace, job.policy, outcome.after, origin, *kept)


def load(folder: str | Path, model: nn.Module) -> nn.Module:
    """Return the quantized network saved in ``folder``; its outputs are bit for bit those of the saved one.

    Args:
        folder: what ``QuantizationResult.save`` wrote.
        model: the float architecture, with any finite weights; not changed.

    Raises:
        CheckpointError: the files are damaged or belong to another architecture.
    """
    with usual_modes():
        return load_checkpoint(Path(folder), model)
