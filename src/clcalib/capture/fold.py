"""Batch norm in eval mode is an affine map per channel; a layer before it can absorb it.

Formula, per output channel c, with g_c = gamma_c / sqrt(variance_c + epsilon):
``weight'_c = g_c * weight_c``, ``bias'_c = g_c * (bias_c - mean_c) + beta_c``.

Source: Jacob et al., "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference"
(CVPR 2018), section 3.2.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from clcalib.capture.graph import data_nodes, is_linear, is_weighted, layer_name, module_path, operator_name
from clcalib.errors import NumericalError

_STATISTICS = "norm_statistics"  # the keys in a node's meta
_FOLDED = "folded_norm"


@dataclass(frozen=True)
class NormStatistics:
    """What a batch norm knew of its input x, told at the node of its output y = gain * (x - mean) + shift.

    Attributes:
        gain: g, (C,); zero where the norm lets nothing through.
        shift: beta, the mean of y over the training images, (C,).
        variance: of x over the training images, (C,).
        epsilon: what the norm adds to it.
    """

    gain: Tensor
    shift: Tensor
    variance: Tensor
    epsilon: float


@dataclass(frozen=True)
class FoldedNorm:
    """Where a batch norm that was folded into a layer had its numbers, as paths in the model.

    Attributes:
        weight, bias: of its affine map; None where it has none.
        mean, variance: of its running statistics.
        epsilon: what it adds to the variance.
        layer_bias: of the layer's own bias; None where it had none.
        folded_bias: of the bias in the folded module; the same, unless that one has other readers.
    """

    weight: str | None
    bias: str | None
    mean: str
    variance: str
    epsilon: float
    layer_bias: str | None
    folded_bias: str


def folded_norm(node: fx.Node) -> FoldedNorm | None:
    """The batch norm that was folded into the layer of this node; None where there is none."""
    found = node.meta.get(_FOLDED)
    return found if isinstance(found, FoldedNorm) else None


def norm_statistics(node: fx.Node) -> NormStatistics | None:
    """The statistics of the batch norm that ends, or ended before folding, in this node; None where there is none."""
    found = node.meta.get(_STATISTICS)
    return found if isinstance(found, NormStatistics) else None


def fold_batch_norm(module: fx.GraphModule) -> fx.GraphModule:
    """Fold every batch norm that alone follows a convolution or linear layer into that layer.

    The result is a new module with its own parameters; ``conv1.weight`` keeps its name, a new bias is ``conv1.bias``.
    Weights that several layers share are left alone, and so is a batch norm that follows something else.  Either way
    ``norm_statistics`` tells at the node of its output what it knew.

    Args:
        module: a captured graph; it is left as it is.

    Returns:
        A module with outputs equal up to rounding; folding is computed in float64.

    Raises:
        NumericalError: a folded weight or bias is not finite.
    """
    folded = copy.deepcopy(module)
    data = set(data_nodes(folded.graph))
    for node in list(folded.graph.nodes):
        norm = _read_norm(folded, node)
        if norm is None:
            continue
        end = norm.node
        if _is_foldable(folded, norm, data):
            _fold(folded, norm)
            end = norm.layer
        end.meta[_STATISTICS] = norm.statistics
    folded.graph.eliminate_dead_code()
    folded.graph.lint()
    return fx.GraphModule(folded, folded.graph, class_name="Folded").eval()


@dataclass(frozen=True)
class _Norm:
    node: fx.Node
    layer: fx.Node
    gain: Tensor  # (C,) float64
    mean: Tensor  # (C,) float64
    shift: Tensor  # (C,) float64
    statistics: NormStatistics


def _read_norm(module: fx.GraphModule, node: fx.Node) -> _Norm | None:
    """The numbers of a batch norm in eval mode; None for any other node."""
    if operator_name(node) != "batch_norm" or node.args[5] is not False or not isinstance(node.args[0], fx.Node):
        return None
    values = [_tensor(module, argument) for argument in node.args[1:5]]
    gamma, beta, mean, variance = (None if value is None else value.double() for value in values)
    absent = [value is None and argument is not None for value, argument in zip(values, node.args[1:5], strict=True)]
    if mean is None or variance is None or any(absent):
        return None
    epsilon = float(node.args[7])  # type: ignore[arg-type]
    gain = torch.rsqrt(variance + epsilon)
    gain = gain if gamma is None else gain * gamma
    shift = torch.zeros_like(mean) if beta is None else beta
    known = NormStatistics(gain.float(), shift.float(), variance.float(), epsilon)
    return _Norm(node, node.args[0], gain, mean, shift, known)


def _is_foldable(module: fx.GraphModule, norm: _Norm, data: set[fx.Node]) -> bool:
    layer = norm.layer
    if layer not in data or not is_weighted(layer, data) or len(layer.users) != 1:
        return False
    if is_linear(layer) and layer.meta["val"].dim() != 2:
        return False  # the norm's channel is dimension 1, the layer's is the last
    weight, bias = _tensor(module, layer.args[1]), _bias(layer)
    if weight is None or (bias is not None and _tensor(module, bias) is None):
        return False
    return _uses(module, weight) == 1


def _fold(module: fx.GraphModule, norm: _Norm) -> None:
    layer, weight_node, bias_node = norm.layer, norm.layer.args[1], _bias(norm.layer)
    assert isinstance(weight_node, fx.Node)
    weight = _tensor(module, weight_node)
    bias = norm.mean.new_zeros(()) if bias_node is None else _tensor(module, bias_node)
    assert weight is not None
    assert bias is not None
    new_weight = _scale_channels(layer, weight.double(), norm.gain)
    new_bias = (bias.double() - norm.mean) * norm.gain + norm.shift
    _check_folded(norm, new_weight.to(weight.dtype), new_bias.to(weight.dtype))
    _assign(module, str(weight_node.target), new_weight.to(weight.dtype))
    name = _bias_name(module, str(weight_node.target), bias_node)
    layer.meta[_FOLDED] = _folded(norm, bias_node, name)
    _assign(module, name, new_bias.to(weight.dtype))
    with module.graph.inserting_before(layer):
        new_node = module.graph.get_attr(name)
    new_node.meta = dict(weight_node.meta) | {"val": norm.node.args[4].meta.get("val")}  # type: ignore[union-attr]
    layer.args = (*layer.args[:2], new_node, *layer.args[3:])
    layer.kwargs = {key: value for key, value in layer.kwargs.items() if key != "bias"}
    norm.node.replace_all_uses_with(layer)
    module.graph.erase_node(norm.node)


def _check_folded(norm: _Norm, *tensors: Tensor) -> None:
    if all(bool(torch.isfinite(tensor).all()) for tensor in tensors):
        return
    path, least = module_path(norm.node), float(norm.statistics.variance.min())
    cause = (
        f"its running_var has a value of {least:.3g}, and a variance cannot be negative"
        if least < 0
        else f"its factors reach {float(norm.gain.abs().max()):.3g} and its means {float(norm.mean.abs().max()):.3g}"
    )
    raise NumericalError(
        f"batch norm `{path}` folded into layer {layer_name(norm.layer)} gives numbers that float32 cannot hold: "
        f"{cause}; look at the statistics and factors of the norm in the checkpoint"
    )


def _folded(norm: _Norm, bias: fx.Node | None, name: str) -> FoldedNorm:
    weight, shift, mean, variance = (_path(argument) for argument in norm.node.args[1:5])
    assert mean is not None
    assert variance is not None
    return FoldedNorm(weight, shift, mean, variance, norm.statistics.epsilon, _path(bias), name)


def _path(node: object) -> str | None:
    return str(node.target) if isinstance(node, fx.Node) else None


def _scale_channels(layer: fx.Node, weight: Tensor, gain: Tensor) -> Tensor:
    """Multiply each output channel of a weight; a transposed convolution has its output channels in dimension 1."""
    name = operator_name(layer)
    is_transposed = name.startswith("conv_transpose") or (name == "convolution" and bool(layer.args[6]))
    if not is_transposed:
        return weight * gain.reshape(-1, *[1] * (weight.dim() - 1))
    groups = gain.numel() // weight.shape[1]
    grouped = weight.reshape(groups, -1, *weight.shape[1:])  # (G, C_in / G, C_out / G, *kernel)
    return (grouped * gain.reshape(groups, 1, -1, *[1] * (weight.dim() - 2))).reshape(weight.shape)


def _bias(layer: fx.Node) -> fx.Node | None:
    bias = layer.args[2] if len(layer.args) > 2 else layer.kwargs.get("bias")
    return bias if isinstance(bias, fx.Node) else None


def _bias_name(module: fx.GraphModule, weight_name: str, bias: fx.Node | None) -> str:
    """The bias keeps its name if it is this layer's alone; else a free name beside the weight."""
    value = None if bias is None else _tensor(module, bias)
    if bias is not None and value is not None and _uses(module, value) == 1:
        return str(bias.target)
    taken = {str(node.target) for node in module.graph.nodes if node.op == "get_attr"}
    name = (weight_name.rpartition(".")[0] + ".bias").lstrip(".")
    while name in taken:
        name += "_folded"
    return name


def _tensor(module: fx.GraphModule, node: object) -> Tensor | None:
    """The parameter or buffer that a node reads; None for anything else."""
    if not isinstance(node, fx.Node) or node.op != "get_attr":
        return None
    owner, _, name = str(node.target).rpartition(".")
    value = getattr(module.get_submodule(owner), name)
    return value if isinstance(value, Tensor) else None


def _uses(module: fx.GraphModule, tensor: Tensor) -> int:
    """How many nodes read the tensor, under whichever name."""
    readers = [node for node in module.graph.nodes if node.op == "get_attr" and _tensor(module, node) is tensor]
    return sum(len(node.users) for node in readers)


def _assign(module: fx.GraphModule, target: str, value: Tensor) -> None:
    owner, _, name = target.rpartition(".")
    holder = module.get_submodule(owner)
    if name in dict(holder.named_buffers(recurse=False)):
        setattr(holder, name, value)
    else:
        setattr(holder, name, nn.Parameter(value, requires_grad=False))
