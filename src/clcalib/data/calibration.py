"""The images that the package works on: frozen, checked once, and with their provenance.

Everything later may rely on it: at least one image, all of one shape, float32, finite, contiguous, on the CPU.
For a network of language, an "image" is a row of token numbers, int64.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from clcalib.errors import DataError

_TOKENS = (torch.int32, torch.int64)


@dataclass(frozen=True)
class Provenance:
    """Where images came from, precisely enough to get the same ones again.

    Args:
        source: what the images were read from, as a person would name it.
        indices: the places of the images in the source, in their order here; None where the source has no order.
        transform: what was done to the pixels, as ``Transform.describe`` says it.
        digest: SHA-256 in hexadecimal of data type, shape and bytes of the images, see ``digest``.
    """

    source: str
    indices: tuple[int, ...] | None
    transform: str
    digest: str


@dataclass(frozen=True, eq=False)
class CalibrationSet:
    """The images that a quantized model is calibrated on; made by ``from_tensor`` or ``from_images``.

    Args:
        images: (N, C, H, W), or any (N, ...), float32, contiguous, on the CPU, finite; or tokens (N, T), int64.
        provenance: where they came from.

    Raises:
        DataError: ``images`` is anything else; the message names the first bad image.

    Example:
        >>> calibration = CalibrationSet.from_tensor(torch.zeros(4, 3, 8, 8))
        >>> len(calibration), calibration.provenance.source
        (4, 'tensor')
    """

    images: Tensor  # (N, *shape) float32
    provenance: Provenance

    def __post_init__(self) -> None:
        _check(self.images)

    @classmethod
    def from_tensor(
        cls,
        images: Tensor,
        *,
        source: str = "tensor",
        indices: Sequence[int] | None = None,
        transform: str = "none",
    ) -> Self:
        """Take a private float32 copy of ``images`` (N, ...), on the CPU; int64 for tokens.

        Args:
            images: (N, C, H, W) or any (N, ...), of any floating type, on any device, already normalised; or numbers of
                tokens, int32 or int64.
            source: where they came from.
            indices: their places in the source.
            transform: what was done to them.

        Raises:
            DataError: no image, another type, fewer than 2 dimensions, or a value that is not finite.
        """
        copy = _private_copy(images)
        return cls(copy, _provenance(copy, source, indices, transform))

    @classmethod
    def from_images(cls, images: Sequence[Tensor], *, source: str = "images", transform: str = "none") -> Self:
        """Stack single images, each (C, H, W) or any (...), all of one shape.

        Raises:
            DataError: as ``from_tensor``, or the shapes differ; the message names the first odd image.
        """
        return cls.from_tensor(stack(images), source=source, transform=transform)

    def __len__(self) -> int:
        return len(self.images)


@dataclass(frozen=True, eq=False)
class EvaluationSet:
    """The images that a model is judged on, with their classes where these are known.

    Args:
        images: as in ``CalibrationSet``.
        labels: (N,) int64, the class of each image, or None.
        provenance: where the images came from.
        class_names: of the classes in the order of their numbers; empty where these are all that is known.
        image_names: of the images, such as their files; empty where they have none.

    Raises:
        DataError: as ``CalibrationSet``, or labels or names do not fit the images.

    Example:
        >>> evaluation = EvaluationSet.from_tensor(torch.zeros(2, 3, 8, 8), torch.tensor([1, 0]))
        >>> len(evaluation), evaluation.labels.tolist()
        (2, [1, 0])
    """

    images: Tensor  # (N, *shape) float32
    labels: Tensor | None  # (N,) int64
    provenance: Provenance
    class_names: tuple[str, ...] = ()
    image_names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _check(self.images)
        if self.labels is not None:
            _check_labels(self.labels, len(self.images))
        if self.image_names and len(self.image_names) != len(self.images):
            raise DataError("image_names", f"{len(self.images)} names, one for each image", len(self.image_names))

    @classmethod
    def from_tensor(
        cls,
        images: Tensor,
        labels: Tensor | None = None,
        *,
        source: str = "tensor",
        indices: Sequence[int] | None = None,
        transform: str = "none",
        class_names: Sequence[str] = (),
        image_names: Sequence[str] = (),
    ) -> Self:
        """Take private copies: images (N, ...) as float32, labels (N,) as int64, both on the CPU.

        Raises:
            DataError: as ``CalibrationSet.from_tensor``; or labels of another type, shape or length, or negative ones.
        """
        copy = _private_copy(images)
        label_copy = None if labels is None else _private_labels(labels)
        provenance = _provenance(copy, source, indices, transform)
        return cls(copy, label_copy, provenance, tuple(class_names), tuple(image_names))

    def __len__(self) -> int:
        return len(self.images)


def digest(tensor: Tensor) -> str:
    """Return the SHA-256 of data type, shape and bytes of a tensor of any shape.

    Example:
        >>> digest(torch.zeros(2, 3)) == digest(torch.zeros(3, 2))
        False
    """
    content = hashlib.sha256(f"{tensor.dtype} {tuple(tensor.shape)} ".encode())
    content.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return content.hexdigest()


def labels_of(images: CalibrationSet, evaluation: EvaluationSet | None, count: int) -> Tensor | None:
    """The classes of the first ``count`` images, which are some of the evaluation images; None where that is not known.

    Example:
        >>> evaluation = EvaluationSet.from_tensor(torch.rand(3, 3, 8, 8), torch.arange(3), indices=[10, 11, 12])
        >>> held_out = CalibrationSet.from_tensor(evaluation.images[[2, 0]], indices=[12, 10])
        >>> labels_of(held_out, evaluation, 2).tolist()
        [2, 0]
    """
    if evaluation is None or evaluation.labels is None:
        return None
    own, others = images.provenance, evaluation.provenance
    if own.indices is None or others.indices is None or own.source != others.source:
        return None
    places = {index: row for row, index in enumerate(others.indices)}
    rows = [places.get(index) for index in own.indices[:count]]
    known = [row for row in rows if row is not None]
    if len(known) < len(rows):
        return None
    shown = images.images[:count]
    are_same = all(torch.equal(one, evaluation.images[row]) for one, row in zip(shown, known, strict=True))
    return evaluation.labels[known] if are_same else None


def stack(images: Sequence[Tensor], names: Sequence[str] | None = None) -> Tensor:
    """Stack images of one shape, each (...), into (N, ...).

    Args:
        images: at least one.
        names: what to call each image in an error; ``image 0``, ``image 1``, ... if not given.

    Raises:
        DataError: there is no image, something is no tensor, or the shapes differ; it names the first odd image.
    """
    if len(images) == 0:
        raise DataError("images", "at least one image", "none", "give calibration images")
    for index, image in enumerate(images):
        name = names[index] if names is not None else f"image {index}"
        if not isinstance(image, Tensor):
            raise DataError("images", "tensors", f"{type(image).__name__} ({name})", "convert each image to a tensor")
        if image.shape != images[0].shape:
            first = names[0] if names is not None else "image 0"
            raise DataError(
                "images",
                f"one shape, {tuple(images[0].shape)} as {first} has",
                f"{tuple(image.shape)} ({name})",
                "set resize and crop in the transform, so that all come out alike",
            )
    return torch.stack(list(images))


def check_compatible(calibration: CalibrationSet, other: CalibrationSet | EvaluationSet, argument: str) -> None:
    """Check that ``other`` holds images of the shape that ``calibration`` has.

    Raises:
        DataError: it does not; the message names ``argument`` and both shapes.
    """
    expected, got = tuple(calibration.images.shape[1:]), tuple(other.images.shape[1:])
    if expected != got:
        raise DataError(argument, f"images of shape {expected} as in calibration", got, "use one transform for both")


def _provenance(images: Tensor, source: str, indices: Sequence[int] | None, transform: str) -> Provenance:
    places = None if indices is None else tuple(int(index) for index in indices)
    return Provenance(source, places, transform, digest(images))


def _private_copy(images: Tensor) -> Tensor:  # (N, ...) any float -> (N, ...) float32; tokens -> int64
    _check_kind(images)
    copy = images.detach().to("cpu", torch.float32 if images.is_floating_point() else torch.int64, copy=True)
    return copy.contiguous()


def _private_labels(labels: Tensor) -> Tensor:  # (N,) any integer -> (N,) int64
    is_integer = isinstance(labels, Tensor) and not labels.is_floating_point() and not labels.is_complex()
    if not is_integer or labels.dtype == torch.bool:
        got = labels.dtype if isinstance(labels, Tensor) else type(labels).__name__
        raise DataError("labels", "a tensor of whole numbers", got, "give class indices, (N,) int64")
    return labels.detach().to("cpu", torch.int64, copy=True).contiguous()


def _check_kind(images: object) -> None:
    if not isinstance(images, Tensor):
        raise DataError(
            "images", "a tensor (N, ...)", type(images).__name__, "use from_images for a sequence of images"
        )
    if not images.is_floating_point() and images.dtype not in _TOKENS:
        raise DataError(
            "images", "a floating type", images.dtype, "normalise the images as in training, for example with Transform"
        )
    if images.ndim < 2:
        raise DataError("images", "at least 2 dimensions (N, ...)", tuple(images.shape), "put the image axis first")
    if images.numel() == 0:
        raise DataError("images", "at least one image", f"shape {tuple(images.shape)}", "give calibration images")


def _check(images: Tensor) -> None:
    _check_kind(images)
    if images.dtype not in (torch.float32, torch.int64) or images.device.type != "cpu" or not images.is_contiguous():
        raise DataError(
            "images", "contiguous float32 on the CPU", f"{images.dtype} on {images.device}", "use from_tensor"
        )
    is_finite = torch.isfinite(images.reshape(len(images), -1)).all(dim=1)  # (N,)
    if not bool(is_finite.all()):
        bad = (~is_finite).nonzero().flatten().tolist()
        raise DataError(
            "images", "finite values", f"NaN or infinity in {len(bad)} of {len(images)} images, first image {bad[0]}"
        )


def _check_labels(labels: Tensor, count: int) -> None:
    if labels.shape != (count,):
        raise DataError("labels", f"shape ({count},), one for each image", tuple(labels.shape))
    if labels.dtype != torch.int64 or labels.device.type != "cpu":
        raise DataError("labels", "int64 on the CPU", f"{labels.dtype} on {labels.device}", "use from_tensor")
    if int(labels.min()) < 0:
        first = int((labels < 0).nonzero()[0])
        raise DataError("labels", "classes from 0 on", f"{int(labels[first])} at image {first}")
