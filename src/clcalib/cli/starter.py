"""The text of ``clcalib init``: a TOML in which every key stands, explained, with its default or a value that fits.

Keys and defaults are read off the sections themselves; what is written here is what each key is for.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pydantic import BaseModel

from clcalib.calibrate.recipes import RECIPES
from clcalib.config_problems import section_of
from clcalib.config_sections import RunConfig
from clcalib.quant.targets import TARGETS

_WIDTH = 100


@dataclasses.dataclass(frozen=True)
class Key:
    """One key: what it is for, and an example where its default is to have none."""

    text: str
    example: Any = None


# Sections in the order of the file.  One that is optional in a configuration is written as comments.
SECTIONS: dict[str, tuple[str, dict[str, Key]]] = {
    "model": (
        "The float network.",
        {
            "entry": Key("torchvision:NAME, timm:NAME, package.module:function or path/to/file.py:function."),
            "arguments": Key("Arguments of the function that builds it.", {"num_classes": 10}),
            "weights": Key(
                'Its trained weights: a .safetensors file, a state dict in a .pt file, or "pretrained" for those that '
                "torchvision or timm publish, which are downloaded.",
                "weights.safetensors",
            ),
            "submodule": Key("Quantize a part of it only, and leave the rest in float.", "backbone"),
        },
    ),
    "data": (
        "Images.  A folder of image files, a .txt list of them, an .npz or .safetensors file, CIFAR-10, or hf:NAME.",
        {
            "calibration": Key("A few hundred images as the network was trained on; labels are not needed."),
            "count": Key("How many of them; by default all, at most 1,024.", 256),
            "evaluation": Key("Images to judge the result on: accuracy with labels, agreement without.", "test"),
            "evaluation_count": Key("How many of them; by default all.", 1000),
            "held_out_count": Key("Evaluation images on which each unit is checked; nothing is fitted to them."),
            "resize": Key("Pixels that the shorter side is brought to; leave it out to keep the size.", 256),
            "crop": Key("Pixels of the square that is cut from the middle; leave it out to take all.", 224),
            "squash": Key("Bring both sides to resize, whatever their ratio."),
            "interpolation": Key('How pixels are made on the way: "bilinear" or "bicubic".'),
            "mean": Key("Of each channel, on the scale of 0 to 1, as in the network's training."),
            "standard_deviation": Key("Of each channel, likewise."),
            "augment": Key("Add changed copies of the calibration images.", ["flip", "crop"]),
            "augment_copies": Key("How many of each image."),
            "most_pixels": Key("A file with more pixels is refused before it is decoded."),
        },
    ),
    "quantization": (
        "How many bits.  clcalib describe FILE prints what becomes of every layer.",
        {
            "weights": Key("Bits of weights, 2 to 8; 32 is float."),
            "activations": Key("Bits of activations, likewise."),
            "first_last_bits": Key('Bits of the first and the last layer; "same" treats them as all others.'),
            "target": Key(f"Calibrate for the kernels of a runtime: {', '.join(TARGETS)}.", "onnxruntime"),
            "overrides": Key("Widths by globs of names, or @ and a word of the type.", {"@depthwise": "W8A8"}),
            "unit_patterns": Key("Modules that are to be one unit each.", ["layer1.*"]),
            "setting": Key("Which layers at the edges have first_last_bits: qdrop or brecq."),
            "symmetric_weights": Key("Leave out the zero points of weights; targets that need it do so by themselves."),
            "symmetric_activations": Key("The same for activations."),
            "weight_range": Key("How ranges of weights are found: mse_grid, minmax, percentile, entropy."),
            "activation_range": Key("The same for activations."),
            "softmax_grid": Key('Where values behind a softmax lie: "uniform", "log2" or "log_sqrt2".'),
            "gelu_grid": Key('Where values behind a GELU lie: "uniform" or "twin".'),
            "reparameterized_layer_norm": Key("Bring the channels behind layer norms to one range first."),
        },
    ),
    "recipe": (
        f"The method: {', '.join(RECIPES)}.  clcalib recipes explains them, clcalib recipes NAME the other keys.",
        {
            "name": Key("fast takes minutes; qdrop, cl_calib and others have the steps of their papers."),
            "steps": Key("Steps for each unit; by default those of the recipe.", 200),
        },
    ),
    "contrastive": ("Add the contrastive term to the recipe; clcalib recipes contrastive has all keys.", {}),
    "biases": ("Train the biases too, which costs nothing in the file; clcalib recipes biases has all keys.", {}),
    "tuning": ("Tune all scales and biases together at the end; clcalib recipes tuning has all keys.", {}),
    "last_phase": ("Optimise the whole network when all units are done; clcalib recipes last_phase has all keys.", {}),
    "guard": (
        "Units that the optimisation made worse go back to nearest rounding.",
        {
            "enabled": Key("Whether they do."),
            "images": Key("Calibration images that are kept aside to judge it; 0 takes held-out images."),
            "tolerance": Key("How much worse, as a share of the error, is let pass; by default by recipe.", 0.05),
        },
    ),
    "target": (
        "Raise widths, run after run, until at most this is lost.",
        {
            "max_drop": Key("Percentage points of accuracy.", 1.0),
            "rounds": Key("Runs at most."),
        },
    ),
    "budget": (
        "Choose the widths of weights so that they hurt least within a size or a cost.",
        {
            "size": Key("Bytes of all weights.", "2MB"),
            "cost": Key("Bit operations, as a share of those at W8A8; a budget has a size, a cost or both.", 0.5),
            "weights": Key("Widths of weights to choose from."),
            "activations": Key("The same of activations, with a cost; none leaves them as they are.", [4, 8]),
            "per": Key('Choose for each "unit" or each "layer".'),
            "measure": Key('What hurts: "divergence" of the outputs, or the share of "changed" classes.'),
            "images": Key("Calibration images that this is measured on."),
        },
    ),
    "tracking": (
        "Experiment trackers that are told of the run as it goes; they change no result.",
        {
            "tensorboard": Key("Folder for the event files of TensorBoard.", "runs/events"),
            "mlflow": Key("Folder for a store of MLflow, or the address of one.", "runs/mlflow"),
        },
    ),
    "run": (
        "How and where.",
        {
            "out": Key("Folder of the results; a run never writes into one that is not empty, unless told."),
            "overwrite": Key("Write into it all the same."),
            "seed": Key("Of everything random: the same seed, the same result."),
            "shards": Key("Parts of the images that several workers may share; the result depends on them.", 4),
            "device": Key('"cpu", "cuda", "cuda:N" or "mps".'),
            "threads": Key("CPU threads; by default all cores.", 4),
            "memory_budget": Key("Most memory for stored activations; the rest goes to files.", "2GB"),
            "spill_folder": Key("Where these files are; by default the system's folder.", "/var/tmp"),
            "precision": Key('Of convolutions while optimising: "auto" (the faster one), "float32", "bfloat16".'),
            "cache_precision": Key('As what stored activations are kept: "float32", or "bfloat16" in half the memory.'),
        },
    ),
}  # fmt: skip


def starter(values: Mapping[str, Mapping[str, Any]], notes: Mapping[str, Sequence[str]], name: str) -> str:
    """The text of the file.

    Args:
        values: section -> key -> value, for what is not to have its default.
        notes: section -> lines that are told at its head.
        name: of the file.
    """
    lines = [
        f"# Settings of a run of clcalib, made for {values['model']['entry']}.",
        "#",
        f"#   clcalib describe {name}            the units, and the widths of every layer",
        f"#   clcalib quantize {name} --dry-run  what a run takes",
        f"#   clcalib quantize {name}            the run",
        "#",
        "# A line such as #key = value shows a default, or an example: take the # away to set it.  Relative",
        "# paths are taken from the folder of this file.  Flags and --set section.key=value win over it.",
    ]
    for section, (text, keys) in SECTIONS.items():
        lines += ["", *_section(section, text, keys, values.get(section, {}), notes.get(section, ()))]
    return "\n".join(lines) + "\n"


def _section(
    section: str, text: str, keys: Mapping[str, Key], values: Mapping[str, Any], notes: Sequence[str]
) -> Iterator[str]:
    field = RunConfig.model_fields[section]
    is_optional = not field.is_required() and field.default is None
    yield from _comment(text)
    for note in notes:
        yield from _comment(note)
    yield f"#[{section}]" if is_optional else f"[{section}]"
    kind = section_of(field.annotation)
    for name, key in keys.items():
        yield from _comment(key.text)
        if name in values:
            yield f"{name} = {toml(values[name])}"
        else:
            yield f"#{name} = {toml(_default(kind, name) if key.example is None else key.example)}"


def _default(kind: type[BaseModel] | None, name: str) -> Any:
    assert kind is not None
    field = kind.model_fields[name]
    return field.get_default(call_default_factory=True)


def _comment(text: str) -> Iterator[str]:
    line = "#"
    for word in text.split():
        if len(line) + len(word) >= _WIDTH:
            yield line
            line = "#"
        line += f" {word}"
    yield line


def toml(value: Any) -> str:
    """A value as TOML writes it.

    Example:
        >>> toml({"layer 1": [True, 0.5, "a"], "steps": 9})
        '{ "layer 1" = [true, 0.5, "a"], steps = 9 }'
    """
    if isinstance(value, Mapping):
        inner = ", ".join(f"{_key(key)} = {toml(each)}" for key, each in value.items())
        return f"{{ {inner} }}" if inner else "{}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(toml(each) for each in value)}]"
    # What JSON escapes, TOML escapes in the same way, but for DEL, which JSON leaves as it is.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _key(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else toml(name)
