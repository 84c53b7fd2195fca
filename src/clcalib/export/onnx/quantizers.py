"""Quantizers as ONNX operators: 8 bits as QuantizeLinear and DequantizeLinear, fewer as a bit-exact float reference.

No CPU has integer kernels for activations of fewer than 8 bits.  Written as a clip before an 8-bit quantizer they come
out wrong (an optimiser may drop the clip), so they are written as the operators of ``quant.functional.fake_quantize``
in the same order: Div, Round (halves to even), Add, Clip, Sub, Mul, each rounded to float32 as in the simulation.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor
from torch.nn.functional import pad

from clcalib.export.onnx.call import ONNX_TYPES, Call
from clcalib.export.onnx.codes import write_codes
from clcalib.export.onnx.rules import OnnxRules
from clcalib.export.onnx.writer import UnsupportedError, Writer
from clcalib.quant.modules import ActivationQuantizer, IntegerWeight
from clcalib.quant.spec import PerChannel, QuantSpec

LARGEST_BIAS_CODE = 2**30  # half of what int32 holds: the sum over the products must fit beside it


def is_integer(quantizer: ActivationQuantizer, rules: OnnxRules) -> bool:
    """Whether a quantizer becomes QuantizeLinear: uniform, one scale, and 8 bits if not all widths do."""
    has_width = quantizer.spec.bits == 8 or rules.are_codes_integer
    return has_width and quantizer.spec.grid == "uniform" and quantizer.scale.numel() == 1


def container(spec: QuantSpec, rules: OnnxRules) -> torch.dtype:
    """The 8-bit type of a weight's codes; unsigned ones are moved by half their number, which is the same values.

    Kernels multiply unsigned activations by signed weights; with unsigned weights they take twice the time.
    """
    is_signed = spec.is_signed or spec.is_symmetric or rules.are_codes_integer
    return torch.int8 if is_signed else torch.uint8


def write_activation(call: Call, source: str, quantizer: ActivationQuantizer) -> None:
    """Write what ``ActivationQuantizer.forward`` computes; the codes' tensor is noted in the writer."""
    spec, name = quantizer.spec, call.node.name
    if is_integer(quantizer, call.writer.rules):
        write_codes(call, source, quantizer)
    elif spec.grid == "uniform":
        codes = _reference_codes(call, source, quantizer.scale, quantizer.zero_point, spec.q_min, spec.q_max, "")
        call.writer.reference_codes[name] = codes
        _reference_values(call, codes, quantizer.scale, quantizer.zero_point, "", is_end=True)
    elif spec.grid == "twin":
        _write_twin(call, source, quantizer)
    else:
        raise UnsupportedError(f"the grid {spec.grid!r}, whose logarithm no runtime computes bit by bit as PyTorch")


def _reference_codes(
    call: Call, source: str, scale: Tensor, zero_point: Tensor, q_min: int, q_max: int, side: str
) -> str:
    """clamp(round(x / s) + z, q_min, q_max) in float32."""
    ratio = call.step("Div", source, call.constant(scale, f"{side}scale"))
    shifted = call.step("Add", call.step("Round", ratio), call.constant(zero_point, f"{side}zero_point"))
    bounds = (call.constant(torch.tensor(float(bound))) for bound in (q_min, q_max))
    return call.step("Clip", shifted, *bounds)


def _reference_values(
    call: Call, codes: str, scale: Tensor, zero_point: Tensor, side: str, is_end: bool = False
) -> str:
    """(q - z) * s in float32."""
    steps = call.step("Sub", codes, call.constant(zero_point, f"{side}zero_point"))
    write = call.end if is_end else call.step
    return write("Mul", steps, call.constant(scale, f"{side}scale"))


def _write_twin(call: Call, source: str, quantizer: ActivationQuantizer) -> None:
    spec, none = quantizer.spec, torch.zeros(())
    sides = []
    for index, side, q_min, q_max in ((0, "below/", spec.q_min, 0), (1, "above/", 0, spec.q_max)):
        scale = quantizer.scale[index]
        codes = _reference_codes(call, source, scale, none, q_min, q_max, side)
        sides.append(_reference_values(call, codes, scale, none, side))
    is_below = call.step("Less", source, call.constant(none))
    call.end("Where", is_below, *sides)


def is_symmetric(weight: IntegerWeight, rules: OnnxRules) -> bool:
    """Whether the codes of a weight as kernels see them are signed, without zero points."""
    return container(weight.spec, rules) == torch.int8 and not bool(stored_weight(weight, rules).zero_point.any())


@dataclasses.dataclass(frozen=True)
class StoredWeight:
    """The codes of a weight as they stand in the file; the value is s * (codes - offset - zero_point).

    Attributes:
        codes: whole numbers, as many bits wide as they are stored  # shape: as the weight
        bits: that many.
        offset: taken off when the file is loaded, in integers; None for nothing.
        zero_point: taken off by the kernels, which without one are faster, and in OpenVINO are integer at all.
    """

    codes: Tensor
    bits: int
    offset: Tensor | None
    zero_point: Tensor


def stored_weight(weight: IntegerWeight, rules: OnnxRules) -> StoredWeight:
    """How a weight is stored: where integer kernels read it, codes of up to 7 bits lose their zero point beforehand.

    q - z lies between -(2^b - 1) and 2^b - 1, which 8 bits hold for b <= 7; 4 bits hold it for b <= 3.  So codes of 4
    bits are stored as they are, and z is taken off when the file is loaded.
    """
    bits = rules.storage_bits(weight.spec.bits)
    middle = weight.spec.middle if not weight.spec.is_signed else 0
    if container(weight.spec, rules) != torch.int8:
        return StoredWeight(weight.codes, bits, None, weight.zero_point)
    codes, rest = weight.codes - middle, weight.zero_point - middle
    centred = weight.codes - weight.zero_point
    if not bool(rest.any()) or not rules.are_codes_integer or not _fits(centred, 8):
        return StoredWeight(codes, bits, None, rest)
    if _fits(centred, bits):
        return StoredWeight(centred, bits, None, torch.zeros_like(rest))
    return StoredWeight(codes, bits, rest, torch.zeros_like(rest))


def _fits(codes: Tensor, bits: int) -> bool:
    half = 1 << (bits - 1)
    return bool((codes >= -half).all()) and bool((codes < half).all())


def write_weight(
    call: Call, name: str, weight: IntegerWeight, is_transposed: bool = False, zero_channels: int = 0
) -> str:
    """Write codes and DequantizeLinear; returns the value of the float weight.

    Args:
        call: the layer that reads it.
        name: of the module, for readable names.
        weight: the codes.
        is_transposed: whether the two axes of a linear weight change places, as MatMul wants them.
        zero_channels: input channels of zeros behind those of the weight, which ``is_symmetric``.
    """
    spec, dtype = weight.spec, container(weight.spec, call.writer.rules)
    found = stored_weight(weight, call.writer.rules)
    codes, offset, scale, zero_point = found.codes, found.offset, weight.scale, found.zero_point
    axis = spec.granularity.axis if isinstance(spec.granularity, PerChannel) else None
    if is_transposed:
        codes, name = codes.mT, f"{name}/transposed"
        axis = None if axis is None else 1 - axis
        offset = None if offset is None or axis is None else offset.mT
    if zero_channels:
        filled = (0, 0) * (codes.dim() - 2) + (0, zero_channels)
        # Their value is 0 once the offset is taken off.
        codes = pad(codes, filled) if offset is None else torch.cat((codes, _repeated(offset, codes, zero_channels)), 1)
        name = f"{name}/filled"
    scale, zero_point = (value.flatten() if axis is not None else value.reshape(()) for value in (scale, zero_point))
    writer = call.writer
    if name in writer.weights:
        return writer.weights[name]
    stored = writer.constant(f"{name}/codes", codes.to(dtype), None if found.bits == 8 else found.bits)
    if spec.bits < found.bits:
        kind = "int" if dtype == torch.int8 else "uint"
        writer.narrow[stored] = f"{spec.bits} bits in {kind}{found.bits}"
    stored = _eight_bits(writer, name, stored, found.bits, offset, dtype)
    numbers = (
        writer.constant(f"{name}/scale", scale),
        # ONNX Runtime has no integer Gemm where this is left out, even if it is 0.
        writer.constant(f"{name}/zero_point", zero_point.to(dtype)),
    )
    output = writer.weights[name] = writer.reserve(f"{name}/values")
    attributes = {} if axis is None else {"axis": axis}
    writer.step("DequantizeLinear", (stored, *numbers), (output,), "", **attributes)
    return output


def _repeated(offset: Tensor, codes: Tensor, channels: int) -> Tensor:
    """An offset as the codes of some more input channels."""
    return offset.expand(codes.shape[0], channels, *codes.shape[2:])


def _eight_bits(writer: Writer, name: str, stored: str, bits: int, offset: Tensor | None, dtype: torch.dtype) -> str:
    """Codes in 8 bits, less their offset; runtimes compute this once, when they load the file."""

    def cast(source: str, wanted: str, to: torch.dtype) -> str:
        output = writer.reserve(wanted)
        writer.step("Cast", (source,), (output,), "", to=ONNX_TYPES[to])
        return output

    if offset is not None:
        taken, bits_of_offset = writer.reserve(f"{name}/centred"), bits if _fits(offset, bits) else 8
        small = writer.constant(f"{name}/offset", offset.to(dtype), None if bits_of_offset == 8 else bits_of_offset)
        wide = [cast(each, f"{each}32", torch.int32) for each in (stored, small)]  # no runtime subtracts in 8 bits
        writer.step("Sub", wide, (taken,), "")
        return cast(taken, f"{name}/codes8", dtype)
    return stored if bits == 8 else cast(stored, f"{name}/codes8", dtype)


def write_bias(call: Call, layer: str, bias: Tensor, input_scale: Tensor, weight_scale: Tensor) -> str | None:
    """Write an int32 bias and DequantizeLinear; None where it must stay in float."""
    found = bias_codes(bias, input_scale, weight_scale)
    if found is None:
        return None
    codes, scale = found
    writer, name = call.writer, f"{layer}.bias"
    if writer.rules.is_compact and weight_scale.numel() == bias.numel() > 1:
        # Both factors are in the file anyway; runtimes multiply them once, when they load it.
        factors = (input_scale.reshape(()), weight_scale.flatten())
        stored = [writer.constant(f"{name}/scale{number}", factor) for number, factor in enumerate(factors)]
        scales = writer.reserve(f"{name}/scale")
        writer.step("Mul", stored, (scales,), "")
    else:
        scales = writer.constant(f"{name}/scale", scale)
    # Without a zero point, which is 0 then: here no kernel asks for it.
    inputs, output = (writer.constant(f"{name}/codes", codes), scales), writer.reserve(f"{name}/values")
    writer.step("DequantizeLinear", inputs, (output,), "", axis=0)
    writer.biases[call.node.name] = codes.to(scale.dtype) * scale
    return output


def bias_codes(bias: Tensor, input_scale: Tensor, weight_scale: Tensor) -> tuple[Tensor, Tensor] | None:
    """A bias as int32 codes round(b / (s_x * s_w)), and their scales; None where a code would not fit.

    Args:
        bias: b  # shape: (C,)
        input_scale: s_x  # shape: one element
        weight_scale: s_w  # shape: one element, or C elements

    Returns:
        codes, int32, and s_x * s_w, float32  # shape: (C,) both
    """
    scale = (input_scale.reshape(()) * weight_scale.flatten()).expand(bias.numel()).clone()
    codes = torch.round(bias.detach().double() / scale.double())
    if not bool((codes.abs() <= LARGEST_BIAS_CODE).all()):
        return None
    return codes.to(torch.int32), scale


def rounded_bias(bias: Tensor, input_scale: Tensor, weight_scale: Tensor) -> Tensor:
    """The float value of a bias that is stored as int32: ``round(b / (s_x * s_w)) * (s_x * s_w)``, per channel.

    Where a code would exceed 2^30 (the weights of some channel are next to nothing), the bias stays in float as a
    whole and is returned as it is; the emitter goes by the same rule.

    Args:
        bias: b  # shape: (C,)
        input_scale: s_x  # shape: one element
        weight_scale: s_w  # shape: one element, or C elements

    Returns:
        the rounded bias, float32  # shape: (C,)

    Example:
        >>> rounded_bias(torch.tensor([0.3, 1.0]), torch.tensor(0.5), torch.tensor([0.5, 0.25]))
        tensor([0.2500, 1.0000])
    """
    found = bias_codes(bias, input_scale, weight_scale)
    if found is None:
        return bias
    codes, scale = found
    return codes.to(scale.dtype) * scale
