"""The options that several commands share, as their help shows them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from clcalib.cli import completion

RUNTIME_HELP = 'What runs ONNX models: onnxruntime (default) or openvino; pip install "clcalib\\[onnxruntime]".'

# Panels of the help.
WIDTHS, ACCURACY, COST, TRACKING = "Widths and units", "Accuracy", "Time, memory and disk", "Experiment trackers"
WORKERS = "Several workers"

ConfigArgument = Annotated[
    Path | None, typer.Argument(metavar="[CONFIG.toml]", help="A configuration file; flags win over it.")
]
ConfigOption = Annotated[
    Path | None, typer.Option("--config", metavar="FILE", help="The same as CONFIG.toml without an option.")
]
ModelOption = Annotated[
    str | None,
    typer.Option(
        "--model",
        metavar="ENTRY",
        autocompletion=completion.models,
        help="The network: torchvision:NAME, timm:NAME, package.module:callable or path/to/file.py:callable.",
    ),
]
WeightsOption = Annotated[
    Path | None,
    typer.Option("--weights", metavar="FILE", help="Its weights: a .safetensors file, or a state dict in a .pt file."),
]
PretrainedOption = Annotated[
    bool,
    typer.Option(
        "--pretrained", help="Of a network by name: the weights that its makers publish, downloaded where needed."
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON on stdout, and nothing else there.")]
SubmoduleOption = Annotated[
    str | None,
    typer.Option("--submodule", metavar="PATH", help="Quantize this part of the network only, such as backbone."),
]
EvaluationOption = Annotated[
    Path | None,
    typer.Option("--evaluation", metavar="PATH", help="Evaluation images, as --calibration takes them; labels if any."),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Set any key of the configuration: --set data.count=512"),
]
DeviceOption = Annotated[
    str | None,
    typer.Option(
        "--device",
        rich_help_panel=COST,
        metavar="NAME",
        autocompletion=completion.devices,
        help="cpu (default), cuda, cuda:N or mps.",
    ),
]
ThreadsOption = Annotated[
    int | None,
    typer.Option("--threads", rich_help_panel=COST, metavar="N", help="CPU threads of torch; all cores by default."),
]

TensorboardOption = Annotated[
    Path | None,
    typer.Option(
        "--tensorboard",
        rich_help_panel=TRACKING,
        metavar="FOLDER",
        help="Write losses, errors and results for TensorBoard, into a folder in it for each run.",
    ),
]
MlflowOption = Annotated[
    str | None,
    typer.Option(
        "--mlflow",
        rich_help_panel=TRACKING,
        metavar="FOLDER|URI",
        help="The same as a run of MLflow, in a database in this folder, or where a URI says.",
    ),
]

BitsOption = Annotated[
    list[str] | None,
    typer.Option(
        "--bits",
        rich_help_panel=WIDTHS,
        metavar="WIDTHS",
        autocompletion=completion.widths,
        help="W4A4: 2 to 8 bits, 32 is float; again, for some layers, 'layer4.*=W4A8', '@depthwise=W8'.",
    ),
]
FloatOption = Annotated[
    list[str] | None,
    typer.Option(
        "--float", rich_help_panel=WIDTHS, metavar="PATTERN", help="Leave these layers in float: '*.se.*', @linear."
    ),
]
TargetOption = Annotated[
    str | None,
    typer.Option(
        "--target",
        rich_help_panel=WIDTHS,
        metavar="NAME",
        autocompletion=completion.targets,
        help="Calibrate under the rules of a runtime: onnxruntime, openvino, torch, ...; clcalib targets lists them.",
    ),
]
EdgeBitsOption = Annotated[
    str | None,
    typer.Option(
        "--first-last-bits",
        rich_help_panel=WIDTHS,
        metavar="N|same",
        help="Width of the first and the last layer; 8 by default.",
    ),
]
UnitPatternOption = Annotated[
    list[str] | None,
    typer.Option(
        "--unit-pattern",
        rich_help_panel=WIDTHS,
        metavar="GLOB",
        help="Make each module of these names one unit: 'layer1.*'.",
    ),
]

WorkersOption = Annotated[
    str | None,
    typer.Option(
        "--workers",
        rich_help_panel=WORKERS,
        metavar="N|env",
        help="Share the run among N processes: of this machine, or one a call with --rank; env: as torchrun says.",
    ),
]
SplitOption = Annotated[
    str | None,
    typer.Option(
        "--split",
        rich_help_panel=WORKERS,
        metavar="images|units",
        help="What workers have parts of: images (default), or units, for networks larger than one worker's memory.",
    ),
]
ShardsOption = Annotated[
    int | None,
    typer.Option(
        "--shards",
        rich_help_panel=WORKERS,
        metavar="N",
        help="Parts of the images, dealt to the workers; the result depends on it. 4 with --workers, or else 1.",
    ),
]
RendezvousOption = Annotated[
    str | None,
    typer.Option(
        "--rendezvous",
        rich_help_panel=WORKERS,
        metavar="HOST:PORT",
        help="Where calls on several machines meet: an address of the one with --rank 0, and a free port there.",
    ),
]
RankOption = Annotated[
    int | None,
    typer.Option("--rank", rich_help_panel=WORKERS, metavar="I", help="Which worker this call is, from 0."),
]
WaitOption = Annotated[
    float | None,
    typer.Option(
        "--wait",
        rich_help_panel=WORKERS,
        metavar="SECONDS",
        help="How long to wait for a machine that is missing, at the start or later; 300 by default.",
    ),
]
