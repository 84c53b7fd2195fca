"""Activations as integer codes: QuantizeLinear, and what may be done to the codes instead of to the values.

Rounding to a grid never changes the order of two values.  So a clamp in front of a quantizer is a clamp of the codes:
``quantize(clamp(x, a, b)) == clamp(quantize(x), quantize(a), quantize(b))``.  The same holds of the grid's own end: a
quantizer of 4 bits is one of 8 bits whose codes are clamped to 16 values.  Both leave a QuantizeLinear right behind the
convolution, as integer kernels need it, where a clip of the *values* in front of an 8-bit quantizer keeps them from
being used (or, worse, is dropped).  What only moves values moves codes.
"""

from __future__ import annotations

import torch
from torch import Tensor, fx

from clcalib.export.onnx.call import Builder, Call, Names
from clcalib.export.onnx.movement import PADS
from clcalib.export.onnx.pooling import whole_factors
from clcalib.export.onnx.writer import Codes, Writer
from clcalib.quant.functional import quantize
from clcalib.quant.modules import ActivationQuantizer
from clcalib.quant.placement import MOVES, clamp_limits, pads_with_numbers, plain_name


def write_codes(call: Call, source: str, quantizer: ActivationQuantizer) -> None:
    """Write QuantizeLinear, a Clip of the codes where they have fewer values, and DequantizeLinear."""
    writer, spec = call.writer, quantizer.spec
    dtype = torch.int8 if spec.is_signed else torch.uint8
    limits = (float(spec.q_min), float(spec.q_max))
    if writer.rules.are_codes_integer:
        source, limits = _without_clamp(call, source, quantizer)
    pool = writer.flattened.get(source) if writer.rules.are_codes_integer else None
    scale = call.constant(quantizer.scale.reshape(()), "scale")
    zero_point = call.constant(quantizer.zero_point.reshape(()).to(dtype), "zero_point")
    codes = call.step("QuantizeLinear", pool or source, scale, zero_point)
    bounds = torch.iinfo(dtype)
    if limits != (bounds.min, bounds.max):
        codes = call.step("Clip", codes, *(call.constant(torch.tensor(int(limit), dtype=dtype)) for limit in limits))
    if pool is not None:
        codes = call.step("Flatten", codes, axis=1)
    writer.codes[call.node.name] = codes
    writer.stored[call.name_of(call.node)] = Codes(codes, (scale, zero_point), quantizer)
    call.end("DequantizeLinear", codes, scale, zero_point)


def _without_clamp(call: Call, source: str, quantizer: ActivationQuantizer) -> tuple[str, tuple[float, float]]:
    """What a clamp that only the quantizer reads was given, and the codes between which the result lies."""
    spec, node = quantizer.spec, call.node.args[0]
    limits = (float(spec.q_min), float(spec.q_max))
    found = clamp_limits(node) if isinstance(node, fx.Node) and len(node.users) == 1 else None
    if found is None:
        return source, limits
    assert isinstance(node, fx.Node)
    ends = quantize(torch.tensor(found), quantizer.scale.cpu(), quantizer.zero_point.cpu(), spec.q_min, spec.q_max)
    return call.name_of(node.args[0]), (float(ends[0]), float(ends[1]))


def write_move(writer: Writer, node: fx.Node, names: Names, build: Builder) -> bool:
    """Write an operator that only moves values on the codes instead, if there are codes; tells whether it did."""
    name = plain_name(node)
    if not writer.rules.are_codes_integer or name not in MOVES or pads_with_numbers(node):
        return False
    if name.startswith("upsample") and not whole_factors(Call(writer, node, names)):
        return False
    (source, *_) = node.all_input_nodes
    codes = writer.stored.get(str(names[source]))
    if codes is None:
        return False
    values = names[node]
    values = values if isinstance(values, tuple) else (values,)
    moved = tuple(writer.reserve(f"{value}/codes") if value else "" for value in values)
    inner = {**names, source: codes.name, node: moved if isinstance(names[node], tuple) else moved[0]}
    call = Call(writer, node, inner)
    if name in PADS:
        dtype = torch.int8 if codes.quantizer.spec.is_signed else torch.uint8
        call.padding = codes.quantizer.zero_point.reshape(()).to(dtype)
    build(call)
    for value, own in zip(values, moved, strict=True):
        if value:
            writer.stored[value] = Codes(own, codes.numbers, codes.quantizer)
            writer.step("DequantizeLinear", (own, *codes.numbers), (value,), "")
    return True


def with_zero_channels(call: Call, argument: str, count: int) -> str:
    """The value of an argument that is dequantized from codes, with channels of zeros behind its own."""
    writer, codes = call.writer, call.writer.stored[call.tensor(argument)]
    sizes = [0] * call.rank(argument)
    filled = call.step("Pad", codes.name, call.sizes([*sizes, 0, count, *sizes[2:]]), codes.numbers[1])
    output = writer.reserve(f"{call.node.name}/filled")
    writer.step("DequantizeLinear", (filled, *codes.numbers), (output,), "")
    return output


def scale_behind(call: Call, argument: str) -> Tensor | None:
    """The scale of the codes that an argument is dequantized from; None where it is not."""
    codes = call.writer.stored.get(call.tensor(argument))
    return None if codes is None else codes.quantizer.scale
