"""Which tensors a saved model must have, and everything in which a file does not fit that."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, fx

from clcalib.capture.graph import weighted_nodes
from clcalib.errors import first_of, misfits
from clcalib.quant.grids import range_shape
from clcalib.quant.insert import QuantizedChain
from clcalib.quant.packing import packed_bytes
from clcalib.quant.placement import Placement
from clcalib.quant.policy import LayerPolicy
from clcalib.quant.reads import find_reads

Kind = tuple[torch.dtype, tuple[int, ...]]
_PARAMETERS = ("scale", "zero_point")


def tensor_problems(
    quantized: QuantizedChain,
    others: Mapping[str, Tensor],
    code_shapes: Mapping[str, tuple[int, ...]],
    saved: Mapping[str, Tensor],
) -> list[str]:
    """Every saved tensor that is missing, too many, of another shape or type, or is no zero point; [] where all fit.

    Args:
        quantized: a chain with the quantizers that the policy asks for, whatever their values.
        others: what else is saved of it, by name.
        code_shapes: of each layer's codes.
        saved: the tensors in the file.
    """
    kinds = _kinds(quantized, others, code_shapes)
    problems = misfits(
        {name: shape for name, (_, shape) in kinds.items()}, {n: tuple(t.shape) for n, t in saved.items()}
    )
    common = [(name, kinds[name][0], tensor) for name, tensor in saved.items() if name in kinds]
    typed = [f"{name} is {tensor.dtype}, expected {dtype}" for name, dtype, tensor in common if tensor.dtype != dtype]
    broken = [
        name
        for name, _, tensor in common
        if "_zero_point/" in name and tensor.is_floating_point() and not bool((tensor == tensor.round()).all())
    ]
    named = (("other types:", typed), ("no whole numbers:", broken))
    return problems + [f"{label} {first_of(names)}" for label, names in named if names]


def policy_problems(policy: Sequence[LayerPolicy], module: fx.GraphModule, placement: Placement | None) -> list[str]:
    """Every row of a saved policy that there are two of or whose layer the network does not have, and missing rows."""
    layers = [name for name, _ in weighted_nodes(module)]
    known = {*layers, *(read.name for read in find_reads(module, placement))}
    counts = Counter(row.layer for row in policy)
    named = (
        ("the policy lacks", [name for name in dict.fromkeys(layers) if name not in counts]),
        ("the model has no", [name for name in counts if name not in known]),
        ("twice in the policy:", [name for name, count in counts.items() if count > 1]),
    )
    return [f"{label} {first_of(names)}" for label, names in named if names]


def _kinds(
    quantized: QuantizedChain, others: Mapping[str, Tensor], code_shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, Kind]:
    """By name, the type and shape of every tensor that belongs to the file."""
    kinds = dict[str, Kind]()
    for layer in quantized.weights:
        weight = quantized.weight(layer)
        size = packed_bytes(math.prod(code_shapes[layer]), weight.spec.bits)
        kinds[f"codes/{layer}"] = torch.uint8, (size,)
        shape = tuple(weight.scale.shape)
        kinds |= {f"weight_{name}/{layer}": (torch.float32, shape) for name in _PARAMETERS}
    for layer in quantized.activations:
        shape = range_shape(quantized.activation(layer).spec)
        kinds |= {f"input_{name}/{layer}": (torch.float32, shape) for name in _PARAMETERS}
    return kinds | {f"float/{name}": (tensor.dtype, tuple(tensor.shape)) for name, tensor in others.items()}
