"""A part of a model through the whole pipeline, and networks with several outputs."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import clcalib
from clcalib.errors import ArgumentError, CheckpointError
from clcalib.quant.modules import IntegerWeight
from tests.capture.detector import Backbone, Detector, detector
from tests.tiny import images, tiny

QDROP = clcalib.recipes.qdrop(steps=4)
BITS = clcalib.Bits(4, 4)
CALIBRATION = clcalib.CalibrationSet.from_tensor(images())


def error(model: nn.Module, reference: nn.Module, count: int = 8) -> float:
    """Relative, of the refined scores."""
    with torch.no_grad():
        own, floats = (torch.cat([r["scores"].flatten() for r in m(list(images(count)))]) for m in (model, reference))
    return float((own - floats).norm() / floats.norm())


@pytest.mark.parametrize(
    "recipe",
    [
        QDROP,
        clcalib.with_contrastive(QDROP),
        clcalib.with_contrastive(QDROP, read="logits"),
        clcalib.with_last_phase(clcalib.recipes.gptq(), steps=20),
        clcalib.with_tuning(QDROP, steps=3),
        clcalib.recipes.adaround(steps=4),
        clcalib.recipes.pd_quant(steps=3, correction_steps=0),
    ],
    ids=lambda recipe: f"{recipe.name}-{recipe.last_phase is not None}",
)
def test_every_recipe_takes_a_part_with_several_outputs(recipe, tmp_path):
    model = detector()
    held_out = clcalib.CalibrationSet.from_tensor(images(16, seed=5))
    result = clcalib.quantize(model, CALIBRATION, recipe=recipe, bits=BITS, submodule="backbone", held_out=held_out)
    assert type(result.model) is Detector
    assert 0 < error(result.model, model) < 0.5
    assert result.record.submodule == "backbone"
    assert result.record.calibration_images == len(CALIBRATION)
    assert all(unit.reconstruction_error.held_out is not None for unit in result.record.units)
    result.save(tmp_path)
    loaded = clcalib.load(tmp_path, Detector().eval())
    own, again = (torch.cat(list(m.backbone(images(4))["fine"])) for m in (result.model, loaded))
    assert torch.equal(own, again)


def test_parts_are_quantized_one_after_the_other(tmp_path):
    model = detector()
    first = clcalib.quantize(model, CALIBRATION, recipe=QDROP, bits=BITS, submodule="backbone")
    second = clcalib.quantize(first.model, CALIBRATION, recipe=QDROP, bits=BITS, submodule="head")
    assert [row.layer for row in second.policy] == ["head.classes", "head.boxes"]
    weights = [name for name, module in second.model.named_modules() if isinstance(module, IntegerWeight)]
    assert {name.partition(".")[0] for name in weights} == {"backbone", "head"}
    first.save(tmp_path / "backbone")
    second.save(tmp_path / "head")
    float_model = detector()  # what was quantized neither time comes from it
    loaded = clcalib.load(tmp_path / "head", clcalib.load(tmp_path / "backbone", float_model))
    for own, again in zip(second.model(list(images(3))), loaded(list(images(3))), strict=True):
        assert all(torch.equal(own[name], again[name]) for name in own)


def test_a_network_with_several_outputs_keeps_its_interface(tmp_path):
    model = Backbone().eval()
    result = clcalib.quantize(model, CALIBRATION, recipe=clcalib.with_contrastive(QDROP), bits=BITS)
    outputs = result.model(images(3))
    assert list(outputs) == ["fine", "coarse"]
    result.save(tmp_path)
    again = clcalib.load(tmp_path, Backbone().eval())(images(3))
    assert all(torch.equal(outputs[name], again[name]) for name in outputs)


def test_both_outputs_are_reconstructed():
    """The error of every output at 3 bits is below that of nearest rounding."""
    model = Backbone().eval()
    bits = clcalib.Bits(3, 8)
    runs = [
        clcalib.quantize(model, CALIBRATION, recipe=recipe, bits=bits).model
        for recipe in (clcalib.recipes.nearest(), clcalib.recipes.qdrop(steps=60, keep_quantized_probability=1.0))
    ]
    with torch.no_grad():
        floats = model(images())
        errors = [{k: float((v - floats[k]).square().mean()) for k, v in run(images()).items()} for run in runs]
    assert all(errors[1][name] < errors[0][name] for name in floats)


def test_a_part_of_a_classifier_is_evaluated_within_it():
    evaluation = clcalib.EvaluationSet.from_tensor(images(20, seed=7), torch.arange(20) % 4)
    result = clcalib.quantize(tiny(), CALIBRATION, recipe=QDROP, bits=BITS, submodule="block", evaluation=evaluation)
    assert [row.layer for row in result.policy] == ["conv1", "conv2"]
    assert 0 <= result.record.agreement <= 1
    assert (
        result.record.float_top1
        == clcalib.quantize(
            tiny(), CALIBRATION, recipe=clcalib.recipes.nearest(), bits=BITS, evaluation=evaluation
        ).record.float_top1
    )


def test_what_needs_classes_refuses_several_outputs():
    evaluation = clcalib.EvaluationSet.from_tensor(images(4), torch.zeros(4, dtype=torch.long))
    with pytest.raises(ArgumentError, match="evaluation: .* got 2 outputs"):
        clcalib.quantize(Backbone().eval(), CALIBRATION, recipe=QDROP, bits=BITS, evaluation=evaluation)
    fisher = clcalib.recipes.brecq(steps=3, is_fisher_weighted=True)
    with pytest.raises(ArgumentError, match="recipe: .* got 2 outputs"):
        clcalib.quantize(Backbone().eval(), CALIBRATION, recipe=fisher, bits=BITS)
    plain = nn.Sequential(Backbone(), Fine()).eval()
    with pytest.raises(ArgumentError, match="evaluation: .* got an output of 4 dimensions"):
        clcalib.quantize(plain, CALIBRATION, recipe=QDROP, bits=BITS, submodule="0", evaluation=evaluation)


class Fine(nn.Module):
    def forward(self, maps):
        return maps["fine"]


def test_a_checkpoint_of_another_architecture_tells_everything_at_once(tmp_path):
    result = clcalib.quantize(tiny(), CALIBRATION, recipe=clcalib.recipes.nearest(), bits=BITS)
    result.save(tmp_path)
    other = tiny()
    other.fc = nn.Linear(8, 5)
    other.block.conv2 = nn.Conv2d(8, 8, 1, bias=False)
    other.block.extra = nn.Conv2d(8, 8, 1)
    other.block.bn2 = nn.Sequential(other.block.bn2, other.block.extra)
    with pytest.raises(CheckpointError) as caught:
        clcalib.load(tmp_path, other.eval())
    message = str(caught.value)
    assert "does not fit Tiny" in message
    assert "the file lacks block.extra.weight, b" in message
    assert "block.conv2.weight is (8, 8, 3, 3), expected (8, 8, 1, 1)" in message
    assert "fc.weight is (4, 8), expected (5, 8)" in message
    assert "fc.bias is (4,), expected (5,)" in message
    with pytest.raises(CheckpointError, match="the model has no .*block.conv1.weight"):
        clcalib.load(tmp_path, nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.Flatten(), nn.Linear(512, 4)).eval())


def test_a_checkpoint_of_a_part_needs_a_model_with_it(tmp_path):
    clcalib.quantize(detector(), CALIBRATION, recipe=clcalib.recipes.nearest(), bits=BITS, submodule="backbone").save(
        tmp_path
    )
    with pytest.raises(CheckpointError, match="does not fit Tiny: submodule: expected the path of a module in Tiny"):
        clcalib.load(tmp_path, tiny())


def test_a_model_in_half_precision_is_told():
    with pytest.raises(ArgumentError, match="model: expected parameters in float32, got float16 in .*model.float"):
        clcalib.quantize(tiny().half(), CALIBRATION, recipe=QDROP, bits=BITS)
