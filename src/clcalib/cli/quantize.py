"""``clcalib quantize``: the main job, from a trained network and images to a quantized network and a table."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from clcalib.cli import completion
from clcalib.cli.given import ModelFlags, RunFlags, WidthFlags, WorkerFlags
from clcalib.cli.names import names_of
from clcalib.cli.options import (
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
    SplitOption,
    SubmoduleOption,
    TargetOption,
    TensorboardOption,
    ThreadsOption,
    UnitPatternOption,
    WaitOption,
    WeightsOption,
    WorkersOption,
)

_AUGMENTATIONS = ", ".join(names_of(*completion.AUGMENTATIONS))
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
    "clcalib quantize run.toml --workers 2 --split units --out runs/large\n\n"
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
            help=f"Add changed copies of the calibration images: any of {_AUGMENTATIONS}, as flip,crop.",
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
    biases: Annotated[
        bool | None, typer.Option("--biases/--no-biases", help="Train the layers' biases beside the rest, or not.")
    ] = None,
    last_phase: Annotated[
        bool | None,
        typer.Option(
            "--last-phase/--no-last-phase", help="Optimise the whole network when all units are done, or not."
        ),
    ] = None,
    tuning: Annotated[
        bool | None,
        typer.Option(
            "--tuning/--no-tuning",
            help="Tune all scales and biases together when all units are done, on changed images, or not.",
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
    split: SplitOption = None,
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

    With --split units beside it, each worker has some units of the network
    instead, and what they store; a memory plan says which. The result is that
    of one worker without it.

    With --max-drop, half of the evaluation images choose the widths and the
    other half report; a figure to publish needs a third set, which took no
    part in any choice.
    """
    from clcalib.cli.actions.quantize import quantize_as

    sections: dict[str, dict[str, Any]] = {
        "data": {
            "calibration": calibration,
            "augment": augment,
            "augment_copies": augment_copies,
            "evaluation": evaluation,
        },
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
    quantize_as(
        (config, config_file),
        RunFlags(
            ModelFlags(model, weights, pretrained, submodule),
            WidthFlags(bits, float_, first_last_bits, unit_pattern, target, weight_bits, activation_bits),
            sections,
            {"contrastive": contrastive, "biases": biases, "last_phase": last_phase, "tuning": tuning},
            settings,
        ),
        WorkerFlags(workers, rendezvous, rank, wait, split),
        resume=resume,
        is_dry=is_dry,
        is_quiet=quiet,
        is_json=is_json,
    )
