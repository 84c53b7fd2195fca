"""Trained biases: the formula, which of them are trained, and that they are saved and put back like the rest."""

from __future__ import annotations

import copy
import dataclasses

import numpy as np
import pytest
import torch
from tests.processors import here
from tests.reference import biases as reference
from tests.tiny import images, tiny
from torch import nn

import clcalib
from clcalib.calibrate.recipe import Phase, Recipe, Term
from clcalib.calibrate.trainable import TrainableBias
from clcalib.calibrate.working import found_in, train_biases
from clcalib.capture.chain import capture
from clcalib.deployment import deploy
from clcalib.errors import ArgumentError
from clcalib.objectives.lp import Reconstruction
from clcalib.quant.biases import bias_readers
from clcalib.quant.insert import chain_policy, insert_quantizers, tensor_at
from clcalib.quant.modules import Bias
from clcalib.quant.ranges import RANGE_RULES

r = clcalib.recipes


def run(recipe, model=None, *, bits=(2, 4), **options):
    calibration = clcalib.CalibrationSet.from_tensor(images())
    model = tiny() if model is None else model
    return clcalib.quantize(model, calibration, recipe=recipe, bits=clcalib.Bits(*bits), **options)


def biases(model):
    return {name: own.detach().clone() for name, own in model.state_dict().items() if name.endswith("bias")}


@pytest.mark.parametrize("shape", [(5, 3, 3, 3), (5, 1, 3, 3), (5, 7)])
def test_the_formula_and_its_gradient(shape):
    generator = torch.Generator().manual_seed(0)
    weight, bias, offset = (torch.randn(size, generator=generator) for size in (shape, 5, 5))
    module = TrainableBias(bias, weight, "layer.bias").double()
    assert torch.equal(module(), bias.double())  # at first it is what it was
    with torch.no_grad():
        module.offset.copy_(offset)
    expected = reference.trained(bias.double().numpy(), weight.double().numpy(), offset.double().numpy())
    np.testing.assert_allclose(module().detach().numpy(), expected, rtol=1e-6)
    assert torch.equal(module.finished().value, module().detach())

    def function(given):
        return torch.func.functional_call(module, {"offset": given}, ())

    assert torch.autograd.gradcheck(function, (offset.double().requires_grad_(),))


def quantized_chain(model):
    chain = capture(model, images(2))
    rule = RANGE_RULES["minmax"]
    return chain, insert_quantizers(chain, chain_policy(chain, clcalib.Bits(4, 4)), rule)


class Calls(nn.Module):
    """A layer that is called twice, one whose bias is read elsewhere too, a transposed one, and one without a bias."""

    def __init__(self) -> None:
        super().__init__()
        self.twice = nn.Conv2d(3, 3, 3, padding=1)
        self.plain = nn.Conv2d(3, 3, 1)
        self.transposed = nn.ConvTranspose2d(3, 6, 1, groups=3)
        self.bare = nn.Conv2d(6, 4, 1, bias=False)
        self.fc = nn.Linear(4, 2)

    def forward(self, x):
        x = torch.relu(self.twice(torch.relu(self.twice(x))))
        x = torch.relu(self.plain(x))
        x = torch.relu(self.bare(torch.relu(self.transposed(x))))
        return self.fc(x.mean((2, 3))) * self.fc.bias


def test_which_biases_are_trained():
    _, quantized = quantized_chain(Calls().eval())
    found = bias_readers(quantized.chain.module)
    assert {name: len(layers) for name, layers in found.items()} == {"twice.bias": 2, "plain.bias": 1}


def test_layers_that_an_earlier_unit_decided_keep_their_biases():
    _, quantized = quantized_chain(Calls().eval())
    module = copy.deepcopy(quantized.chain.module)
    weights = {quantized.weights["plain"]: torch.ones(3, 3, 1, 1)}
    train_biases(quantized.chain, 0, module, weights)
    (trained,) = [own for own in module.modules() if isinstance(own, TrainableBias)]
    assert trained.target == "plain.bias"
    assert set(found_in(module)) == {"plain.bias"}


class Tied(nn.Module):
    """Two blocks whose layers have weights of their own and one bias."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = (nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.ReLU()) for _ in range(2))
        self.second[0].bias = self.first[0].bias
        self.fc = nn.Linear(3, 2)

    def forward(self, x):
        return self.fc(self.second(self.first(x)).mean((2, 3)))


def test_a_bias_that_an_earlier_unit_decided_stays():
    chain, quantized = quantized_chain(Tied().eval())
    places = {unit.name: index for index, unit in enumerate(chain.units)}
    found = []
    for index in sorted(places.values()):
        body = quantized.chain.body(index)
        weights = {name: quantized.weight(layer)() for layer, name in quantized.weights.items()}
        train_biases(quantized.chain, index, body, weights)
        found.append({module.target for module in body.modules() if isinstance(module, TrainableBias)})
    assert len(places) == 3
    assert found[1:] == [set(), {"fc.bias"}]
    assert len(found[0]) == 1


def test_a_bias_is_put_where_its_layer_reads_it():
    chain, quantized = quantized_chain(tiny())
    before = tensor_at(quantized.chain.module, "fc.bias").clone()
    quantized.replace("fc.bias", Bias(before + 1))
    assert torch.equal(tensor_at(quantized.chain.module, "fc.bias"), before + 1)
    assert torch.equal(tensor_at(chain.module, "fc.bias"), before)  # the float network's own


@pytest.mark.parametrize("host", [r.qdrop, r.brecq, r.adaround, r.scale_only, r.fast, r.straight_through])
def test_every_host_trains_them_and_the_model_stays_as_it_was(host):
    model = tiny()
    state = copy.deepcopy(model.state_dict())
    plain = run(host(steps=20), model, is_guarded=False)
    trained = run(clcalib.with_biases(host(steps=20)), model, is_guarded=False)
    assert all(torch.equal(state[name], own) for name, own in model.state_dict().items())
    first, second = biases(plain.model), biases(trained.model)
    assert first.keys() == second.keys()
    moved = [name for name in first if not torch.equal(first[name], second[name])]
    is_whole = trained.record.recipe != "brecq+biases"  # it leaves the stem as it is
    assert len(moved) == len(first) - (0 if is_whole else 1)
    assert trained.record.recipe == plain.record.recipe + "+biases"


def test_they_make_the_error_smaller():
    """Scales alone at 2 bits: the mean error of channels is most of what can be mended."""
    plain, ours = (
        [unit.reconstruction_error.calibration.after for unit in run(recipe, bits=(2, 8)).record.units]
        for recipe in (r.scale_only(steps=60), clcalib.with_biases(r.scale_only(steps=60)))
    )
    assert ours[1] < 0.8 * plain[1]  # the stem has 8 bits
    assert ours[2] < 0.8 * plain[2]


def test_a_saved_network_has_them(tmp_path):
    result = run(clcalib.with_biases(r.qdrop(steps=10)))
    result.save(tmp_path)
    loaded = clcalib.load(tmp_path, tiny())
    assert torch.equal(loaded(images()), result.model(images()))
    assert not torch.equal(biases(loaded)["fc.bias"], tiny().fc.bias)


def test_a_runtime_computes_with_them(tmp_path):
    """As 32-bit integers in the file: the codes are those that were simulated."""
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    result = run(clcalib.with_biases(r.qdrop(steps=10)), bits=(8, 8), target=here("onnxruntime"), is_guarded=False)
    assert not torch.equal(biases(result.model)["fc.bias"], tiny().fc.bias)
    proof = deploy(result, tmp_path / "model.onnx", clcalib.EvaluationSet.from_tensor(images(32))).record.deployment
    assert proof.max_code_difference <= 1
    assert proof.agreement == 1
    assert (proof.integer_layers, proof.float_layers) == (4, 0)


@pytest.mark.filterwarnings("default::clcalib.errors.WorseThanNearestWarning")
def test_a_unit_that_got_worse_has_its_biases_back():
    harm = Phase("up", 12, (Term(Reconstruction(), -1.0),), rounding_rate=0.5, activation_rate=0.05, bias_rate=0.1)
    guarded, nearest = run(Recipe("harmful", phases=(harm,))), run(r.nearest())
    assert [unit.kept for unit in guarded.record.units] == ["nearest"] * 3
    assert torch.equal(guarded.model(images()), nearest.model(images()))


def test_bfloat16_convolutions_train_them_too():
    found = {
        precision: biases(run(clcalib.with_biases(r.fast(steps=30)), precision=precision, is_guarded=False).model)
        for precision in ("float32", "bfloat16")
    }
    start = biases(run(r.nearest()).model)
    for name, own in found["float32"].items():
        way = own - start[name]
        assert float((found["bfloat16"][name] - own).norm()) < 0.5 * float(way.norm()), name


def test_it_goes_with_the_other_additions():
    recipe = clcalib.with_contrastive(clcalib.with_last_phase(clcalib.with_biases(r.fast(steps=4)), steps=2))
    assert recipe.name == "fast+biases+last_phase+contrastive"
    assert [phase.bias_rate for phase in recipe.all_phases] == [0.03, None]
    result = run(recipe)
    assert result.record.recipe == recipe.name
    assert torch.isfinite(result.model(images())).all()


@pytest.mark.parametrize(
    ("recipe", "rate", "message"),
    [
        (r.nearest(), 0.03, r"recipe: expected one that optimises something, got nearest"),
        (r.gptq(), 0.03, r"recipe: expected one that optimises something, got gptq"),
        (clcalib.with_biases(r.fast()), 0.03, r"recipe: expected one that trains no biases yet, got fast\+biases"),
        (r.fast(), 0.0, r"rate: expected a positive number, got 0.0"),
        (r.fast(), float("nan"), r"rate: expected a positive number, got nan"),
        (r.fast(), float("inf"), r"rate: expected a positive number, got inf"),
    ],
)
def test_what_cannot_be_is_told(recipe, rate, message):
    with pytest.raises(ArgumentError, match=message):
        clcalib.with_biases(recipe, rate=rate)


def test_a_phase_refuses_what_is_no_rate():
    with pytest.raises(ArgumentError, match="bias_rate: expected a positive rate"):
        dataclasses.replace(r.fast().phases[0], bias_rate=-1.0)
