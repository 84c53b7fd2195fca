"""A written graph made small: slices in a row become one, equal constants are stored once, inner names are short.

A file of 4-bit codes is small enough for its names to count: with a readable name for each tensor, those of ResNet-20
took a seventh of its bytes.
"""

from __future__ import annotations

import dataclasses
import itertools
import string
from collections import Counter
from collections.abc import Collection, Iterator, Sequence

import torch

from clcalib.export.onnx.writer import Constant, Step, Writer


def compacted(writer: Writer, outputs: Sequence[str]) -> Writer:
    """What the outputs need, with fewer slices; where the rules say so, with shared constants and short names.

    The graph's ends keep their names, and so do all operators.

    Args:
        writer: everything is written.
        outputs: names of the graph's outputs.
    """
    steps = _with_joined_slices(writer, outputs)
    if not writer.rules.is_compact:
        return dataclasses.replace(writer, steps=steps)
    read = {value for step in steps for value in step.inputs} | set(outputs)
    constants = [constant for name, constant in writer.constants.items() if name in read]
    first: dict[object, str] = {}
    shared = {constant.name: first.setdefault(_content(constant), constant.name) for constant in constants}
    names = _short_names(steps, shared, {writer.rules.input_name, *outputs})

    def named(value: str) -> str:
        return names.get(shared.get(value, value), value)

    steps = [
        dataclasses.replace(step, inputs=tuple(map(named, step.inputs)), outputs=tuple(map(named, step.outputs)))
        for step in steps
    ]
    kept = [constant for constant in constants if shared[constant.name] == constant.name]
    return dataclasses.replace(
        writer,
        steps=steps,
        constants={named(each.name): dataclasses.replace(each, name=named(each.name)) for each in kept},
        codes={node: named(value) for node, value in writer.codes.items()},
        reference_codes={node: named(value) for node, value in writer.reference_codes.items()},
        narrow={named(value): width for value, width in writer.narrow.items()},
    )


def _with_joined_slices(writer: Writer, outputs: Sequence[str]) -> list[Step]:
    """The steps that are needed; a slice of a slice that nothing else reads, along other axes, is one slice."""
    steps = writer.needed(outputs)
    readers = Counter(itertools.chain(outputs, *(step.inputs for step in steps)))
    found: dict[str, Step] = {}  # by the first of their outputs
    for step in steps:
        before = found.get(step.inputs[0]) if step.operator == "Slice" else None
        if before is not None and before.operator == "Slice" and readers[step.inputs[0]] == 1:
            inputs = _joined(writer, before, step)
            if inputs is not None:
                del found[before.outputs[0]]
                step = dataclasses.replace(step, inputs=inputs)
        found[step.outputs[0]] = step
    return list(found.values())


def _joined(writer: Writer, first: Step, second: Step) -> tuple[str, ...] | None:
    """The inputs of a slice along the axes of both; None where bounds are computed or an axis is in both."""
    bounds = [[writer.constants.get(name) for name in step.inputs[1:]] for step in (first, second)]
    numbers = [[constant.value for constant in each if constant is not None] for each in bounds]
    if any(len(each) != 4 for each in numbers) or set(numbers[0][2].tolist()) & set(numbers[1][2].tolist()):
        return None
    values = [torch.cat(pair) for pair in zip(*numbers, strict=True)]
    names = [writer.constant(f"{second.outputs[0]}/bounds", value) for value in values]
    return first.inputs[0], *names


def _content(constant: Constant) -> object:
    """What makes two constants equal."""
    value = constant.value
    return value.dtype, tuple(value.shape), constant.bits, value.reshape(-1).view(torch.uint8).numpy().tobytes()


def _short_names(steps: Sequence[Step], shared: dict[str, str], kept: Collection[str]) -> dict[str, str]:
    """For every other tensor a name of few letters, in the order of execution."""
    free = (name for name in _letters() if name not in kept)
    found: dict[str, str] = {}
    for step in steps:
        for value in (*step.inputs, *step.outputs):
            value = shared.get(value, value)
            if value and value not in kept and value not in found:
                found[value] = next(free)
    return found


def _letters() -> Iterator[str]:
    """a, ..., Z, aa, ab, ..."""
    for length in itertools.count(1):
        yield from map("".join, itertools.product(string.ascii_letters, repeat=length))
