"""From decoded pixels to what a network takes: resize, centre crop, scale to [0, 1], normalise."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from clcalib.errors import ArgumentError, DataError

INTERPOLATIONS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}

_MOST_RESIZED = 64_000_000  # pixels

_MODES = {1: "L", 3: "RGB"}


@dataclass(frozen=True)
class Transform:
    """y = (crop(resize(x)) / 255 - mean) / standard_deviation, for each channel.

    Args:
        resize: the length in pixels that the shorter side gets, the ratio of the sides kept; None leaves the size.
        crop: the side in pixels of the square taken from the centre; None leaves the size.
        mean: of each channel on the scale of 0 to 1; one value makes the images grey, three make them RGB.
        standard_deviation: of each channel, on the same scale.
        interpolation: a name in ``INTERPOLATIONS``.
        squash: whether both sides get the length ``resize``, whatever their ratio was.

    Raises:
        ArgumentError: a field is out of its range, or there is nothing to squash to.

    Example:
        >>> half = Transform(mean=(0.5, 0.5, 0.5), standard_deviation=(0.5, 0.5, 0.5))
        >>> half.batch(torch.full((2, 3, 4, 4), 255, dtype=torch.uint8)).unique()
        tensor([1.])
    """

    resize: int | None = None
    crop: int | None = None
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    standard_deviation: tuple[float, ...] = (0.229, 0.224, 0.225)
    interpolation: str = "bilinear"
    squash: bool = False

    def __post_init__(self) -> None:
        for name, size in (("resize", self.resize), ("crop", self.crop)):
            if size is not None and size < 1:
                raise ArgumentError(name, "at least 1 pixel, or none", size)
        if len(self.mean) not in _MODES or not all(math.isfinite(value) for value in self.mean):
            raise ArgumentError("mean", "1 or 3 finite values", self.mean)
        is_usable = all(math.isfinite(value) and value > 0 for value in self.standard_deviation)
        if len(self.standard_deviation) != len(self.mean) or not is_usable:
            raise ArgumentError("standard_deviation", f"{len(self.mean)} values above 0", self.standard_deviation)
        if self.interpolation not in INTERPOLATIONS:
            raise ArgumentError("interpolation", f"one of {', '.join(INTERPOLATIONS)}", self.interpolation)
        if self.squash and self.resize is None:
            raise ArgumentError("squash", "a resize beside it", "none", "set resize, or leave squash out")

    @property
    def channels(self) -> int:
        """How many channels come out: 1 or 3."""
        return len(self.mean)

    def image(self, image: Image.Image) -> Tensor:
        """Transform one decoded image of any colour mode into (C, H, W) float32.

        Of 16 bits the upper 8 are taken, as Pillow takes them of colour images, and transparency is dropped.

        Raises:
            DataError: the image is smaller than the crop, would become too large, or has pixels of 32 bits.
        """
        return self._normalise(self._pixels(image)[None])[0]

    def batch(self, images: Tensor) -> Tensor:
        """Transform images of one shape, (N, C, H, W) uint8, into (N, C, H', W') float32.

        Raises:
            DataError: another type or channel count, or the images are smaller than the crop.
        """
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != self.channels:
            got = f"{images.dtype} {tuple(images.shape)}"
            raise DataError("images", f"uint8 pixels (N, {self.channels}, H, W), as mean has values", got)
        if self.resize is not None:
            images = torch.stack([self._pixels(_to_image(image)) for image in images])
        elif self.crop is not None:
            top, left = _crop_corner(images.shape[2], images.shape[3], self.crop)
            images = images[:, :, top : top + self.crop, left : left + self.crop]
        return self._normalise(images)

    def describe(self) -> str:
        """Say on one line what is done, for the provenance.

        Example:
            >>> Transform(resize=256, crop=224, mean=(0.5,), standard_deviation=(0.25,)).describe()
            'resize 256 bilinear, crop 224, mean (0.5), standard deviation (0.25)'
        """
        size = f"{self.resize} x {self.resize}" if self.squash else self.resize
        steps = [f"resize {size} {self.interpolation}"] if self.resize is not None else []
        steps += [f"crop {self.crop}"] if self.crop is not None else []
        steps += [f"mean ({_listed(self.mean)})", f"standard deviation ({_listed(self.standard_deviation)})"]
        return ", ".join(steps)

    def _pixels(self, image: Image.Image) -> Tensor:  # -> (C, H, W) uint8
        image = _in_mode(image, _MODES[self.channels])
        if self.resize is not None:
            image = self._resized(image, self.resize)
        elif self.crop is not None:
            top, left = _crop_corner(image.height, image.width, self.crop)
            image = image.crop((left, top, left + self.crop, top + self.crop))
        pixels = np.array(image, dtype=np.uint8).reshape(image.height, image.width, self.channels)
        return torch.from_numpy(pixels).permute(2, 0, 1)

    def _resized(self, image: Image.Image, shorter: int) -> Image.Image:  # resized, and cropped where that is asked for
        width, height = (shorter, shorter) if self.squash else _resized(image.size, shorter)
        how = INTERPOLATIONS[self.interpolation]
        if self.crop is None:
            if width * height > _MOST_RESIZED:
                got = f"{image.width} x {image.height} pixels, which would become {width} x {height}"
                raise DataError("image", f"at most {_MOST_RESIZED} pixels after resize", got, "set a crop too")
            return image.resize((width, height), how)
        top, left = _crop_corner(height, width, self.crop)
        if width * height <= _MOST_RESIZED:
            return image.resize((width, height), how).crop((left, top, left + self.crop, top + self.crop))
        # Of a very long image only the part that is kept is made.
        across, down = image.width / width, image.height / height
        box = (left * across, top * down, (left + self.crop) * across, (top + self.crop) * down)
        return image.resize((self.crop, self.crop), how, box=box)

    def _normalise(self, pixels: Tensor) -> Tensor:  # (N, C, H, W) uint8 -> float32
        mean = torch.tensor(self.mean, dtype=torch.float32).view(1, -1, 1, 1)
        deviation = torch.tensor(self.standard_deviation, dtype=torch.float32).view(1, -1, 1, 1)
        return ((pixels.float() / 255 - mean) / deviation).contiguous()


def _in_mode(image: Image.Image, mode: str) -> Image.Image:
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    elif image.mode in ("I", "F"):  # Pillow would clip these to 255 without a word
        raise DataError("image", "8 or 16 bits for each channel", f"mode {image.mode}", "convert it to 8 bits first")
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # as Pillow itself asks for
    return image if image.mode == mode else image.convert(mode)


def _resized(size: tuple[int, int], shorter: int) -> tuple[int, int]:  # both (width, height)
    width, height = size
    if width <= height:
        return shorter, max(1, int(shorter * height / width))
    return max(1, int(shorter * width / height)), shorter


def _crop_corner(height: int, width: int, crop: int) -> tuple[int, int]:
    if height < crop or width < crop:
        raise DataError("crop", f"at most the image, {height} x {width} pixels", crop, "set resize to at least crop")
    return round((height - crop) / 2), round((width - crop) / 2)


def _to_image(pixels: Tensor) -> Image.Image:  # (C, H, W) uint8
    array = pixels.permute(1, 2, 0).contiguous().numpy()
    return Image.fromarray(array[:, :, 0] if array.shape[2] == 1 else array)


def _listed(values: tuple[float, ...]) -> str:
    return ", ".join(f"{value:g}" for value in values)
