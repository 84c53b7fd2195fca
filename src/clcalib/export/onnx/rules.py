"""What an ONNX graph shall look like: the versions, the names at its ends, how integers are stored."""

from __future__ import annotations

from dataclasses import dataclass

from clcalib.errors import ArgumentError

MINIMUM_OPSET = 21  # the first with 4-bit integers
TWO_BIT_OPSET = 25  # the first with 2-bit integers
TWO_BIT_IR = 13


@dataclass(frozen=True)
class OnnxRules:
    """Settings of the emitter.

    Args:
        opset: the version of the operators.
        ir_version: the version of the file format.
        is_packed: whether weights of 4 bits and less are stored in a 4-bit type, followed by a Cast to 8 bits (codes of
            3 bits travel in it too, and codes of 2 bits unless ``opset`` is 25 or later and so has a 2-bit type).
            Otherwise each code is a byte.
        is_bias_integer: whether the bias of a Conv or Gemm with 8-bit input and integer weight is stored as int32 with
            the scale s_x * s_w, which integer kernels ask for.  ``with_rounded_biases`` gives the simulation the same.
        are_codes_integer: whether codes of all widths are integers of 8 bits, as integer kernels read: QuantizeLinear
            and, for fewer bits, a Clip of its codes; clamps and what only moves values work on the codes too.
            Otherwise quantizers of fewer than 8 bits are written in float, operator for operator as simulated.
        is_compact: whether equal constants share one initializer, the tensors inside have short names, and what can be
            inferred is left out.  Layers, other operators of the network and the graph's ends keep their names.
        channel_multiple: a convolution of codes with fewer input channels than this gets channels of zeros up to it,
            where it covers 2 to 25 pixels and its weight is symmetric; ONNX Runtime's faster kernel takes 4.
        input_name, output_name: of the graph's ends; a network with several outputs keeps the names of its nodes.
        batch_name: the free dimension.

    Raises:
        ArgumentError: a version is too old for what is asked for, or a name is empty.

    Example:
        >>> OnnxRules().opset
        21
    """

    opset: int = MINIMUM_OPSET
    ir_version: int = 10
    is_packed: bool = False
    is_bias_integer: bool = True
    are_codes_integer: bool = False
    is_compact: bool = False
    channel_multiple: int = 1
    input_name: str = "input"
    output_name: str = "logits"
    batch_name: str = "batch"

    def __post_init__(self) -> None:
        if type(self.opset) is not int or self.opset < MINIMUM_OPSET:
            raise ArgumentError("opset", f"a whole number from {MINIMUM_OPSET}", repr(self.opset))
        lowest = TWO_BIT_IR if self.opset >= TWO_BIT_OPSET else 10
        if type(self.ir_version) is not int or self.ir_version < lowest:
            raise ArgumentError(
                "ir_version", f"a whole number from {lowest} for opset {self.opset}", repr(self.ir_version)
            )
        if type(self.channel_multiple) is not int or self.channel_multiple < 1:
            raise ArgumentError("channel_multiple", "a whole number above 0", repr(self.channel_multiple))
        for name in ("input_name", "output_name", "batch_name"):
            if not isinstance(getattr(self, name), str) or not getattr(self, name):
                raise ArgumentError(name, "a name that is not empty", repr(getattr(self, name)))
        if self.input_name == self.output_name:
            raise ArgumentError("output_name", "another name than input_name", repr(self.output_name))

    def storage_bits(self, bits: int) -> int:
        """The width of the type that holds weight codes of ``bits`` bits: 8, or when packed 4 or 2."""
        if not self.is_packed or bits > 4:
            return 8
        return 2 if bits == 2 and self.opset >= TWO_BIT_OPSET else 4
