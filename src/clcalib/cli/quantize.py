"""``clcalib quantize``: the main job, from a trained network and images to a quantized network and a table."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from signal import SIGINT
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from clcalib.calibrate.observer import SilentObserver
from clcalib.calibrate.recipes import RECIPES
from clcalib.cli import completion
from clcalib.cli.flags import (
    ACCURACY,
    COST,
    WIDTHS,
    BitsOption,
    ConfigArgument,
    ConfigOption,
    DeviceOption,
    EdgeBitsOption,
    EvaluationOption,
    FloatOption,
    JsonOption,
    MlflowOption,
    ModelOption,
    PretrainedOption,
    RankOption,
    RendezvousOption,
    SetOption,
    ShardsOption,
    SubmoduleOption,
    TargetOption,
    TensorboardOption,
    ThreadsOption,
    UnitPatternOption,
    WaitOption,
    WeightsOption,
    WorkersOption,
    collect,
    collect_saved,
    model_flags,
    one_config,
    quantization_flags,
    refuse_with_resume,
    split_names,
    with_patterns,
)
from clcalib.cli.messages import new_console
from clcalib.cli.progress import observer_for
from clcalib.cli.results import (
    estimate_json,
    result_line,
    show_estimate,
    show_json,
    show_record,
    transform_line,
)
from clcalib.cli.workers import WorkerFlags, check_team, run_on_workers, with_shards
from clcalib.config import build
from clcalib.config_problems import options_model
from clcalib.config_sections import RunConfig
from clcalib.data.augmentation import AUGMENTATIONS
from clcalib.durable.stop import Request, stopping_politely
from clcalib.errors import ClcalibWarning, StoppedError
from clcalib.output import is_finished
from clcalib.pipeline import RECORD_FILE
from clcalib.report.record import RunRecord, read_record
from clcalib.run import dry_run, run

EXAMPLES = (
    "[bold]Examples[/bold]\n\n"
    "clcalib quantize --model net.py:build --weights net.safetensors --calibration images --bits W4A4 --out runs/a\n\n"
    "clcalib quantize run.toml --bits W2A2 --contrastive --seed 1 --out runs/w2a2-seed1\n\n"
    "clcalib quantize run.toml --recipe cl_calib --out runs/paper\n\n"
    "clcalib quantize run.toml --recipe brecq --steps 2000 --set quantization.setting=brecq --out runs/brecq\n\n"
    "clcalib quantize run.toml --bits W2A4 --bits 'layer4.*=W4A8' --bits @depthwise=W8A8 --float '*.se.*' --out b\n\n"
    "clcalib quantize run.toml --dry-run --memory-budget 2GB\n\n"
    "clcalib quantize --resume runs/a\n\n"
    "clcalib quantize run.toml --workers 4 --out runs/shared\n\n"
    "clcalib quantize run.toml --workers 2 --rendezvous 10.0.0.7:29500 --rank 0 --out runs/shared\n\n"
    "clcalib quantize run.toml --bits W2A2 --max-drop 1.0 --out runs/within-one-point\n\n"
    "clcalib quantize run.toml --bits W8A8 --target onnxruntime --out runs/deployed\n\n"
    "clcalib quantize run.toml --bits W4A8 --size-budget 200KB --out runs/mixed"
)


def quantize(
    config: ConfigArgument = None,
    *,
    config_file: ConfigOption = None,
    model: ModelOption = None,
    weights: WeightsOption = None,
    pretrained: PretrainedOption = False,
    submodule: SubmoduleOption = None,
    calibration: Annotated[
        Path | None,
        typer.Option(
            "--calibration",
            metavar="PATH",
            help="Images: a folder, a .txt list of files, an .npz or .safetensors file, CIFAR-10, hf:NAME.",
        ),
    ] = None,
    augment: Annotated[
        str | None,
        typer.Option(
            "--augment",
            metavar="NAMES",
            autocompletion=completion.augmentations,
            help=f"Add changed copies of the calibration images: any of {', '.join(AUGMENTATIONS)}, as flip,crop.",
        ),
    ] = None,
    augment_copies: Annotated[
        int | None, typer.Option("--augment-copies", metavar="N", help="How many of each image; 1 by default.")
    ] = None,
    evaluation: EvaluationOption = None,
    bits: BitsOption = None,
    float_: FloatOption = None,
    first_last_bits: EdgeBitsOption = None,
    target: TargetOption = None,
    weight_bits: Annotated[
        int | None, typer.Option("--weight-bits", rich_help_panel=WIDTHS, metavar="N", help="Width of weights.")
    ] = None,
    activation_bits: Annotated[
        int | None, typer.Option("--activation-bits", rich_help_panel=WIDTHS, metavar="N", help="Width of activations.")
    ] = None,
    max_drop: Annotated[
        float | None,
        typer.Option(
            "--max-drop",
            rich_help_panel=ACCURACY,
            metavar="POINTS",
            help="Raise widths of the most sensitive units, run after run, until at most this is lost.",
        ),
    ] = None,
    size_budget: Annotated[
        str | None,
        typer.Option(
            "--size-budget",
            rich_help_panel=WIDTHS,
            metavar="SIZE",
            help="Most bytes of weights, 200KB say; each unit's weight width is chosen for it.",
        ),
    ] = None,
    cost_budget: Annotated[
        float | None,
        typer.Option(
            "--cost-budget",
            rich_help_panel=WIDTHS,
            metavar="SHARE",
            help="The same for bit operations, as a share of W8A8's: W4A8 is 0.5.",
        ),
    ] = None,
    unit_pattern: UnitPatternOption = None,
    recipe: Annotated[
        str | None,
        typer.Option(
            "--recipe",
            metavar="NAME",
            autocompletion=completion.recipes,
            help="fast (default, 200 steps), qdrop, cl_calib (the paper's method, 20,000 steps), ...; clcalib recipes "
            "lists them.",
        ),
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option(
            "--steps", metavar="N", help="Steps for each unit; by default those of the recipe's paper, fast 200."
        ),
    ] = None,
    contrastive: Annotated[
        bool | None, typer.Option("--contrastive/--no-contrastive", help="Add the contrastive term, or leave it out.")
    ] = None,
    last_phase: Annotated[
        bool | None,
        typer.Option(
            "--last-phase/--no-last-phase", help="Optimise the whole network when all units are done, or not."
        ),
    ] = None,
    guard: Annotated[
        bool | None,
        typer.Option(
            "--guard/--no-guard",
            rich_help_panel=ACCURACY,
            help="Keep nearest rounding in units that get worse (default), or not.",
        ),
    ] = None,
    guard_images: Annotated[
        int | None,
        typer.Option(
            "--guard-images",
            rich_help_panel=ACCURACY,
            metavar="N",
            help="Keep N calibration images aside to judge that; default 0.",
        ),
    ] = None,
    settings: SetOption = None,
    seed: Annotated[int | None, typer.Option("--seed", metavar="N", help="Of everything random; 0 by default.")] = None,
    device: DeviceOption = None,
    threads: ThreadsOption = None,
    memory_budget: Annotated[
        str | None,
        typer.Option(
            "--memory-budget",
            rich_help_panel=COST,
            metavar="SIZE",
            help="Most memory for stored activations, 2GB say; the rest goes to files.",
        ),
    ] = None,
    precision: Annotated[
        str | None,
        typer.Option(
            "--precision",
            rich_help_panel=COST,
            metavar="NAME",
            autocompletion=completion.precisions,
            help="Type of convolutions while optimising: auto (the faster one here), float32 or bfloat16.",
        ),
    ] = None,
    workers: WorkersOption = None,
    shards: ShardsOption = None,
    rendezvous: RendezvousOption = None,
    rank: RankOption = None,
    wait: WaitOption = None,
    tensorboard: TensorboardOption = None,
    mlflow: MlflowOption = None,
    out: Annotated[Path | None, typer.Option("--out", metavar="FOLDER", help="Where the results go.")] = None,
    overwrite: Annotated[
        bool | None, typer.Option("--overwrite", help="Write into a folder that is not empty.")
    ] = None,
    resume: Annotated[
        Path | None,
        typer.Option(
            "--resume",
            metavar="FOLDER",
            help="Go on with the interrupted run in this output folder, with its own settings; nothing finished is "
            "done again.",
        ),
    ] = None,
    is_dry: Annotated[
        bool,
        typer.Option(
            "--dry-run", rich_help_panel=COST, help="Print the time, memory and disk that it would take; write nothing."
        ),
    ] = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="Print the result on one line, and warnings and errors.")
    ] = False,
    is_json: JsonOption = False,
) -> None:
    """Quantize a trained network with a few hundred images; nothing is retrained.

    Leaves model.safetensors, model.json, run.json, config.json and the page
    report.html, which shows it all, in the output folder, and with --target the file for the runtime, model.onnx or
    model.pt2, which is checked in it at once.  clcalib describe shows what --bits and
    --float patterns mean for a network, and --dry-run what a run takes.

    With --target the file is first tried out with quick ranges, before
    calibration and in a dry run too, so that what the runtime refuses is
    told in seconds.

    With --size-budget or --cost-budget the widths of weights are chosen, so
    that they hurt least within it; a width that a pattern names stays.  The
    TOML's section budget has more, such as candidate widths of activations,
    which a cost may choose too.

    Each finished unit is saved at once, and every minute the one under way.
    After Ctrl-C, a power cut or a full disk, --resume FOLDER goes on there;
    the result is the same to the bit.  Flags beside it that change the result
    are refused; --memory-budget may be another one.

    With --workers, several processes share the images of one run, which
    begins again by itself, where it was saved, when one of them dies.  The
    result is the same for any number of workers with the same --shards; all
    of them get the same settings, and that of rank 0 writes and shows.

    With --max-drop, half of the evaluation images choose the widths and the
    other half report; a figure to publish needs a third set, which took no
    part in any choice.
    """
    config = one_config(config, config_file)
    team = WorkerFlags(workers, rendezvous, rank, wait)
    place = team.place()
    widths = quantization_flags(bits, first_last_bits, unit_pattern, weight_bits, activation_bits, target)
    flags: dict[str, Any] = {
        "model": model_flags(model, weights, is_pretrained=pretrained, submodule=submodule),
        "data": {
            "calibration": calibration,
            "augment": split_names(augment),
            "augment_copies": augment_copies,
            "evaluation": evaluation,
        },
        "quantization": widths,
        "recipe": {"name": recipe, "steps": steps},
        "guard": {"enabled": guard, "images": guard_images},
        "target": {"max_drop": max_drop},
        "budget": {"size": size_budget, "cost": cost_budget},
        "tracking": {"tensorboard": tensorboard, "mlflow": mlflow},
        "run": {
            "seed": seed,
            "device": device,
            "threads": threads,
            "shards": shards,
            "memory_budget": memory_budget,
            "precision": precision,
            "out": out,
            "overwrite": overwrite,
        },
    }
    if resume is not None:
        refuse_with_resume(config, out, is_dry=is_dry, overwrite=bool(overwrite))
        flags["run"] |= {"out": resume, "overwrite": None}
    table, source = collect(config, settings, flags) if resume is None else collect_saved(resume, settings, flags)
    table = _with_fitting_options(table, recipe, steps)
    table = _with_section(_with_section(table, "contrastive", contrastive), "last_phase", last_phase)
    table = with_shards(with_patterns(table, bits, float_), place, is_resumed=resume is not None)
    is_without_output = is_dry or (place is not None and not place.is_first)
    parsed = build(RunConfig, _with_any_folder(table) if is_without_output else table, source)
    if place is not None:
        check_team(parsed, place)
    log = new_console(is_stderr=True)
    console = log if is_json else new_console()
    if not quiet:
        log.print(transform_line(parsed.model, parsed.data, parsed.data.calibration), soft_wrap=True)
    if is_dry:
        log.print("a dry run: a few steps on few images; its errors are not those of the run", soft_wrap=True)
        with observer_for(console, log) as observer:
            found = dry_run(parsed, observer)
        if is_json:
            show_json(estimate_json(found))
        else:
            show_estimate(found, None if parsed.target is None else parsed.target.rounds, console)
        return
    record: RunRecord | None
    if resume is not None and is_finished(parsed.run.out) and (place is None or place.is_alone):
        log.print(Text(f"the run in {parsed.run.out} is finished; nothing is left to do"), soft_wrap=True)
        record = read_record(parsed.run.out / RECORD_FILE)
    elif place is not None and place.workers > 1:
        known = {"is_resumed": resume is not None, "is_quiet": quiet, "is_json": is_json}
        record = run_on_workers(parsed, place, log, **known, wait=wait)
        if record is None:
            return
    else:
        record = _run(parsed, console, log, is_resumed=resume is not None, is_quiet=quiet)
    if is_json:
        show_json(record)
    elif quiet:
        console.print(Text(result_line(record, parsed.run.out)), soft_wrap=True)
    else:
        show_record(record, parsed.run.out, console)


def _run(config: RunConfig, console: Console, log: Console, *, is_resumed: bool, is_quiet: bool) -> RunRecord:
    """The run; a signal becomes an error with its exit code, when what is finished is saved."""
    request = Request()
    try:
        with stopping_politely() as request:
            if is_quiet:
                return run(config, SilentObserver(), is_resumed=is_resumed)
            with observer_for(console, log) as observer:
                return run(config, observer, is_resumed=is_resumed)
    except KeyboardInterrupt as error:
        raise StoppedError(
            str(error) or "interrupted; no result was written", 128 + (request.signal or SIGINT)
        ) from None


def _with_any_folder(table: dict[str, Any]) -> dict[str, Any]:
    """A dry run needs no output folder; one that is named is not looked at."""
    section = table.get("run", {})
    return {**table, "run": {"out": "nowhere", **section}} if isinstance(section, Mapping) else table


def _with_section(table: dict[str, Any], section: str, is_wanted: bool | None) -> dict[str, Any]:
    """``--contrastive`` asks for the section ``[contrastive]``, ``--no-contrastive`` takes it away; None: neither."""
    if is_wanted is None:
        return table
    return {**table, section: table.get(section) or {} if is_wanted else None}


def _with_fitting_options(table: dict[str, Any], recipe: str | None, steps: int | None) -> dict[str, Any]:
    """Where ``--recipe`` replaces the TOML's recipe, leave out the TOML's options that only the other one has."""
    section = table.get("recipe")
    if recipe not in RECIPES or not isinstance(section, Mapping):
        return table
    valid = {"name", *options_model(RECIPES[recipe]).model_fields} | ({"steps"} if steps is not None else set())
    odd = [key for key in section if key not in valid]
    if odd:
        warnings.warn(f"{recipe} has no option {', '.join(odd)}: left out of [recipe]", ClcalibWarning, stacklevel=2)
    return {**table, "recipe": {key: value for key, value in section.items() if key in valid}}
