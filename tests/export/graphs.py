"""Runs ONNX graphs, and places quantizers by hand on tensors that no policy quantizes yet."""

from __future__ import annotations

import collections
import copy
import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import onnx
import onnx.reference
import onnxruntime
import torch
from torch import Tensor, fx, nn

from clcalib.capture.chain import Chain
from clcalib.quant.modules import ActivationQuantizer
from clcalib.quant.ranges import RANGE_RULES
from clcalib.quant.spec import QuantSpec


def run(
    model: onnx.ModelProto, images: Tensor, *, is_optimized: bool = True, optimized: Path | None = None
) -> list[Tensor]:
    """The outputs as ONNX Runtime computes them on the CPU; the graph that it made of it goes to ``optimized``."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    if not is_optimized:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    if optimized is not None:
        options.optimized_model_filepath = str(optimized)
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return [torch.from_numpy(value) for value in session.run(None, {session.get_inputs()[0].name: images.numpy()})]


def evaluate(model: onnx.ModelProto, images: Tensor) -> list[Tensor]:
    """The outputs as ONNX's own reference evaluator computes them, operator by operator."""
    evaluator = onnx.reference.ReferenceEvaluator(model)
    return [torch.from_numpy(value) for value in evaluator.run(None, {evaluator.input_names[0]: images.numpy()})]


def exposed(model: onnx.ModelProto, names: Sequence[str], dtype: int) -> onnx.ModelProto:
    """The model with further tensors as outputs."""
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    changed.graph.output.extend(onnx.helper.make_tensor_value_info(name, dtype, None) for name in names)
    return changed


def operators(model: onnx.ModelProto) -> collections.Counter[str]:
    return collections.Counter(step.op_type for step in model.graph.node)


def values_of(module: fx.GraphModule, images: Tensor) -> dict[str, Tensor]:
    """What every node of a graph gives."""
    values: dict[str, Tensor] = {}

    class Recorder(fx.Interpreter):
        def run_node(self, n: fx.Node):
            values[n.name] = super().run_node(n)
            return values[n.name]

    with torch.no_grad():
        Recorder(module).run(images)
    return values


def with_quantizers(chain: Chain, images: Tensor, where: Callable[[fx.Node], bool], spec: QuantSpec) -> Chain:
    """A copy with quantizers behind the nodes that are chosen, their ranges from the images."""
    chain = dataclasses.replace(chain, module=copy.deepcopy(chain.module))
    module, values = chain.module, values_of(chain.module, images)
    for count, node in enumerate([node for node in module.graph.nodes if where(node)]):
        name = f"placed_{count}"
        module.add_submodule(name, ActivationQuantizer(RANGE_RULES["minmax"](values[node.name], spec), spec))
        with module.graph.inserting_after(node):
            quantized = module.graph.call_module(name, (node,))
        for user in [user for user in node.users if user is not quantized]:
            user.replace_input_with(node, quantized)
    module.recompile()
    return chain


class Plain(nn.Module):
    """Convolutions, two of them with a rectifier, a mean over pixels, a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 16, 3, 2, 1), nn.Conv2d(16, 16, 1)
        self.fc = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.second(torch.relu(self.first(x))))
        return self.fc(self.third(x).mean((2, 3)))


def is_unquantized_end(node: fx.Node) -> bool:
    """The image, and the results that ``Plain`` has no quantizer behind yet."""
    is_made = node.op == "placeholder" or str(node.target) in ("aten.relu.default", "aten.linear.default")
    is_third = str(node.target) == "aten.conv2d.default" and not any("relu" in user.name for user in node.users)
    return (is_made or is_third) and not any(user.op == "call_module" for user in node.users)
