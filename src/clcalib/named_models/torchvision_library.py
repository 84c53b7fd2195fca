"""Networks of torchvision, with its weights enumerations."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from clcalib.data.transform import Transform
from clcalib.errors import ArgumentError
from clcalib.named_models.library import ENTRY, WEIGHTS, OwnTransform, checked, missing, refuse, said
from clcalib.reading.state_dict import read_state_dict

# Whose weights are quantized already.
_NOT_OFFERED = "quantized_"
_LOADING = ("weights", "weights_backbone")


class Torchvision:
    """Names such as ``resnet18``, or ``resnet50.IMAGENET1K_V1`` to say which of several published weights is meant."""

    def names(self) -> list[str]:
        """Of all networks but those with quantized weights."""
        return [name for name in _models().list_models() if not name.startswith(_NOT_OFFERED)]

    def knows(self, name: str) -> bool:
        """Whether there is such a network and, where a name of weights follows, such weights."""
        name, _, tag = name.partition(".")
        return name in self.names() and (not tag or tag in self.published(name))

    def published(self, name: str) -> list[str]:
        """The names of its weights, but for the alias DEFAULT."""
        return [each.name for each in _models().get_model_weights(name)]

    def build(self, name: str, arguments: Mapping[str, Any], *, is_pretrained: bool) -> nn.Module:
        """Build it; published weights are read with all care before torchvision reads them."""
        refuse(arguments, _LOADING)
        short = name.partition(".")[0]
        weights = _member(name, None) if is_pretrained else None
        given = dict(arguments)
        # By default some builders download the weights of a part.
        if "weights_backbone" in inspect.signature(_models().get_model_builder(short)).parameters:
            given["weights_backbone"] = None
        if "init_weights" in inspect.signature(_models().get_model_builder(short)).parameters:
            given.setdefault("init_weights", False)  # takes minutes, and says so in a warning
        if weights is not None:
            _bring(weights.url)
        try:
            model = _models().get_model(short, weights=weights, **given)
        except Exception as error:  # whatever the builder raises for its arguments
            raise ArgumentError(ENTRY, f"torchvision to build {name}", said(error)) from error
        assert isinstance(model, nn.Module)
        return model

    def transform(self, name: str, arguments: Mapping[str, Any], file: str | None) -> OwnTransform:
        """That of the weights: those of the name, else those of the file, else the default ones."""
        preset = _member(name, file).transforms()
        return OwnTransform(_described(preset), " ".join(repr(preset).split()))


def _models() -> Any:
    try:
        import torchvision.models
    except Exception as error:  # a library that does not fit this torch raises all kinds
        raise missing("torchvision", error) from error
    return torchvision.models


def _member(name: str, file: str | None) -> Any:
    """The weights that a name and the name of a file stand for, of an enumeration."""
    short, _, tag = name.partition(".")
    weights = _models().get_model_weights(short)
    if tag:
        return weights[tag]
    of_file = (each for each in weights if file is not None and each.url.rpartition("/")[2] == file)
    return next(of_file, weights.DEFAULT)


def _described(preset: Any) -> Transform | None:
    """Ours for the presets of classification, segmentation and detection; those of video are about other things."""
    kind = type(preset).__name__
    if kind == "ObjectDetection":  # the detector itself resizes and normalises
        return Transform(mean=(0.0, 0.0, 0.0), standard_deviation=(1.0, 1.0, 1.0))
    if kind not in ("ImageClassification", "SemanticSegmentation"):
        return None
    sides = {"resize": preset.resize_size, "crop": getattr(preset, "crop_size", None)}
    return checked(
        {
            **{key: side[0] if len(side) == 1 else None for key, side in sides.items() if side is not None},
            "interpolation": preset.interpolation.value,
            "mean": tuple(preset.mean),
            "standard_deviation": tuple(preset.std),
        }
    )


def _bring(url: str) -> None:
    """See that a file of weights lies where torchvision looks for it, and that it holds weights and nothing else.

    Raises:
        ArgumentError: it is not there, and cannot be downloaded.
        UnusableFileError: it is damaged, or holds other objects.
    """
    file = url.rpartition("/")[2]
    path = Path(torch.hub.get_dir()) / "checkpoints" / file
    if not path.is_file():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            prefix = Path(file).stem.rpartition("-")[2]  # of its digest
            torch.hub.download_url_to_file(url, str(path), hash_prefix=prefix)
        except Exception as error:  # of the network, the disk, or another content than the name says
            remedy = f"bring {file} from another machine into {path.parent}, or give a file of weights by --weights"
            raise ArgumentError(WEIGHTS, f"to download {url}", said(error), remedy) from error
    read_state_dict(path)
