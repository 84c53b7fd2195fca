"""The table of operators: the name of the aten operator -> what writes it."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping

from torch import fx

from clcalib.capture.graph import operator_name
from clcalib.export.onnx import activations, layers, making, movement, pooling, reductions
from clcalib.export.onnx import elementwise as element
from clcalib.export.onnx.call import Builder

_UNARY = {
    **{"relu": "Relu", "sigmoid": "Sigmoid", "tanh": "Tanh", "hardsigmoid": "HardSigmoid", "hardswish": "HardSwish"},
    **{"mish": "Mish", "exp": "Exp", "log": "Log", "sqrt": "Sqrt", "reciprocal": "Reciprocal", "abs": "Abs"},
    **{"neg": "Neg", "floor": "Floor", "ceil": "Ceil", "sign": "Sign", "sin": "Sin", "cos": "Cos"},
    **{"tan": "Tan", "atan": "Atan", "asin": "Asin", "acos": "Acos", "erf": "Erf", "isnan": "IsNaN", "isinf": "IsInf"},
    **{"selu": "Selu", "softsign": "Softsign", "sinh": "Sinh", "cosh": "Cosh"},
}
_ATTRIBUTES = {"hardsigmoid": {"alpha": 1 / 6, "beta": 0.5}}
_LAYERS: Mapping[str, Builder] = {
    **{name: layers.convolution for name in ("convolution", "conv1d", "conv2d", "conv3d")},
    **{f"conv_transpose{rank}d": layers.convolution for rank in (1, 2, 3)},
    "linear": layers.linear,
    **{name: layers.product for name in ("matmul", "mm", "bmm")},
    **{name: layers.product_and_sum for name in ("addmm", "baddbmm")},
    "einsum": layers.einsum,
}
_ELEMENTWISE: Mapping[str, Builder] = {
    **{name: element.unary(target, **_ATTRIBUTES.get(name, {})) for name, target in _UNARY.items()},
    **{"add": element.binary("Add"), "sub": element.binary("Sub"), "mul": element.binary("Mul")},
    **{"minimum": element.binary("Min"), "maximum": element.binary("Max")},
    **{"rsub": element.reversed_subtraction, "div": element.division, "pow": element.power},
    **{"eq": element.comparison("Equal"), "ne": element.comparison("Equal", is_negated=True)},
    **{"gt": element.comparison("Greater"), "ge": element.comparison("GreaterOrEqual")},
    **{"lt": element.comparison("Less"), "le": element.comparison("LessOrEqual")},
    **{name: activations.clamp for name in ("clamp", "clamp_min", "clamp_max", "hardtanh")},
    **{
        "relu6": activations.relu6,
        "silu": activations.silu,
        "gelu": activations.gelu,
        "leaky_relu": activations.leaky_relu,
    },
    **{
        "elu": activations.elu,
        "prelu": activations.prelu,
        "softplus": activations.softplus,
        "rsqrt": element.reciprocal_root,
    },
    **{"round": element.rounding, "expm1": element.exponential_less_one, "log1p": element.log_of_more},
    **{"log2": element.scaled_log(2.0), "log10": element.scaled_log(10.0)},
    **{"where": element.where, "masked_fill": element.masked_fill},
    **{"addcmul": element.add_product, "addcdiv": element.add_quotient},
    **{"logical_not": element.logical_not, "bitwise_not": element.logical_not, "isfinite": reductions.is_number},
    **{f"{kind}_{name}": element.logical(name.title()) for kind in ("logical", "bitwise") for name in ("and", "or")},
    **{f"{kind}_xor": element.logical("Xor") for kind in ("logical", "bitwise")},
    **{f"__{name}__": element.logical(name.title()) for name in ("and", "or", "xor")},
    **{name: element.same for name in ("clone", "alias", "contiguous", "detach", "dropout", "lift_fresh_copy")},
    **{name: element.cast for name in ("to", "_to_copy", "type_as")},
    "sym_size": element.read_size,
}
_MOVEMENT: Mapping[str, Builder] = {
    **{name: movement.reshape for name in ("reshape", "view", "_unsafe_view", "view_as", "reshape_as", "flatten")},
    **{name: movement.reshape for name in ("unflatten", "unsqueeze", "squeeze")},
    **{"transpose": movement.transpose, "t": movement.matrix_transpose, "permute": movement.permute},
    **{"expand": movement.expand, "repeat": movement.repeat, "repeat_interleave": movement.repeat_interleave},
    **{"cat": movement.concatenate, "concat": movement.concatenate, "stack": movement.stack},
    **{name: movement.split for name in ("split", "split_with_sizes", "chunk")},
    **{"unbind": movement.unbind, "select": movement.select, "slice": movement.slice_},
    **{"slice_scatter": making.slice_scatter, "select_scatter": making.select_scatter},
    **{"roll": movement.roll, "flip": movement.flip, "pad": movement.pad, "constant_pad_nd": movement.pad},
    **{f"{kind}_pad{rank}d": movement.pad for kind in ("reflection", "replication") for rank in (1, 2, 3)},
    **{"index_select": movement.index_select, "gather": movement.gather, "embedding": movement.embedding},
    **{"index": movement.index, "pixel_shuffle": movement.pixel_shuffle, "arange": making.arange},
    **{name: making.full for name in ("full", "zeros", "ones", "full_like", "zeros_like", "ones_like")},
    **{name: making.full for name in ("new_zeros", "new_ones", "new_full")},
    **{"copy": making.overwrite, "fill": making.overwrite},
    **{"triu": making.triangle(True), "tril": making.triangle(False)},
}
_REDUCTIONS: Mapping[str, Builder] = {
    **{"mean": reductions.mean, "sum": reductions.reduction("ReduceSum")},
    **{"amax": reductions.reduction("ReduceMax"), "amin": reductions.reduction("ReduceMin")},
    **{"logsumexp": reductions.reduction("ReduceLogSumExp")},
    **{"max": reductions.extreme("Max"), "min": reductions.extreme("Min")},
    **{"argmax": reductions.place_of_extreme("ArgMax"), "argmin": reductions.place_of_extreme("ArgMin")},
    **{"var": reductions.variance(is_root=False), "std": reductions.variance(is_root=True)},
    **{"linalg_vector_norm": reductions.vector_norm, "norm": reductions.vector_norm},
    **{name: reductions.softmax("Softmax") for name in ("softmax", "_softmax")},
    **{name: reductions.softmax("LogSoftmax") for name in ("log_softmax", "_log_softmax")},
    **{"_safe_softmax": reductions.safe_softmax, "cumsum": reductions.cumulative_sum, "topk": reductions.top},
    **{"any": reductions.any_or_all("ReduceMax"), "all": reductions.any_or_all("ReduceMin")},
    **{"batch_norm": reductions.batch_norm, "layer_norm": reductions.layer_norm, "rms_norm": reductions.rms_norm},
    **{"native_layer_norm": reductions.layer_norm, "group_norm": reductions.group_norm},
    **{"instance_norm": reductions.instance_norm},
}
_POOLING: Mapping[str, Builder] = {
    **{f"max_pool{rank}d": pooling.max_pool for rank in (1, 2, 3)},
    **{f"max_pool{rank}d_with_indices": pooling.max_pool for rank in (2, 3)},
    **{f"avg_pool{rank}d": pooling.avg_pool for rank in (1, 2, 3)},
    **{f"adaptive_avg_pool{rank}d": pooling.adaptive_avg_pool for rank in (1, 2, 3)},
    **{f"adaptive_max_pool{rank}d": pooling.adaptive_max_pool for rank in (1, 2, 3)},
    **{f"upsample_nearest{rank}d": pooling.resize("nearest") for rank in (1, 2, 3)},
    **{"upsample_linear1d": pooling.resize("linear"), "upsample_bilinear2d": pooling.resize("linear")},
    **{"upsample_trilinear3d": pooling.resize("linear"), "upsample_bicubic2d": pooling.resize("cubic")},
    **{"_upsample_bilinear2d_aa": pooling.resize("linear", is_antialiased=True)},
    **{"_upsample_bicubic2d_aa": pooling.resize("cubic", is_antialiased=True)},
}

OPERATORS: Mapping[str, Builder] = {**_LAYERS, **_ELEMENTWISE, **_MOVEMENT, **_REDUCTIONS, **_POOLING}
_SIZES: Mapping[Callable[..., object], Builder] = {
    **{operator.mul: element.size_arithmetic("Mul"), operator.add: element.size_arithmetic("Add")},
    **{operator.sub: element.size_arithmetic("Sub"), operator.floordiv: element.size_arithmetic("Div")},
}


def builder_of(node: fx.Node) -> Builder | None:
    """What writes a node; None where there is nothing."""
    if node.op != "call_function":
        return None
    name = operator_name(node)
    return OPERATORS.get(name) if name else _SIZES.get(node.target)  # type: ignore[arg-type]


def title_of(node: fx.Node) -> str:
    """The node's operator as an error names it."""
    return (
        str(node.target).removesuffix(".default")
        if operator_name(node)
        else str(getattr(node.target, "__name__", node.target))
    )
