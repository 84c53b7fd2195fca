"""What was written becomes an ``onnx.ModelProto``; the only file that needs the optional package."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from clcalib.errors import MissingPackageError
from clcalib.export.onnx.call import ONNX_TYPES
from clcalib.export.onnx.writer import Constant, Writer

if TYPE_CHECKING:
    from onnx import ModelProto

_NARROW = {(4, torch.int8): "INT4", (4, torch.uint8): "UINT4", (2, torch.int8): "INT2", (2, torch.uint8): "UINT2"}
Port = tuple[str, torch.dtype, Sequence[int | str]]  # name, type, shape with names for free sizes


def require_onnx() -> Any:
    """The package ``onnx`` with its submodules loaded.

    Raises:
        MissingPackageError: it is not installed.
    """
    try:
        import onnx
        import onnx.checker
        import onnx.helper
        import onnx.numpy_helper
    except ImportError as error:
        raise MissingPackageError(
            'onnx is not installed, and writing ONNX graphs needs it; run: pip install "clcalib[onnx]"'
        ) from error
    return onnx


def make_model(
    writer: Writer, inputs: Sequence[Port], outputs: Sequence[Port], name: str, metadata: Mapping[str, str]
) -> ModelProto:
    """The same steps give the same bytes: nothing of the time, the machine or the package's version goes in."""
    onnx = require_onnx()
    helper = onnx.helper
    needed = writer.needed([port[0] for port in outputs])
    steps = [
        helper.make_node(step.operator, step.inputs, step.outputs, name=step.name, **step.attributes) for step in needed
    ]
    used = {value for step in needed for value in step.inputs} | {port[0] for port in outputs}
    constants = [_initializer(onnx, constant) for key, constant in writer.constants.items() if key in used]
    ports = [
        [helper.make_tensor_value_info(port, ONNX_TYPES[dtype], shape) for port, dtype, shape in side]
        for side in (inputs, outputs)
    ]
    graph = helper.make_graph(steps, name, *ports, initializer=constants)
    rules = writer.rules
    versions = [helper.make_opsetid("", rules.opset)]
    model: ModelProto = helper.make_model(
        graph, opset_imports=versions, ir_version=rules.ir_version, producer_name="clcalib"
    )
    helper.set_model_props(model, dict(sorted(metadata.items())))
    onnx.checker.check_model(model, full_check=True)
    return model


def _initializer(onnx: Any, constant: Constant) -> Any:
    value = constant.value
    if constant.bits is None:
        return onnx.numpy_helper.from_array(value.numpy(), constant.name)
    dtype = getattr(onnx.TensorProto, _NARROW[constant.bits, value.dtype])
    packed = pack_low_first(value, constant.bits)
    return onnx.helper.make_tensor(constant.name, dtype, list(value.shape), packed, raw=True)


def pack_low_first(codes: Tensor, bits: int) -> bytes:
    """Codes of 4 or 2 bits in two's complement, the first in the lowest bits of a byte, as ONNX stores them.

    Example:
        >>> pack_low_first(torch.tensor([1, -1, 3]), 4).hex()
        'f103'
    """
    each = 8 // bits
    values = codes.flatten().to(torch.int64) & ((1 << bits) - 1)
    values = torch.nn.functional.pad(values, (0, -values.numel() % each)).reshape(-1, each)
    shifts = torch.arange(each) * bits
    return (values << shifts).sum(1).to(torch.uint8).numpy().tobytes()
