"""``clcalib quantize``: the main job, from a trained network and images to a quantized network and a table."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from clcalib.calibrate.observer import SilentObserver
from clcalib.calibrate.recipes import RECIPES
from clcalib.cli.flags import (
    ConfigArgument,
    DeviceOption,
    EvaluationOption,
    ModelOption,
    SetOption,
    SubmoduleOption,
    ThreadsOption,
    WeightsOption,
    collect,
    split_bits,
    split_names,
)
from clcalib.cli.progress import observer_for
from clcalib.config import RunConfig, build
from clcalib.config_problems import options_model
from clcalib.data.augmentation import AUGMENTATIONS
from clcalib.errors import ClcalibWarning
from clcalib.report.record import RunRecord
from clcalib.report.tables import summary_table, unit_table
from clcalib.run import run

EXAMPLES = (
    "[bold]Examples[/bold]\n\n"
    "clcalib quantize --model net.py:build --weights net.safetensors --calibration images --bits W4A4 --out runs/a\n\n"
    "clcalib quantize run.toml --bits W2A2 --contrastive --seed 1 --out runs/w2a2-seed1\n\n"
    "clcalib quantize run.toml --recipe brecq --steps 2000 --set quantization.setting=brecq --out runs/brecq"
)


def quantize(
    config: ConfigArgument = None,
    *,
    model: ModelOption = None,
    weights: WeightsOption = None,
    submodule: SubmoduleOption = None,
    calibration: Annotated[
        Path | None,
        typer.Option(
            "--calibration", metavar="PATH", help="Images: a folder, a tile sheet, a .safetensors file or CIFAR-10."
        ),
    ] = None,
    augment: Annotated[
        str | None,
        typer.Option(
            "--augment",
            metavar="NAMES",
            help=f"Add changed copies of the calibration images: any of {', '.join(AUGMENTATIONS)}, as flip,crop.",
        ),
    ] = None,
    augment_copies: Annotated[
        int | None, typer.Option("--augment-copies", metavar="N", help="How many of each image; 1 by default.")
    ] = None,
    evaluation: EvaluationOption = None,
    bits: Annotated[str | None, typer.Option("--bits", metavar="W4A4", help="Widths, 2 to 8 (32 is float).")] = None,
    weight_bits: Annotated[int | None, typer.Option("--weight-bits", metavar="N", help="Width of weights.")] = None,
    activation_bits: Annotated[
        int | None, typer.Option("--activation-bits", metavar="N", help="Width of activations.")
    ] = None,
    recipe: Annotated[
        str | None, typer.Option("--recipe", metavar="NAME", help=f"{', '.join(RECIPES)}; fast by default.")
    ] = None,
    steps: Annotated[
        int | None, typer.Option("--steps", metavar="N", help="Steps for each unit; the paper's by default.")
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
    settings: SetOption = None,
    seed: Annotated[int | None, typer.Option("--seed", metavar="N", help="Of everything random; 0 by default.")] = None,
    device: DeviceOption = None,
    threads: ThreadsOption = None,
    memory_budget: Annotated[
        str | None,
        typer.Option(
            "--memory-budget",
            metavar="SIZE",
            help="Most memory for stored activations, 2GB say; the rest goes to files.",
        ),
    ] = None,
    precision: Annotated[
        str | None,
        typer.Option(
            "--precision",
            metavar="NAME",
            help="Type of convolutions while optimising: auto (the faster one here), float32 or bfloat16.",
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", metavar="FOLDER", help="Where the results go.")] = None,
    overwrite: Annotated[
        bool | None, typer.Option("--overwrite", help="Write into a folder that is not empty.")
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print only warnings and errors.")] = False,
) -> None:
    """Quantize a trained network with a few hundred images; nothing is retrained.

    Leaves model.safetensors, model.json, run.json and config.json in the output folder.
    """
    both = split_bits(bits)
    flags: dict[str, Any] = {
        "model": {"entry": model, "weights": weights, "submodule": submodule},
        "data": {
            "calibration": calibration,
            "augment": split_names(augment),
            "augment_copies": augment_copies,
            "evaluation": evaluation,
        },
        "quantization": {"weights": weight_bits or both[0], "activations": activation_bits or both[1]},
        "recipe": {"name": recipe, "steps": steps},
        "run": {
            "seed": seed,
            "device": device,
            "threads": threads,
            "memory_budget": memory_budget,
            "precision": precision,
            "out": out,
            "overwrite": overwrite,
        },
    }
    table, source = collect(config, settings, flags)
    table = _with_fitting_options(table, recipe, steps)
    table = _with_section(_with_section(table, "contrastive", contrastive), "last_phase", last_phase)
    parsed = build(RunConfig, table, source)
    console, log = Console(highlight=False), Console(stderr=True, highlight=False)
    if quiet:
        run(parsed, SilentObserver())
        return
    with observer_for(console, log) as observer:
        record = run(parsed, observer)
    _show(record, parsed.run.out, console)


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


def _show(record: RunRecord, out: Path, console: Console) -> None:
    console.print()
    if record.units and record.steps_per_unit:
        console.print(unit_table(record))
        console.print()
    console.print(summary_table([record]))
    console.print()
    for path in sorted(out.iterdir()):
        console.print(Text(str(path)), soft_wrap=True)
