"""A rewritten unit computes what it computed before: exactly in float32, to rounding errors in bfloat16."""

from __future__ import annotations

import pytest
import torch
from tests.tiny import images, tiny
from torch import nn
from torch.nn import functional as F

from clcalib.calibrate.fuse import fuse
from clcalib.calibrate.lower import AddAndClamp, Constant, input_dtypes
from clcalib.calibrate.soft_convolution import SoftConvolution
from clcalib.calibrate.streams import StepStream
from clcalib.calibrate.trainable import SoftWeight, TrainableActivation
from clcalib.capture.chain import capture
from clcalib.fused import calls
from clcalib.quant.insert import insert_quantizers
from clcalib.quant.modules import ActivationQuantizer, IntegerWeight
from clcalib.quant.policy import Bits, build_policy
from clcalib.quant.ranges import RANGE_RULES
from clcalib.quant.spec import QParams


class Wide(nn.Module):
    """Sixteen channels, so that the weights are worth lowering; ReLU6, a depthwise layer, a read sum, a pool."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.first, self.second = (nn.Conv2d(16, 16, 3, padding=1) for _ in range(2))
        self.depthwise = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.fc = nn.Linear(16, 4)

    def forward(self, x):
        x = F.relu(self.stem(x))
        total = self.second(F.relu6(self.first(x))) + x
        x = F.relu(total) + 0.1 * total
        return self.fc(F.hardtanh(self.depthwise(x), 0.0, 4.0).mean((2, 3)))


def unit(index: int, keep: float = 0.5):
    torch.manual_seed(0)
    chain = capture(Wide().eval(), images(2))
    rows = build_policy(chain.layers, Bits(2, 3), "qdrop", None)
    quantized = insert_quantizers(chain, rows, RANGE_RULES["minmax"])
    body, random = quantized.chain.body(index), StepStream(0, index, 0)
    for name, module in list(body.named_modules()):
        if isinstance(module, IntegerWeight):
            body.set_submodule(name, SoftWeight(module().clone() + 0.01, module))
        elif hasattr(module, "spec"):
            quantizer = ActivationQuantizer(QParams(torch.tensor(0.3), torch.tensor(0.0)), module.spec)
            settings = {"keep_quantized_probability": keep, "is_trained": True, "has_scale_gradient_factor": True}
            body.set_submodule(name, TrainableActivation(quantizer, random, **settings))
    inputs = chain.prefix(index)(images(6))
    return body, random, tuple(tensor.contiguous(memory_format=torch.channels_last) for tensor in inputs)


def run(body, random, inputs):
    """Outputs and all gradients of a weighted sum of them."""
    random.advance(3)
    (output,) = body(*inputs)
    weights = torch.linspace(-1, 1, output.numel()).view(output.shape)
    parameters = [parameter for parameter in body.parameters() if parameter.requires_grad]
    found = torch.autograd.grad((output * weights).sum(), parameters, allow_unused=True)
    return output.detach(), [gradient for gradient in found if gradient is not None]


COUNT = len(capture(Wide().eval(), images(2)).units)


@pytest.mark.parametrize("index", range(COUNT))
@pytest.mark.parametrize("keep", [0.5, 1.0])
def test_a_fused_unit_is_the_same_unit(index, keep):
    body, random, inputs = unit(index, keep)
    expected, gradients = run(body, random, inputs)
    fused = fuse(body)
    assert input_dtypes(fused) == (torch.float32,) * len(inputs)
    output, fused_gradients = run(fused, random, inputs)
    torch.testing.assert_close(output, expected, rtol=1e-4, atol=1e-4)
    for one, other in zip(fused_gradients, gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3 * (1 + float(other.abs().max())))


@pytest.mark.parametrize("index", range(COUNT))
@pytest.mark.parametrize("casts_inputs", [True, False])
def test_a_lowered_unit_is_the_same_to_rounding_errors(index, casts_inputs):
    body, random, inputs = unit(index, keep=1.0)
    for module in body.modules():
        if isinstance(module, TrainableActivation):
            module.scale.data.fill_(0.02)  # a fine grid, on which a rounding error moves a value by little
            module.spec = type(module.spec)(bits=8, is_signed=False)
    expected, gradients = run(body, random, inputs)
    lowered = fuse(body, torch.bfloat16, casts_inputs=casts_inputs)
    cast = tuple(tensor.to(dtype) for tensor, dtype in zip(inputs, input_dtypes(lowered), strict=True))
    output, low_gradients = run(lowered, random, cast)
    assert output.dtype == torch.float32
    assert all(gradient.dtype == torch.float32 for gradient in low_gradients)
    scale = float(expected.abs().max())
    torch.testing.assert_close(output, expected, rtol=0.05, atol=0.03 * scale)
    for one, other in zip(low_gradients, gradients, strict=True):
        if other.ndim > 0:  # a scale's is a sum of what rounding left over, which no rounding error leaves alone
            assert float((one - other).norm()) <= 0.2 * float(other.norm()) + 1e-3


@pytest.mark.parametrize("has_tiles", [False, True])
def test_what_is_taken_in_and_what_is_lowered(has_tiles, monkeypatch):
    monkeypatch.setattr(calls, "has_tiles", lambda: has_tiles)
    kinds, soft = [], []
    for index in range(COUNT):
        body, _, _ = unit(index)
        lowered = fuse(body, torch.bfloat16, casts_inputs=False)
        called = [lowered.get_submodule(str(n.target)) for n in lowered.graph.nodes if n.op == "call_module"]
        kinds += [(type(m), getattr(m, "limits", None), getattr(m, "dtype", None)) for m in called]
        soft += [module.dtype for module in lowered.modules() if isinstance(module, SoftWeight)]
        names = [str(node.target) for node in lowered.graph.nodes if node.op == "call_function"]
        assert not any("relu" in name or "hardtanh" in name for name in names)
    assert (TrainableActivation, (0.0, 6.0), torch.bfloat16) in kinds  # ReLU6 between two lowered convolutions
    assert sum(kind[0] is AddAndClamp for kind in kinds) >= 1  # the ReLU whose sum is read twice stays a module
    assert set(soft) == {torch.float32, torch.bfloat16}
    joined = sum(kind[0] is SoftConvolution for kind in kinds)
    is_own = calls.has_weight_gradient() and not has_tiles
    assert joined == (2 if is_own else 0)  # both 3 x 3 convolutions of sixteen channels


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_frozen_rest_of_a_network(dtype):
    chain = capture(tiny(), images(2))
    x = images(5)
    before = {name: tensor.clone() for name, tensor in chain.module.state_dict().items()}
    for index in range(len(chain.units) - 1):
        state = tuple(tensor.requires_grad_() for tensor in chain.body(index)(*chain.prefix(index)(x)))
        rest = fuse(chain.suffix(index), dtype)
        (output,), (expected,) = rest(*state), chain.suffix(index)(*state)
        tolerance = {"rtol": 1e-5, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 0.05, "atol": 0.05}
        torch.testing.assert_close(output, expected, **tolerance)
        one, other = (torch.autograd.grad(o.square().sum(), state)[0] for o in (output, expected))
        assert float((one - other).norm()) <= (1e-4 if dtype == torch.float32 else 0.1) * float(other.norm())
        assert any(isinstance(module, Constant) for module in rest.modules())
    after = chain.module.state_dict()
    assert before.keys() == after.keys()  # what is shared with the chain was not touched
    assert all(torch.equal(before[name], after[name]) for name in before)
