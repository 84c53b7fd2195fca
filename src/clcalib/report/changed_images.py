"""The images whose predicted class has changed, and small pictures of them."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from clcalib.evaluate.comparison import Predictions
from clcalib.report.evidence import MOST_CHANGED, ChangedImage, rounded

SIDE = 96  # pixels of the longer side
_PLAIN = 40  # pixels up to which a picture is kept without loss


def changed_images(
    predictions: Predictions,
    images: Tensor,
    labels: Tensor | None,
    names: Sequence[str] = (),
    colours: tuple[Sequence[float], Sequence[float]] | None = None,
) -> tuple[ChangedImage, ...]:
    """The most telling images for which the result names another class: first those that it lost, then those it won.

    Args:
        predictions: of both networks.
        images: (N, ...), as the networks take them.
        labels: (N,) the right classes, or None.
        names: of the images, or none.
        colours: mean and standard deviation that the channels were normalised with; None where they are not known.
    """
    order = _order(predictions, labels)[:MOST_CHANGED]
    return tuple(
        ChangedImage(
            place=place,
            name=names[place] if names else "",
            float_confidence=rounded(float(predictions.float_confidence[place])),
            quantized_confidence=rounded(float(predictions.quantized_confidence[place])),
            picture=picture(images[place], colours),
        )
        for place in order
    )


def _order(predictions: Predictions, labels: Tensor | None) -> list[int]:
    """Places of changed images: lost, won, then the others; within each, the surest float prediction first."""
    is_changed = predictions.floating != predictions.quantized
    kind = torch.full_like(predictions.floating, 2)
    if labels is not None:
        kind[predictions.quantized == labels] = 1
        kind[predictions.floating == labels] = 0
    places = is_changed.nonzero().flatten().tolist()
    return sorted(places, key=lambda place: (int(kind[place]), -float(predictions.float_confidence[place]), place))


def picture(image: Tensor, colours: tuple[Sequence[float], Sequence[float]] | None = None) -> str | None:
    """A small picture as a data URI, or None where the tensor is no image of 1 or 3 channels.

    Args:
        image: (C, H, W), float.
        colours: undo this mean and standard deviation; None brings the smallest and largest value to black and white.
    """
    if image.ndim != 3 or image.shape[0] not in (1, 3) or not image.is_floating_point():
        return None
    values = image.detach().cpu().float()
    if colours is not None and len(colours[0]) == len(values):
        mean, deviation = (torch.tensor(column).reshape(-1, 1, 1) for column in colours)
        values = values * deviation + mean
    else:
        low, high = values.min(), values.max()
        values = (values - low) / (high - low).clamp(min=1e-12)
    pixels = (values.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    shown = Image.fromarray(np.ascontiguousarray(pixels if pixels.shape[2] == 3 else pixels[:, :, 0]))
    shown.thumbnail((SIDE, SIDE))
    kind = "png" if max(shown.size) <= _PLAIN else "jpeg"
    stream = io.BytesIO()
    shown.save(stream, kind, **({} if kind == "png" else {"quality": 85}))
    return f"data:image/{kind};base64,{base64.b64encode(stream.getvalue()).decode()}"
