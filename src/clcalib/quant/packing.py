"""Integer codes of 2 to 8 bits as a tight little-endian bit stream.

Code k occupies the bits k*b .. k*b + b - 1 of the stream; bit i of the stream is bit i mod 8 of byte i div 8.  So 8
codes take exactly b bytes.  Signed codes are stored in two's complement of b bits.
"""

from __future__ import annotations

import torch
from torch import Tensor

from clcalib.errors import ArgumentError
from clcalib.quant.spec import QuantSpec

_INTEGER_TYPES = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


def pack(codes: Tensor, bits: int, is_signed: bool) -> Tensor:
    """Codes to bytes.

    Args:
        codes: whole numbers of an integer type, in row-major order  # shape: (*)
        bits: the width of a code, 2 to 8.
        is_signed: whether the codes are -2^(b-1) .. 2^(b-1) - 1 instead of 0 .. 2^b - 1.

    Returns:
        uint8  # shape: (ceil(numel * bits / 8),)

    Raises:
        ArgumentError: ``codes`` is no integer tensor or a code is out of range, or ``bits`` is not 2 to 8.

    Example:
        >>> pack(torch.tensor([1, 2, 3, 0]), 2, is_signed=False)
        tensor([57], dtype=torch.uint8)
    """
    spec = QuantSpec(bits, is_signed=is_signed)
    _check_codes(codes, spec)
    count = codes.numel()
    groups = torch.zeros((count + 7) // 8 * 8, dtype=torch.int64, device=codes.device)
    groups[:count] = codes.reshape(-1)
    groups &= spec.levels - 1
    shifts = torch.arange(8, device=codes.device)
    words = (groups.view(-1, 8) << (shifts * bits)).sum(1)  # (G,), the bits are disjoint, so the sum is a union
    stream = (words[:, None] >> (shifts[:bits] * 8)) & 255  # (G, bits)
    return stream.to(torch.uint8).reshape(-1)[: packed_bytes(count, bits)].contiguous()


def unpack(packed: Tensor, bits: int, count: int, is_signed: bool) -> Tensor:
    """Bytes back to codes; the inverse of ``pack``.

    Args:
        packed: uint8  # shape: (ceil(count * bits / 8),)
        bits: the width of a code, 2 to 8.
        count: the number of codes.
        is_signed: as given to ``pack``.

    Returns:
        the codes, int16  # shape: (count,)

    Raises:
        ArgumentError: ``packed`` has another type or length than ``count`` codes take, or ``bits`` is not 2 to 8.
    """
    spec = QuantSpec(bits, is_signed=is_signed)
    if type(count) is not int or count < 0:
        raise ArgumentError("count", "a whole number from 0", repr(count))
    if packed.dtype != torch.uint8 or packed.shape != (packed_bytes(count, bits),):
        expected = f"a uint8 tensor of shape ({packed_bytes(count, bits)},) for {count} codes of {bits} bits"
        raise ArgumentError("packed", expected, f"{packed.dtype} of shape {tuple(packed.shape)}")
    stream = torch.zeros((count + 7) // 8 * bits, dtype=torch.int64, device=packed.device)
    stream[: packed.numel()] = packed
    shifts = torch.arange(8, device=packed.device)
    words = (stream.view(-1, bits) << (shifts[:bits] * 8)).sum(1)  # (G,)
    codes = (words[:, None] >> (shifts * bits)) & (spec.levels - 1)  # (G, 8)
    codes = torch.where(codes > spec.q_max, codes - spec.levels, codes)  # the sign bit of a signed code
    return codes.to(torch.int16).reshape(-1)[:count].contiguous()


def _check_codes(codes: Tensor, spec: QuantSpec) -> None:
    if codes.dtype not in _INTEGER_TYPES:
        raise ArgumentError("codes", "an integer tensor", codes.dtype)
    if codes.numel() == 0:
        return
    lowest, highest = (int(value) for value in torch.aminmax(codes))
    if lowest < spec.q_min or highest > spec.q_max:
        raise ArgumentError("codes", f"values from {spec.q_min} to {spec.q_max}", f"{lowest} to {highest}")


def packed_bytes(count: int, bits: int) -> int:
    """How many bytes ``count`` codes of ``bits`` bits take.

    Example:
        >>> packed_bytes(9, 3)
        4
    """
    return (count * bits + 7) // 8
