"""Quantizers as ONNX operators: 8 bits as QuantizeLinear and DequantizeLinear, fewer as a bit-exact float reference.

No CPU has integer kernels for activations of fewer than 8 bits.  Written as a clip before an 8-bit quantizer they come
out wrong (an optimiser may drop the clip), so they are written as the operators of ``quant.functional.fake_quantize``
in the same order: Div, Round (halves to even), Add, Clip, Sub, Mul, each rounded to float32 as in the simulation.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from clcalib.export.onnx.call import ONNX_TYPES, Call
from clcalib.export.onnx.codes import write_codes
from clcalib.export.onnx.rules import OnnxRules
from clcalib.export.onnx.writer import UnsupportedError
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
    """Whether the codes of a weight as they are stored are signed, without zero points."""
    return container(weight.spec, rules) == torch.int8 and not bool((weight.zero_point - _shift(weight, rules)).any())


def _shift(weight: IntegerWeight, rules: OnnxRules) -> int:
    """What is taken off the codes so that they fit into their type."""
    is_moved = container(weight.spec, rules) == torch.int8 and not weight.spec.is_signed
    return weight.spec.middle if is_moved else 0


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
    shift = _shift(weight, call.writer.rules)
    codes, scale = weight.codes - shift, weight.scale
    zero_point = weight.zero_point - shift
    axis = spec.granularity.axis if isinstance(spec.granularity, PerChannel) else None
    if is_transposed:
        codes, name = codes.mT, f"{name}/transposed"
        axis = None if axis is None else 1 - axis
    if zero_channels:
        codes, name = pad(codes, (0, 0) * (codes.dim() - 2) + (0, zero_channels)), f"{name}/filled"
    scale, zero_point = (value.flatten() if axis is not None else value.reshape(()) for value in (scale, zero_point))
    writer = call.writer
    if name in writer.weights:
        return writer.weights[name]
    bits = writer.rules.storage_bits(spec.bits)
    stored = writer.constant(f"{name}/codes", codes.to(dtype), None if bits == 8 else bits)
    if spec.bits < bits:
        kind = "int" if dtype == torch.int8 else "uint"
        writer.narrow[stored] = f"{spec.bits} bits in {kind}{bits}"
    if bits < 8:
        cast = writer.reserve(f"{name}/codes8")
        writer.step("Cast", (stored,), (cast,), "", to=ONNX_TYPES[dtype])
        stored = cast
    numbers = (
        writer.constant(f"{name}/scale", scale),
        # ONNX Runtime has no integer Gemm where this is left out, even if it is 0.
        writer.constant(f"{name}/zero_point", zero_point.to(dtype)),
    )
    output = writer.weights[name] = writer.reserve(f"{name}/values")
    attributes = {} if axis is None else {"axis": axis}
    writer.step("DequantizeLinear", (stored, *numbers), (output,), "", **attributes)
    return output


def write_bias(call: Call, layer: str, bias: Tensor, input_scale: Tensor, weight_scale: Tensor) -> str | None:
    """Write an int32 bias and DequantizeLinear; None where it must stay in float."""
    found = bias_codes(bias, input_scale, weight_scale)
    if found is None:
        return None
    codes, scale = found
    writer = call.writer
    # Without a zero point, which is 0 then: here no kernel asks for it.
    inputs = writer.constant(f"{layer}.bias/codes", codes), writer.constant(f"{layer}.bias/scale", scale)
    output = writer.reserve(f"{layer}.bias/values")
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
