"""More calibration images from the same ones: mirrored, shifted and mixed copies behind the originals.

Everything random is fixed by (seed, copy, operation, image), as in ``selection``, so a set of fewer copies is the
beginning of one of more.  The images are normalised already; all operations are linear in the pixels or move them.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from clcalib.data.calibration import CalibrationSet
from clcalib.data.selection import uniforms
from clcalib.errors import DataError, EqualCopiesWarning

Floats = NDArray[np.float64]
PADDING_SHARE = 8  # a shift moves an image by at most an eighth of its smaller side


class _Copy(NamedTuple):
    """Which copy this is, and the source of its random numbers."""

    seed: int
    number: int
    operation: int

    def uniforms(self, count: int, column: int) -> Floats:
        return uniforms(count, self.seed, self.number, self.operation, column)


def flip(images: Tensor, copy: _Copy) -> Tensor:
    """Mirror every image left to right in the first, third, ... copy, and none in the others.

    *Deviation*: usual is a coin for each image, which makes half of a first copy equal to the originals.

    Args:
        images: (N, C, H, W).
        copy: its number decides.
    """
    return images.flip(3) if copy.number % 2 == 1 else images


def crop(images: Tensor, copy: _Copy) -> Tensor:
    """Shift each image by up to p pixels along each axis, the border reflected; p is an eighth of the smaller side.

    Args:
        images: (N, C, H, W).
        copy: its numbers give the shifts, each of the (2p + 1)^2 with equal probability.

    Source: He et al., CVPR 2016, section 4.2 (there with zeros around the image, and p = 4 of 32).
    """
    height, width = images.shape[2:]
    side = min(height, width)
    padding = min(max(1, side // PADDING_SHARE), side - 1)  # a reflection needs one pixel more than it adds
    padded = F.pad(images, (padding,) * 4, mode="reflect")
    rows, columns = (_whole(copy.uniforms(len(images), axis), 2 * padding + 1).tolist() for axis in (0, 1))
    places = zip(padded, rows, columns, strict=True)
    shifted = [image[:, y : y + height, x : x + width] for image, y, x in places]
    return torch.stack(shifted)


def mixup(images: Tensor, copy: _Copy) -> Tensor:
    """l x_i + (1 - l) x_p(i), l uniform from 0 to 1, p(i) another image.

    Args:
        images: (N, C, H, W), N > 1.
        copy: its numbers give l and p.

    Source: Zhang et al., "mixup: Beyond Empirical Risk Minimization", ICLR 2018, with alpha = 1.
    """
    share = torch.from_numpy(copy.uniforms(len(images), 0)).to(images).view(-1, 1, 1, 1)
    return torch.lerp(images[_partners(copy, len(images))], images, share)


def cutmix(images: Tensor, copy: _Copy) -> Tensor:
    """x_i with a box of x_p(i) in it, of sides H sqrt(1 - l) and W sqrt(1 - l) around any pixel, cut at the border.

    Args:
        images: (N, C, H, W), N > 1.
        copy: its numbers give l, uniform from 0 to 1, the middle of the box, and the other image p(i).

    Source: Yun et al., "CutMix", ICCV 2019, equation 2, with alpha = 1.
    """
    count, _, height, width = images.shape
    side = np.sqrt(1.0 - copy.uniforms(count, 0))
    inside = [
        torch.from_numpy(_interval(copy.uniforms(count, column), side, length))
        for column, length in ((1, height), (2, width))
    ]
    box = inside[0][:, None, :, None] & inside[1][:, None, None, :]  # (N, 1, H, W)
    return torch.where(box, images[_partners(copy, count)], images)


AUGMENTATIONS: dict[str, Callable[[Tensor, _Copy], Tensor]] = {
    "flip": flip,
    "crop": crop,
    "mixup": mixup,
    "cutmix": cutmix,
}
MIXES = ("mixup", "cutmix")  # those that take two images


def changed(images: Tensor, names: Sequence[str], *, seed: int, number: int) -> Tensor:
    """Images that went through all named operations in their order, for a step that has no use for the originals.

    Half of the images are mixed, and every other number flips.

    Args:
        images: (N, C, H, W).
        names: of operations in ``AUGMENTATIONS``.
        seed: fixes everything random, with the number.
        number: of the step.
    """
    for name in names:
        copy = _Copy(seed, number, list(AUGMENTATIONS).index(name))
        found = AUGMENTATIONS[name](images, copy)
        half = len(images) // 2 if name in MIXES else 0
        images = torch.cat([images[:half], found[half:]])
    return images


def augmented(calibration: CalibrationSet, names: Sequence[str], *, copies: int = 1, seed: int = 0) -> CalibrationSet:
    """Return the set with ``copies`` changed copies of every image behind the originals: N (1 + copies) images.

    Each copy goes through all named operations in their order.  A changed image is an image of its own, with a float
    output, and for the contrastive term a key, of its own.

    Args:
        calibration: the originals, (N, C, H, W); they come first, untouched.
        names: of operations in ``AUGMENTATIONS``, each once.
        copies: how many copies of each image.
        seed: of the shifts, mixes and boxes.

    Raises:
        DataError: a name is unknown or comes twice, ``copies`` is not above 0, the images are not (N, C, H, W), or
            there is one image alone and it is to be mixed.

    Example:
        >>> calibration = CalibrationSet.from_tensor(torch.rand(4, 3, 8, 8))
        >>> len(augmented(calibration, ["flip", "crop"], copies=2))
        12
    """
    _check(calibration, names, copies)
    parts = [calibration.images]
    for number in range(1, copies + 1):
        images = calibration.images
        for name in names:
            images = AUGMENTATIONS[name](images, _Copy(seed, number, list(AUGMENTATIONS).index(name)))
        parts.append(images)
    origin = calibration.provenance
    indices = None if origin.indices is None else origin.indices * (1 + copies)
    words = f"{'+'.join(names)} x {copies} behind the originals, seed {seed}"
    transform = words if origin.transform == "none" else f"{origin.transform}; {words}"
    return CalibrationSet.from_tensor(torch.cat(parts), source=origin.source, indices=indices, transform=transform)


def check_names(argument: str, names: Sequence[str]) -> None:
    """Raise ``DataError`` where a name is not in ``AUGMENTATIONS``, or comes twice."""
    unknown = [name for name in names if name not in AUGMENTATIONS]
    if isinstance(names, str) or unknown:
        got = repr(names) if isinstance(names, str) else ", ".join(map(repr, unknown))
        raise DataError(argument, f"a list of names among {', '.join(AUGMENTATIONS)}", got)
    if len(set(names)) < len(names):
        raise DataError(argument, "each operation once", ", ".join(names), "leave the second one out")


def _check(calibration: CalibrationSet, names: Sequence[str], copies: int) -> None:
    if len(names) == 0:
        raise DataError("names", f"a list of names among {', '.join(AUGMENTATIONS)}", "none")
    check_names("names", names)
    if isinstance(copies, bool) or not isinstance(copies, int) or copies < 1:
        raise DataError("copies", "a whole number above 0", repr(copies), "leave the augmentation out for no copies")
    images = calibration.images
    if images.ndim != 4:
        raise DataError("calibration", "images (N, C, H, W)", tuple(images.shape), "leave the augmentation out")
    if len(images) < 2 and any(name in MIXES for name in names):
        raise DataError("calibration", "at least two images to mix", "1 image", "use flip or crop")
    if list(names) == ["flip"] and copies > 1:
        message = f"of {copies} copies by flip alone only the first is new, every second equals the originals; add crop"
        warnings.warn(message, EqualCopiesWarning, stacklevel=3)


def _partners(copy: _Copy, count: int) -> Tensor:
    """For each image another one: the next in a random circle through all of them.  (N,) int64."""
    circle = np.argsort(copy.uniforms(count, 3), kind="stable")
    partners = np.empty(count, dtype=np.int64)
    partners[circle] = np.roll(circle, -1)
    return torch.from_numpy(partners)


def _whole(values: Floats, count: int) -> NDArray[np.int64]:
    """Uniform numbers from 0 to 1 as whole numbers below ``count``."""
    return np.floor(values * count).astype(np.int64)


def _interval(middle: Floats, side: Floats, length: int) -> NDArray[np.bool_]:
    """Which of ``length`` pixels lie in an interval of ``side * length`` pixels around ``middle * length``."""
    start = np.rint(middle * length - side * length / 2)[:, None]
    stop = np.rint(middle * length + side * length / 2)[:, None]
    pixels = np.arange(length)[None]
    inside: NDArray[np.bool_] = (pixels >= start) & (pixels < stop)
    return inside
