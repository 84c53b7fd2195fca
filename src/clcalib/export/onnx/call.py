"""One node of a captured graph as the builders of ONNX operators see it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from clcalib.capture.graph import module_path, symbol_of, value_of
from clcalib.export.onnx.writer import UnsupportedError, Writer

Names = dict[fx.Node, str | tuple[str, ...]]  # node -> its value, or its values where it gives several

# torch type -> the number of the ONNX type (TensorProto.DataType), which the format fixes for good
ONNX_TYPES = {
    torch.float32: 1,
    torch.uint8: 2,
    torch.int8: 3,
    torch.int16: 5,
    torch.int32: 6,
    torch.int64: 7,
    torch.bool: 9,
    torch.float16: 10,
    torch.float64: 11,
    torch.bfloat16: 16,
}


class Call:
    """A node with its arguments by name, and the place where what it becomes is written.

    ``step`` writes an operator in between, ``end`` the one that makes the node's value.
    """

    def __init__(self, writer: Writer, node: fx.Node, names: Names) -> None:
        self.writer = writer
        self.node = node
        self._names = names
        self.padding: Tensor | None = None  # what is put around codes, where the operator works on these
        self._arguments = _arguments(node)

    def at(self, node: fx.Node) -> Call:
        """Another node of the same graph."""
        return Call(self.writer, node, self._names)

    def reading(self, name: str, node: fx.Node) -> Call:
        """The same node with another tensor as one of its arguments."""
        other = self.at(self.node)
        other._arguments[name] = node
        return other

    def __getitem__(self, name: str) -> Any:
        return self._arguments[name]

    def __contains__(self, name: str) -> bool:
        return name in self._arguments

    def get(self, name: str, default: Any = None) -> Any:
        """An argument, or the default where the operator has none of this name or it is None."""
        value = self._arguments.get(name)
        return default if value is None else value

    @property
    def result(self) -> Any:
        """The symbolic value of the node."""
        return value_of(self.node)

    def value(self, name: str) -> Tensor:
        """The symbolic value of an argument that is a tensor."""
        node = self[name]
        found = value_of(node) if isinstance(node, fx.Node) else None
        if not isinstance(found, Tensor):
            raise UnsupportedError(f"{name} is no tensor")
        return found

    def rank(self, name: str) -> int:
        """The number of dimensions of an argument."""
        return self.value(name).dim()

    def axis(self, name: str, of: str = "self") -> int:
        """An axis counted from the front."""
        axis, rank = int(self[name]), self.rank(of)
        return axis % rank if rank else 0

    def axes(self, name: str, of: str = "self") -> list[int]:
        """Axes counted from the front; all of them where the argument is missing or empty."""
        rank, axes = self.rank(of), self.get(name)
        axes = [axes] if isinstance(axes, int) else axes
        return sorted(int(axis) % rank for axis in axes) if axes else list(range(rank))

    def number(self, name: str, default: Any = None) -> Any:
        """A plain number; refuses what is computed from the image."""
        value = self.get(name, default)
        if isinstance(value, fx.Node):
            raise UnsupportedError(f"{name} is not a fixed number")
        return value

    def numbers(self, name: str, count: int | None = None) -> list[Any]:
        """Fixed numbers, one of them repeated ``count`` times where it stands alone."""
        values = self.get(name, [])
        values = list(values) if isinstance(values, list | tuple) else [values]
        if any(isinstance(value, fx.Node) for value in values):
            raise UnsupportedError(f"{name} is not fixed")
        return values * count if count is not None and len(values) == 1 else values

    def name_of(self, value: Any, dtype: torch.dtype | None = None) -> str:
        """The ONNX value of a node or a number; ``dtype`` casts it."""
        if isinstance(value, fx.Node):
            name = self._names[value]
            if not isinstance(name, str):
                raise UnsupportedError("an operator with several results is read as one tensor")
            own = _type_of(value)
            return name if dtype is None or own == dtype else self.step("Cast", name, to=ONNX_TYPES[dtype])
        return self.constant(torch.tensor(value, dtype=dtype or (self.result.dtype if self.is_tensor else None)))

    @property
    def is_tensor(self) -> bool:
        """Whether the node makes one tensor."""
        return isinstance(self.result, Tensor)

    def first_output(self) -> str:
        """The first value of a node with several results, where nothing reads the others."""
        first, *others = self.outputs
        if any(others):
            raise UnsupportedError("results other than the first")
        return first

    def end_first(self, operator: str, *inputs: str, **attributes: Any) -> str:
        """Write the operator that makes the first of several results, where nothing reads the others."""
        return self.writer.step(operator, inputs, (self.first_output(),), self.place(self.node.name), **attributes)

    @property
    def outputs(self) -> tuple[str, ...]:
        """The names of the node's values; "" for one that nothing reads."""
        names = self._names[self.node]
        return names if isinstance(names, tuple) else (names,)

    def names_of(self, name: str) -> tuple[str, ...]:
        """The ONNX values of an operator with several results."""
        names = self._names[self[name]]
        return names if isinstance(names, tuple) else (names,)

    def tensor(self, name: str, dtype: torch.dtype | None = None) -> str:
        """The ONNX value of an argument; "" where it is None."""
        value = self.get(name)
        return "" if value is None else self.name_of(value, dtype)

    def size(self, value: Any) -> str:
        """A size as int64 of shape (1,)."""
        return self.name_of(value) if isinstance(value, fx.Node) else self.constant(torch.tensor([int(value)]))

    def sizes(self, values: Sequence[Any]) -> str:
        """Sizes as one int64 tensor; those that follow the batch are computed in the graph."""
        if not any(isinstance(value, fx.Node) for value in values):
            return self.constant(torch.tensor([int(value) for value in values], dtype=torch.int64))
        return self.step("Concat", *[self.size(value) for value in values], axis=0)

    def shape_of(self, name: str, start: int, end: int) -> str:
        """Some sizes of a tensor as the graph finds them."""
        return self.step("Shape", self.tensor(name), start=start, end=end)

    def constant(self, value: Tensor, label: str = "") -> str:
        """An initializer that belongs to this node, or a small one that any node may share."""
        if not label and value.numel() <= 8:
            kind = str(value.dtype).removeprefix("torch.")
            listed = "_".join(str(item) for item in value.flatten().tolist()) or "empty"
            form = "x".join(map(str, value.shape)) or "scalar"
            return self.writer.constant(f"constant/{kind}/{form}/{listed}", value)
        return self.writer.constant(f"{self.node.name}/{label or 'constant'}", value)

    def step(self, operator: str, *inputs: str, **attributes: Any) -> str:
        """Write an operator whose value only this node reads."""
        output = self.writer.reserve(f"{self.node.name}/{operator}")
        self.writer.step(operator, inputs, (output,), self._title(operator, output), **attributes)
        return output

    def end(self, operator: str, *inputs: str, name: str = "", **attributes: Any) -> str:
        """Write the operator that makes the node's value; ``name`` of the step instead of its place."""
        output = self._names[self.node]
        assert isinstance(output, str)
        title = name or self._title(operator, self.node.name)
        return self.writer.step(operator, inputs, (output,), title, **attributes)

    def end_several(self, operator: str, *inputs: str, **attributes: Any) -> str:
        """Write the operator that makes all values of a node with several results, also those that nothing reads."""
        outputs = [output or self.writer.reserve(f"{self.node.name}/unread") for output in self.outputs]
        return self.writer.step(operator, inputs, outputs, self.place(self.node.name), **attributes)

    def _title(self, operator: str, label: str) -> str:
        """The name of a step; what a quantizer becomes goes without in a compact graph, but for clips of its codes."""
        if not self.writer.rules.is_compact or self.node.op != "call_module":
            return self.place(label)
        return self.place(operator) if operator == "Clip" else ""

    def place(self, label: str) -> str:
        """A label behind the path of the module that the node arose in."""
        path = module_path(self.node)
        return f"{path}/{label}" if path else label


Builder = Callable[[Call], object]


def fixed(size: Any) -> int:
    """A size as a number; refuses one that follows the batch."""
    if symbol_of(size) is not None:
        raise UnsupportedError("along the batch")
    return int(size)


def _type_of(node: fx.Node) -> torch.dtype:
    value = value_of(node)
    return value.dtype if isinstance(value, Tensor) else torch.int64


def _arguments(node: fx.Node) -> dict[str, Any]:
    """The arguments of an aten operator by name, defaults included; other nodes have them by position."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return {str(place): value for place, value in enumerate(node.args)}
    schema = node.target._schema.arguments
    found = {argument.name: argument.default_value for argument in schema if argument.has_default_value()}
    found |= {argument.name: value for argument, value in zip(schema, node.args, strict=False)}
    return found | dict(node.kwargs)
