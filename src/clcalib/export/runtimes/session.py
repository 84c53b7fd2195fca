"""A loaded model: called with a batch, it gives its outputs by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from clcalib.errors import ArgumentError
from clcalib.export.runtimes.model_file import ImageInput

Array = NDArray[np.float32]


@dataclass(frozen=True)
class Session:
    """What a runtime made of a model.

    Attributes:
        input: the only input.
        outputs: names of the outputs.
        execute: batch -> the outputs in this order, unchecked.
    """

    input: ImageInput
    outputs: tuple[str, ...]
    execute: Callable[[Array], Sequence[Array]]

    def __call__(self, batch: Array) -> dict[str, Array]:
        """Run one batch (N, ...) float32; the same batch gives the same outputs.

        Raises:
            ArgumentError: another shape or type than the input's.
        """
        if batch.dtype != np.float32:
            raise ArgumentError("batch", "an array of float32", batch.dtype)
        self.input.check("batch", batch.shape)
        return dict(zip(self.outputs, self.execute(np.ascontiguousarray(batch)), strict=True))

    def network(self) -> Callable[[Tensor], Tensor]:
        """The same as a function of tensors (N, ...) for any N; it returns the only output.

        A model with a fixed batch gets its images in batches of that size, the last one filled up with zeros.

        Raises:
            ArgumentError: there are several outputs; when called: the images do not fit.
        """
        if len(self.outputs) != 1:
            raise ArgumentError("model", "one output (N, classes)", f"outputs {', '.join(self.outputs)}")

        def run(images: Tensor) -> Tensor:
            self.input.check("evaluation", tuple(images.shape), is_batch_free=True)
            size = self.input.batch or len(images)
            parts = [images[start : start + size].float() for start in range(0, len(images), size)]
            return torch.cat([self._padded(part) for part in parts])

        return run

    def _padded(self, images: Tensor) -> Tensor:
        missing = (self.input.batch or len(images)) - len(images)
        filled = torch.cat([images, images.new_zeros(missing, *images.shape[1:])]) if missing else images
        outputs = self(filled.contiguous().numpy())
        # A copy: a runtime may use the memory again.
        return torch.from_numpy(np.array(outputs[self.outputs[0]]))[: len(images)]
