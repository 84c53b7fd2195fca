"""What is gathered of a finished network: against slow counts, without changing it, and the same each time."""

from __future__ import annotations

import base64
import io
import json

import numpy as np
import pytest
import torch
from PIL import Image
from tests.report.folders import evidence
from tests.tiny import images, tiny

import clcalib
from clcalib.errors import CheckpointError, NumericalError
from clcalib.evaluate.comparison import Predictions
from clcalib.quant.grids import GRIDS
from clcalib.quant.modules import ActivationQuantizer, IntegerWeight
from clcalib.quant.rounding import nearest
from clcalib.quant.spec import PerChannel, QParams, QuantSpec
from clcalib.report.changed_images import changed_images, picture
from clcalib.report.evidence import read_evidence, write_evidence
from clcalib.report.feature_map import principal_plane
from clcalib.report.histograms import BINS, flipped_share, levels_of, weight_histogram


@pytest.fixture(scope="module")
def result():
    evaluation = clcalib.EvaluationSet.from_tensor(
        images(24, seed=4),
        torch.arange(24) % 4,
        class_names=list("abcd"),
        image_names=[f"{at}.png" for at in range(24)],
    )
    calibration = clcalib.CalibrationSet.from_tensor(images(32))
    recipe, bits = clcalib.recipes.qdrop(steps=30), clcalib.Bits(3, 4)
    return clcalib.quantize(tiny(), calibration, recipe=recipe, bits=bits, evaluation=evaluation), evaluation


def test_everything_is_gathered_and_nothing_is_changed(result):
    quantized, evaluation = result
    before = {name: value.clone() for name, value in quantized.model.state_dict().items()}
    state, hooks = torch.random.get_rng_state(), torch.is_grad_enabled()
    found = quantized.evidence(evaluation)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.is_grad_enabled() is hooks
    assert all(torch.equal(value, before[name]) for name, value in quantized.model.state_dict().items())
    assert not any(module._forward_pre_hooks for module in quantized.model.modules())
    assert found == quantized.evidence(evaluation)
    assert [layer.name for layer in found.layers] == ["conv", "block.conv1", "block.conv2", "fc"]
    assert found.layers[0].activation is None  # the image is not quantized
    assert all(layer.weight is not None and layer.activation is not None for layer in found.layers[1:])


def test_predictions_are_those_that_were_measured(result):
    quantized, evaluation = result
    found = quantized.evidence(evaluation).predictions
    labels = evaluation.labels.tolist()
    assert (list(found.labels), found.class_names) == (labels, ("a", "b", "c", "d"))
    assert found.digest == quantized.record.evaluation_digest
    for column, value in (
        (found.floating, quantized.record.float_top1),
        (found.nearest, quantized.record.nearest_top1),
        (found.quantized, quantized.record.quantized_top1),
    ):
        assert sum(own == label for own, label in zip(column, labels, strict=True)) / len(labels) == value
    own = quantized.model(evaluation.images).argmax(1).tolist()
    assert list(found.quantized) == own


def test_without_evaluation_images_there_are_no_predictions(result):
    quantized, _ = result
    found = quantized.evidence(clcalib.CalibrationSet.from_tensor(images(8)))
    assert (found.predictions, found.changed, found.features.images, found.images) == (None, (), "calibration", 8)


def test_a_part_is_looked_at_with_what_it_gets_in_its_model():
    evaluation = clcalib.EvaluationSet.from_tensor(images(20, seed=4), torch.arange(20) % 4)
    calibration = clcalib.CalibrationSet.from_tensor(images(32))
    recipe, bits = clcalib.recipes.nearest(), clcalib.Bits(4, 4)
    found = clcalib.quantize(
        tiny(), calibration, recipe=recipe, bits=bits, evaluation=evaluation, submodule="block"
    ).evidence(evaluation)
    assert [layer.name for layer in found.layers] == ["conv1", "conv2"]
    assert len(found.features.floating) == len(found.predictions.floating) == 20
    assert found.features.classes == tuple(at % 4 for at in range(20))


def test_what_is_gathered_is_the_share_of_roundings_that_are_not_the_nearest(result):
    quantized, evaluation = result
    chain, model = quantized.quantized, tiny().eval()
    share = {layer.name: layer.flipped for layer in quantized.evidence(evaluation).layers}
    weight, own = model.fc.weight.detach(), chain.weight("fc")
    slow = sum(
        int(min(range(own.spec.levels), key=lambda q, w=w, s=s, z=z: abs((q - z) * s - w)) != int(code))
        for row, codes, s, z in zip(weight, own.codes, own.scale.flatten(), own.zero_point.flatten(), strict=True)
        for w, code in zip(row, codes, strict=True)
    )
    assert share["fc"] == pytest.approx(slow / weight.numel())
    assert 0 < max(share.values()) < 0.6


def test_a_weight_is_counted_in_steps_of_its_channels():
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(3, 40, generator=generator) * torch.tensor([[0.01], [1.0], [30.0]])
    spec = QuantSpec(4, granularity=PerChannel(0))
    scale = weight.abs().amax(1, keepdim=True) / 7
    parameters = QParams(scale, torch.full_like(scale, 8.0))
    quantizer = IntegerWeight(nearest(weight, parameters, spec), parameters, spec)
    found = weight_histogram(weight, quantizer)
    places = (weight / scale + 8).flatten().numpy()
    assert list(found.counts) == np.histogram(places, BINS, (-1.5, 16.5))[0].tolist()
    assert (found.below, found.above, found.clipped) == (0, 0, 0.0)
    assert found.levels == tuple(range(16))
    assert flipped_share(weight, quantizer) == 0.0
    quantizer.codes[0, :10] = 15 - quantizer.codes[0, :10]
    assert flipped_share(weight, quantizer) == pytest.approx(10 / 120)


def test_an_activation_is_counted_as_its_quantizer_gets_it(result):
    quantized, evaluation = result
    found = {layer.name: layer.activation for layer in quantized.evidence(evaluation).layers}["block.conv1"]
    model = tiny()
    with torch.no_grad():
        values = torch.relu(model.bn(model.conv(evaluation.images)))
    assert sum(found.counts) + found.below + found.above == values.numel()
    quantizer = quantized.quantized.activation("block.conv1")
    step = float(quantizer.scale)
    assert found.levels[1] - found.levels[0] == pytest.approx(step, rel=1e-4)
    assert found.levels[-1] == pytest.approx(15 * step, rel=1e-4)


@pytest.mark.parametrize("grid", list(GRIDS))
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_the_levels_are_all_values_that_the_quantizer_gives(grid, bits):
    spec = QuantSpec(bits).on(grid)
    scale = torch.tensor([0.1, 0.7]) if grid == "twin" else torch.tensor(0.3)
    quantizer = ActivationQuantizer(QParams(scale, torch.zeros_like(scale)), spec)
    levels = torch.tensor(levels_of(quantizer))
    assert 2 <= len(levels) <= spec.levels
    values = quantizer(torch.randn(4000, generator=torch.Generator().manual_seed(1)) * 3)
    distance = (values[:, None] - levels[None]).abs().amin(1)
    assert float(distance.max()) < 1e-5 * float(levels.abs().max())


@pytest.mark.parametrize("shape", [(40, 5), (5, 40), (6, 1)])
def test_the_plane_holds_the_most_variance(shape):
    vectors = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    plane, explained = principal_plane(vectors)
    centred = (vectors - vectors.mean(0)).numpy()
    values = np.linalg.svd(centred, compute_uv=False) ** 2
    expected = np.pad(values / values.sum(), (0, 2))[:2]
    assert explained == pytest.approx(expected, abs=1e-4)
    assert plane.square().sum(0).numpy() / values.sum() == pytest.approx(expected, abs=1e-9)
    distance = torch.cdist(plane, plane)
    assert bool((distance <= torch.cdist(vectors, vectors) + 1e-6).all())  # a projection


def test_equal_features_have_no_plane():
    assert principal_plane(torch.ones(5, 3, dtype=torch.float64)) == (None, (0.0, 0.0))


def test_changed_images_are_told_the_lost_ones_first():
    outputs = torch.eye(3)[[0, 0, 1, 1, 2, 2]] * torch.tensor([[1.0], [5], [1], [1], [1], [9]])
    own = torch.eye(3)[[1, 1, 2, 1, 0, 1]]
    predictions = Predictions.of(outputs, None, own)
    labels = torch.tensor([0, 0, 2, 1, 1, 2])
    found = changed_images(predictions, torch.rand(6, 3, 8, 8), labels, [f"{at}.png" for at in range(6)])
    assert [image.name for image in found] == ["5.png", "1.png", "0.png", "2.png", "4.png"]  # lost, won, other
    assert found[0].float_confidence == pytest.approx(float(torch.softmax(outputs[5], 0).max()), rel=1e-4)


@pytest.mark.parametrize(("shape", "kind"), [((3, 32, 32), "png"), ((1, 20, 40), "png"), ((3, 224, 100), "jpeg")])
def test_a_picture_is_small_and_shows_the_image(shape, kind):
    mean, deviation = (0.4,) * shape[0], (0.2,) * shape[0]
    pixels = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    uri = picture((pixels - 0.4) / 0.2, (mean, deviation))
    head, _, body = uri.partition(",")
    assert head == f"data:image/{kind};base64"
    shown = Image.open(io.BytesIO(base64.b64decode(body)), formats=["PNG", "JPEG"])
    assert max(shown.size) <= 96
    if kind == "png":
        assert np.abs(np.asarray(shown) / 255 - pixels.permute(1, 2, 0).squeeze(-1).numpy()).max() < 0.003


def test_what_is_no_image_has_no_picture():
    assert picture(torch.zeros(5, 8, 8)) is None
    assert picture(torch.zeros(12)) is None
    assert picture(torch.zeros(3, 8, 8, dtype=torch.int64)) is None


def test_evidence_comes_back_as_it_was_written(tmp_path):
    write_evidence(evidence(), tmp_path / "report.json")
    assert read_evidence(tmp_path / "report.json") == evidence()


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (lambda values: values.update(schema_version=7), "schema_version"),
        (lambda values: values.update(colour="blue"), "colour"),
        (lambda values: values["changed"][0].update(picture="javascript:hit"), "changed.0.picture"),
        (lambda values: values["changed"][0].update(picture="data:image/svg+xml;base64,AAAA"), "changed.0.picture"),
        (
            lambda values: values["changed"][0].update(picture="data:image/png;base64," + "A" * 70_000),
            "changed.0.picture",
        ),
        (lambda values: values["changed"][0].update(place=10_000), "the record"),
        (lambda values: values["predictions"].update(quantized=[0]), "predictions"),
        (lambda values: values["predictions"].update(floating=[-1, 0, 0, 0]), "predictions.floating.0"),
        (lambda values: values["features"].update(floating=[[0, 0]]), "features"),
        (lambda values: values["layers"][0]["weight"].update(counts=[]), "layers.0.weight.counts"),
        (lambda values: values["layers"][0]["weight"].update(low=5.0, high=5.0), "layers.0.weight"),
        (lambda values: values["layers"][0]["weight"].update(levels=[1.0, 0.0]), "layers.0.weight"),
        (lambda values: values["layers"][0]["weight"].update(levels=list(range(300))), "layers.0.weight.levels"),
    ],
)
def test_damaged_evidence_is_refused_with_its_file_and_field(tmp_path, change, field):
    path = tmp_path / "report.json"
    values = json.loads(evidence().model_dump_json())
    change(values)
    path.write_text(json.dumps(values))
    with pytest.raises(CheckpointError, match=r"report.json: not the evidence .* version 1: ") as caught:
        read_evidence(path)
    assert f": {field}: " in str(caught.value)
    assert "clcalib report --gather" in str(caught.value)


def test_evidence_that_is_not_finite_is_refused(tmp_path):
    (tmp_path / "report.json").write_text(evidence().model_dump_json().replace('"low":-1.5', '"low":-Infinity', 1))
    with pytest.raises(NumericalError, match=r"report.json: .*low"):
        read_evidence(tmp_path / "report.json")
