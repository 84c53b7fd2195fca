"""Reading an ONNX file, ours or anyone's, and telling early what cannot be used of it."""

from __future__ import annotations

import importlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clcalib.errors import ArgumentError, CheckpointError, MissingPackageError, UnusableFileError
from clcalib.export.runtimes.model_checks import check_tensors
from clcalib.reading.content import read_bytes

ModelSource = str | Path | bytes

_MOST_BYTES = (1 << 31) - 1  # what the format's encoding can hold
_MOST_VALUES = 1 << 28  # of an input


@dataclass(frozen=True)
class ImageInput:
    """The only input of a network.

    Attributes:
        name: of the tensor.
        shape: sizes, None where any size goes; the first is the batch.
    """

    name: str
    shape: tuple[int | None, ...]

    @property
    def batch(self) -> int | None:
        """The batch that the model was made for; None where any goes."""
        return self.shape[0] if self.shape else None

    def check(self, argument: str, shape: tuple[int, ...], *, is_batch_free: bool = False) -> None:
        """Raise where a batch of this shape does not fit.

        Args:
            argument: what the error calls it.
            shape: of the batch.
            is_batch_free: leave the first size unchecked.

        Raises:
            ArgumentError: a size or the number of dimensions is another one.
        """
        first = 1 if is_batch_free else 0
        pairs = zip(self.shape[first:], shape[first:], strict=False)
        if len(shape) == len(self.shape) and all(own is None or own == size for own, size in pairs):
            return
        expected, got = (
            written(sizes[1:]) + ("" if is_batch_free else f" in a batch of {written(sizes[:1])}")
            for sizes in (self.shape, shape)
        )
        raise ArgumentError(
            argument, f"images of shape {expected}", got, f"that is the shape of the model's input {self.name!r}"
        )


@dataclass(frozen=True)
class OnnxModel:
    """A model that was read.

    Attributes:
        name: what errors call it: its path, or "model".
        source: the path as text, or the bytes; what a runtime loads.
        proto: an ``onnx.ModelProto`` without the values of external tensors.
        size: bytes of the file, with those of external tensors.
        opset: version of the standard operators.
    """

    name: str
    source: str | bytes
    proto: Any
    size: int
    opset: int

    def image_input(self, shape: Sequence[int] | None = None) -> ImageInput:
        """The input that images go to; ``shape`` is that of every batch, where it is known.

        Raises:
            ArgumentError: there are several inputs or none, it does not take float32, no batch of this shape, or it is
                larger than any image.
        """
        constants = {tensor.name for tensor in self.proto.graph.initializer}
        inputs = [value for value in self.proto.graph.input if value.name not in constants]
        if len(inputs) != 1:
            names = ", ".join(value.name for value in inputs) or "none"
            remedy = "export the network with its other inputs fixed"
            raise ArgumentError(self.name, "a model with one input, a batch of images", f"inputs {names}", remedy)
        tensor = inputs[0].type.tensor_type
        kinds = {number: name.lower() for name, number in package("onnx").TensorProto.DataType.items()}
        kind = kinds.get(tensor.elem_type, f"type {tensor.elem_type}")
        if kind != "float":
            raise ArgumentError(self.name, "an input of float32, as images are", f"{kind} in {inputs[0].name!r}")
        sizes = (size.dim_value if size.HasField("dim_value") else None for size in tensor.shape.dim)
        found = ImageInput(inputs[0].name, tuple(size if size is None or size > 0 else None for size in sizes))
        if math.prod(size for size in found.shape if size is not None) > _MOST_VALUES:
            raise ArgumentError(self.name, f"an input of at most {_MOST_VALUES} values", written(found.shape))
        if shape is None:
            return found
        found.check("shape", tuple(shape))
        return ImageInput(found.name, tuple(shape))

    def whole(self) -> Any:
        """A copy of the proto with the values of external tensors in it."""
        onnx = package("onnx")
        try:
            return onnx.load(self.source) if isinstance(self.source, str) else onnx.load_model_from_string(self.source)
        except Exception as error:  # of a file that has changed, or of which onnx refuses what we take
            raise CheckpointError(f"{self.name}: onnx cannot load it ({_short(str(error))})") from None


def read_model(source: ModelSource) -> OnnxModel:
    """Read an ONNX file, or the bytes of one.

    External tensors lie in files below the model's folder, reached through no symbolic link; what they and all others
    claim to hold is there.  Libraries of custom operators are never loaded.

    Raises:
        ArgumentError: there is no such file.
        CheckpointError: it is no ONNX file, damaged, or claims what is not there.
        MissingPackageError: ``onnx`` is not installed.
    """
    onnx = package("onnx")
    path = None if isinstance(source, bytes) else Path(source)
    name = "model" if path is None else str(path)
    if path is not None and not path.exists():
        raise ArgumentError("model", "the path of an ONNX file", name, "there is no such file")
    try:
        data = source if isinstance(source, bytes) else read_bytes(Path(source), _MOST_BYTES)
        proto = onnx.load_model_from_string(data)
    except UnusableFileError:
        raise
    except (OSError, ValueError, _decode_error()) as error:
        raise CheckpointError(f"{name}: not an ONNX file, or a damaged one ({error}); export it anew") from None
    opsets = {each.domain: each.version for each in proto.opset_import}
    if not proto.graph.node or not opsets:
        raise CheckpointError(f"{name}: not an ONNX file, or a damaged one (it holds no graph); export it anew")
    external = check_tensors(proto, path, onnx.TensorProto.DataType.Name)
    opset = opsets.get("", opsets.get("ai.onnx", 0))
    kept = source if isinstance(source, bytes) else name
    return OnnxModel(name, kept, proto, len(data) + external, opset)


def package(name: str) -> Any:
    """Import an optional package of the exporters and runtimes.

    Raises:
        MissingPackageError: it is not installed; the message tells how to.
    """
    try:
        return importlib.import_module(name)
    except ImportError:
        # ONNX Runtime and OpenVINO bring onnx with them, as the extras say.
        extra = name.partition(".")[0] if name != "onnx" else "onnxruntime"
        remedy = f'install it with: pip install "clcalib[{extra}]"'
        raise MissingPackageError(f"{name} is not installed, and this needs it; {remedy}") from None


def run_failure(model: OnnxModel, title: str, version: str, error: Exception) -> CheckpointError:
    """The error of a model that was loaded and does not run."""
    return CheckpointError(f"{model.name}: {title} {version} cannot run it ({_short(' '.join(str(error).split()))})")


def load_failure(model: OnnxModel, title: str, version: str, error: Exception) -> CheckpointError:
    """The error that a runtime's own message stands behind, in words that say what to do."""
    text = " ".join(str(error).split())
    if "guarantees* support" in text or "IR version" in text:
        needs = f"opset {model.opset} and IR version {model.proto.ir_version}"
        return CheckpointError(
            f"{model.name}: needs {needs}, which {title} {version} does not have; export it for a lower opset, "
            f"or install a newer {title}"
        )
    return CheckpointError(f"{model.name}: {title} {version} cannot load it ({_short(text)})")


def written(shape: tuple[int | None, ...]) -> str:
    """A shape as text, with ``any`` for a free size.

    Example:
        >>> written((None, 3, 32, 32))
        'any x 3 x 32 x 32'
    """
    return " x ".join("any" if size is None else str(size) for size in shape) or "()"


def _short(text: str, most: int = 300) -> str:
    """The end of a runtime's message, which says more than the places in its source that it begins with."""
    return text if len(text) <= most else f"... {text[-most:]}"


def _decode_error() -> type[Exception]:
    kind: type[Exception] = package("google.protobuf.message").DecodeError
    return kind
