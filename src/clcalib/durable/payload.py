"""What is saved of a part of a run: tensors by name, and a table of plain values, as one safetensors file."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

_VALUES = "values"


@dataclasses.dataclass(frozen=True)
class Payload:
    """Tensors by name, on the CPU, and values that JSON holds.  Floats come back bit for bit."""

    tensors: Mapping[str, Tensor]
    values: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def to_bytes(self) -> bytes:
        """The file's content; equal payloads have equal bytes."""
        tensors = {name: self.tensors[name].detach().cpu().contiguous() for name in sorted(self.tensors)}
        # A copy of its own for each, because safetensors refuses tensors that share memory.
        return save({name: tensor.clone() for name, tensor in tensors.items()}, metadata={_VALUES: _json(self.values)})

    @classmethod
    def from_bytes(cls, content: bytes) -> Payload:
        """The payload of a file's content.

        Raises:
            ValueError: it is none.
        """
        try:
            size = int.from_bytes(content[:8], "little")
            values = json.loads(json.loads(content[8 : 8 + size])["__metadata__"][_VALUES])
            tensors = load(content)
        except (SafetensorError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise ValueError(f"not a saved part of a run ({type(error).__name__}: {error})") from None
        if not isinstance(values, dict):
            raise ValueError("not a saved part of a run (its values are no table)")
        return cls(tensors, values)


def _json(values: Mapping[str, Any]) -> str:
    return json.dumps(values, sort_keys=True)
