"""What ``model.json`` beside a saved network may say: every key, its type and its bounds."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from clcalib.capture.blocks import UnitKind
from clcalib.capture.submodule import InputForm
from clcalib.errors import ArgumentError, CheckpointError
from clcalib.quant.policy import LayerPolicy
from clcalib.quant.spec import MAXIMUM_BITS, MINIMUM_BITS, Grid, PerChannel, PerTensor, QuantSpec
from clcalib.reading.content import read_json

FORMAT = 1
# Of one image: the network is captured on two of zeros.
_MOST_VALUES = 1 << 28
_NODES = (None, "builtins.tuple", "builtins.list", "builtins.dict")
_LEVELS = 16

_Size = Annotated[int, Field(ge=1, le=_MOST_VALUES)]


def _check_count(shape: tuple[int, ...]) -> tuple[int, ...]:
    if math.prod(shape) > _MOST_VALUES:
        raise ValueError(f"a shape of more than {_MOST_VALUES} values")
    return shape


_Shape = Annotated[tuple[_Size, ...], Field(max_length=8), AfterValidator(_check_count)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True)


class _Spec(_Part):
    bits: int = Field(ge=MINIMUM_BITS, le=MAXIMUM_BITS)
    is_symmetric: bool
    is_signed: bool
    axis: int | None = Field(ge=0, le=8)
    grid: Grid = "uniform"

    def spec(self) -> QuantSpec:
        granularity = PerTensor() if self.axis is None else PerChannel(self.axis)
        return QuantSpec(self.bits, self.is_symmetric, self.is_signed, granularity, self.grid)


class _Row(_Part):
    layer: str
    reason: str
    kind: str = ""
    weight: _Spec | None = None
    input: _Spec | None = None
    right: _Spec | None = None

    def row(self) -> LayerPolicy:
        weight, read, right = (None if side is None else side.spec() for side in (self.weight, self.input, self.right))
        return LayerPolicy(self.layer, weight, read, self.reason, self.kind, right)


class _Form(_Part):
    shapes: tuple[_Shape | None, ...]
    structure: str

    @model_validator(mode="after")
    def _check(self) -> Self:
        # torch would import whatever module an "enum" in the text names.
        if not _is_plain(_parsed(self.structure), _LEVELS):
            raise ValueError("a structure of other things than tuples, lists and dicts")
        return self


class Description(_Part):
    """The content of ``model.json``.

    Attributes:
        policy_rows: the rows of the policy, as JSON has them.
        sha256: of the tensors' file.
        code_shapes: of the codes of each layer.

    The others are those of ``checkpoint.Origin``.
    """

    format: Literal[1]
    unit: UnitKind
    patterns: tuple[str, ...]
    input_shape: _Shape
    submodule: str | None = None
    form: _Form | None = None
    input_dtype: Literal["float32", "int64"] = "float32"
    target: str | None = None
    policy_rows: tuple[_Row, ...] = Field(alias="policy")
    code_shapes: dict[str, _Shape]
    sha256: str

    @property
    def policy(self) -> tuple[LayerPolicy, ...]:
        """The widths of every layer."""
        return tuple(row.row() for row in self.policy_rows)

    def input_form(self) -> InputForm | None:
        """What the part takes, where a part was quantized."""
        return None if self.form is None else InputForm(self.form.shapes, self.form.structure)


def read_description(path: Path) -> Description:
    """Read and check ``model.json``.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: it is damaged, of another format, or a value is none of its kind.
    """
    content = read_json(path)
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise CheckpointError(f"{path}: expected format {FORMAT}; this version reads no other")
    try:
        found = Description.model_validate_json(json.dumps(content))
        found.policy  # noqa: B018 - a grid may not fit the other settings
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"]) or "the file"
        raise CheckpointError(f"{path}: damaged: {place}: {first['msg']}; save the model anew") from None
    except (ArgumentError, ValueError) as error:
        raise CheckpointError(f"{path}: damaged: {error}; save the model anew") from None
    if (found.submodule is None) != (found.form is None):
        raise CheckpointError(f"{path}: damaged: a submodule and its form belong together; save the model anew")
    return found


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return ...


def _is_plain(node: Any, levels: int) -> bool:
    """Whether all of a tree specification (a version, then nodes) is made of plain containers."""
    if isinstance(node, list) and len(node) == 2 and isinstance(node[0], int):  # the version in front
        node = node[1]
    if not isinstance(node, dict) or levels < 1 or not _is_plain_context(node.get("context")):
        return False
    children = node.get("children_spec", [])
    return (
        node.get("type", ...) in _NODES
        and isinstance(children, list)
        and all(_is_plain(child, levels - 1) for child in children)
    )


def _is_plain_context(context: object) -> bool:
    """Whether it is nothing, or the text of a list of keys."""
    keys = _parsed(context) if isinstance(context, str) else context
    return keys is None or (isinstance(keys, list) and all(isinstance(key, str | int) for key in keys))
