"""End to end on a tiny network, and what bad input gets."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from safetensors.torch import load_file

import clcalib
from clcalib.errors import (
    ArgumentError,
    CheckpointError,
    ClcalibError,
    ConstantChannelWarning,
    DataError,
    DeadActivationWarning,
    EqualAnswersWarning,
    NumericalError,
    OutputExistsError,
    SmallCalibrationWarning,
    TrainModeWarning,
)
from clcalib.quant.modules import IntegerWeight
from clcalib.report.record import read_record
from tests.tiny import images, tiny

QDROP = clcalib.recipes.qdrop(steps=5)
BITS = clcalib.Bits(4, 4)


def calibration(count=48):
    return clcalib.CalibrationSet.from_tensor(images(count))


def quantize(model=None, *, count=48, recipe=QDROP, bits=BITS, **options):
    return clcalib.quantize(model or tiny(), calibration(count), recipe=recipe, bits=bits, **options)


def test_the_record_tells_everything():
    evaluation = clcalib.EvaluationSet.from_tensor(images(20, seed=7), torch.arange(20) % 4)
    held_out = clcalib.CalibrationSet.from_tensor(images(16, seed=8))
    recipe = clcalib.with_contrastive(QDROP, weight=0.5)
    record = quantize(recipe=recipe, evaluation=evaluation, held_out=held_out, seed=3).record
    for value in (record.float_top1, record.nearest_top1, record.quantized_top1, record.agreement):
        assert 0 <= value <= 1
    assert (record.weight_bits, record.activation_bits, record.seed, record.steps_per_unit) == (4, 4, 3, 5)
    assert record.recipe == "qdrop+contrastive"
    assert record.contrastive["weight"] == 0.5
    assert [unit.name for unit in record.units] == ["conv", "block", "fc"]
    for unit in record.units:
        assert unit.reconstruction_error.held_out.after >= 0
        assert unit.mutual_information_bound.held_out.after <= torch.tensor(16.0).log().item() + 1e-6
        assert unit.sqnr_db.calibration is not None
    assert record.seconds == pytest.approx(sum(record.seconds_per_stage.values()))
    assert record.peak_memory_bytes > 0
    assert len({record.model_digest, record.calibration_digest, record.evaluation_digest}) == 3


def test_the_record_tells_what_the_contrastive_term_came_to(tmp_path):
    host = clcalib.with_last_phase(clcalib.recipes.pd_quant(steps=2, correction_steps=0), steps=2)
    result = quantize(recipe=clcalib.with_contrastive(host))
    result.save(tmp_path)
    settings = read_record(tmp_path / "run.json").contrastive
    assert (settings["interval"], settings["images"], settings["on"]) == (None, None, None)
    assert settings["resolved"] == [
        {"phase": "rounding and activation scales", "interval": 1, "images": 16, "on": "quantized"},
        {"phase": "whole network", "interval": 8, "images": 8, "on": "training"},
    ]


def test_without_evaluation_images_there_is_no_accuracy():
    record = quantize().record
    assert record.quantized_top1 is None
    assert record.agreement is None


def test_saved_and_loaded_logits_are_bit_identical(tmp_path):
    for bits in (clcalib.Bits(2, 2), clcalib.Bits(3, 8), clcalib.Bits(5, None), clcalib.Bits(4, 4, True, True)):
        result = quantize(bits=bits)
        result.save(tmp_path / str(bits), overwrite=True)
        again = clcalib.load(tmp_path / str(bits), tiny(seed=9))
        assert torch.equal(again(images(7)), result.model(images(7)))


def test_weights_are_stored_as_packed_integers(tmp_path):
    result = quantize(bits=clcalib.Bits(2, 2))
    result.save(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    assert tensors["codes/block.conv1"].dtype == torch.uint8
    assert tensors["codes/block.conv1"].numel() == 8 * 8 * 9 * 2 // 8
    codes = [module.codes for module in result.model.modules() if isinstance(module, IntegerWeight)]
    assert [int(code.max()) <= 255 and int(code.min()) >= 0 for code in codes] == [True] * 4
    assert int(codes[1].max()) <= 3


def test_the_model_and_the_random_state_are_left_alone():
    model = tiny()
    model.block.train()
    before = copy.deepcopy(model.state_dict())
    flags = [module.training for module in model.modules()]
    random = torch.get_rng_state()
    with pytest.warns(TrainModeWarning):
        quantize(model, recipe=clcalib.with_contrastive(QDROP))
    assert torch.equal(random, torch.get_rng_state())
    assert flags == [module.training for module in model.modules()]
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert torch.is_grad_enabled()


def test_a_saved_folder_is_not_overwritten_unasked(tmp_path):
    result = quantize(recipe=clcalib.recipes.nearest())
    result.save(tmp_path / "out")
    with pytest.raises(OutputExistsError, match="overwrite"):
        result.save(tmp_path / "out")
    result.save(tmp_path / "out", overwrite=True)


def damaged(folder, name, change):
    path = folder / name
    path.write_bytes(change(path.read_bytes()))


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("model.safetensors", lambda data: data[:-1] + bytes([data[-1] ^ 1]), "sha256"),
        ("model.safetensors", lambda data: data[:100], "sha256"),
        ("model.json", lambda data: data[:50], "JSON"),
        ("model.json", lambda data: data.replace(b'"format": 1', b'"format": 99'), "format"),
    ],
)
def test_damage_is_told(tmp_path, name, change, message):
    quantize(recipe=clcalib.recipes.nearest()).save(tmp_path)
    damaged(tmp_path, name, change)
    with pytest.raises(CheckpointError, match=message):
        clcalib.load(tmp_path, tiny())


def test_another_architecture_is_told(tmp_path):
    quantize(recipe=clcalib.recipes.nearest()).save(tmp_path)
    other = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.Flatten(), torch.nn.Linear(288, 4)).eval()
    with pytest.raises(CheckpointError, match="does not fit Sequential: the file lacks"):
        clcalib.load(tmp_path, other)
    wider = tiny()
    wider.fc = torch.nn.Linear(8, 5)
    with pytest.raises(CheckpointError, match="fc"):
        clcalib.load(tmp_path, wider.eval())


def test_a_missing_folder_is_told(tmp_path):
    with pytest.raises(CheckpointError, match="no such file"):
        clcalib.load(tmp_path / "nowhere", tiny())


class TestBadInput:
    """Each is one error before any optimisation, or a defined result with a named warning."""

    def test_one_image_with_a_contrastive_recipe(self):
        with pytest.raises(ArgumentError, match="at least two"):
            quantize(count=1, recipe=clcalib.with_contrastive(QDROP))

    def test_the_same_image_many_times_with_a_contrastive_recipe(self):
        same = clcalib.CalibrationSet.from_tensor(images(1).repeat(40, 1, 1, 1))
        with pytest.raises(ArgumentError, match="1 of them distinct"):
            clcalib.quantize(tiny(), same, recipe=clcalib.with_contrastive(QDROP), bits=clcalib.Bits(4, 4))

    @pytest.mark.parametrize("settings", [{"read": "activations"}, {"read": "learned_head"}, {}], ids=str)
    def test_the_same_image_is_told_before_any_work(self, settings, monkeypatch):
        monkeypatch.setattr("clcalib.job.capture", None)
        same = clcalib.CalibrationSet.from_tensor(images(1).repeat(40, 1, 1, 1))
        with pytest.raises(ArgumentError, match="calibration: expected at least two different images"):
            clcalib.quantize(tiny(), same, recipe=clcalib.with_contrastive(QDROP, **settings), bits=BITS)

    @pytest.mark.parametrize(
        "settings",
        [{"keys": "batch"}, {"read": "activations"}, {"read": "pooled_activations"}, {"read": "learned_head"}],
        ids=str,
    )
    def test_batches_of_one_image_whose_keys_are_those_of_the_batch(self, settings, monkeypatch):
        monkeypatch.setattr("clcalib.job.capture", None)
        recipe = clcalib.with_contrastive(clcalib.recipes.qdrop(steps=2, batch_size=1), **settings)
        with pytest.raises(ArgumentError, match="batch_size: expected at least 2 images a step"):
            quantize(recipe=recipe)

    def test_batches_of_one_image_with_the_keys_of_all(self):
        recipe = clcalib.with_contrastive(clcalib.recipes.qdrop(steps=2, batch_size=1))
        assert torch.isfinite(quantize(recipe=recipe).model(images(3))).all()

    @pytest.mark.parametrize("copies", [1, 40])
    @pytest.mark.filterwarnings("ignore::clcalib.errors.SmallCalibrationWarning")
    @pytest.mark.filterwarnings("ignore::clcalib.errors.EqualAnswersWarning")
    def test_one_image_with_a_prediction_term(self, copies):
        same = clcalib.CalibrationSet.from_tensor(images(1).repeat(copies, 1, 1, 1))
        recipe = clcalib.recipes.pd_quant(steps=2, correction_steps=2)
        result = clcalib.quantize(tiny(), same, recipe=recipe, bits=BITS, measured_images=0)
        assert torch.isfinite(result.model(images(3))).all()

    def test_one_image_with_a_plain_recipe(self):
        with pytest.warns(SmallCalibrationWarning, match="fewer than a mini-batch"):
            result = quantize(count=1)
        assert torch.isfinite(result.model(images(3))).all()

    def test_fewer_images_than_a_batch(self):
        with pytest.warns(SmallCalibrationWarning):
            result = quantize(count=10, recipe=clcalib.with_contrastive(QDROP))
        assert result.record.warnings

    def test_wrong_channel_count(self):
        four = clcalib.CalibrationSet.from_tensor(torch.randn(40, 4, 8, 8))
        with pytest.raises(ClcalibError, match=r"\(.*4, 8, 8\)"):
            clcalib.quantize(tiny(), four, recipe=QDROP, bits=clcalib.Bits(4, 4))

    def test_images_that_are_no_calibration_set(self):
        with pytest.raises(ArgumentError, match="from_tensor"):
            clcalib.quantize(tiny(), images(), recipe=QDROP, bits=clcalib.Bits(4, 4))

    def test_nan_in_an_image(self):
        bad = images()
        bad[5, 0, 0, 0] = float("nan")
        with pytest.raises(DataError, match="5"):
            clcalib.CalibrationSet.from_tensor(bad)

    def test_nan_in_a_weight(self):
        model = tiny()
        model.block.conv1.weight.data[0, 0, 0, 0] = float("nan")
        with pytest.raises(NumericalError, match="block.conv1.weight"):
            quantize(model)

    @pytest.mark.parametrize("bits", [1, 9, 0, -2, 2.5, True, "4"])
    def test_bits_out_of_range(self, bits):
        with pytest.raises(ArgumentError, match="weights"):
            clcalib.Bits(weights=bits, activations=4)

    def test_unknown_names_tell_the_nearest(self):
        with pytest.raises(ArgumentError, match="nearest: mse_grid"):
            quantize(weight_range="mse_gird")
        with pytest.raises(ArgumentError, match="setting"):
            quantize(setting="adaround")
        with pytest.raises(ArgumentError, match="nearest layer"):
            quantize(overrides={"blok.*": clcalib.Bits(8, 8)})
        with pytest.raises(ArgumentError, match="device"):
            quantize(device="abacus")

    def test_other_shapes_of_evaluation_images(self):
        other = clcalib.EvaluationSet.from_tensor(torch.randn(4, 3, 9, 9))
        with pytest.raises(ArgumentError, match="evaluation"):
            quantize(evaluation=other)
        with pytest.raises(ArgumentError, match=r"evaluation: expected an EvaluationSet, or None, got Tensor"):
            quantize(evaluation=torch.randn(4, 3, 8, 8))

    @pytest.mark.parametrize("value", [0.0, 0.3])
    def test_a_constant_channel(self, value):
        model = tiny()
        model.block.conv1.weight.data[2] = value
        with pytest.warns(ConstantChannelWarning, match=r"block\.conv1"):
            result = quantize(model, bits=clcalib.Bits(2, 2))
        assert torch.isfinite(result.model(images())).all()

    def test_a_dead_activation(self):
        model = tiny()
        model.bn.bias.data.fill_(-1000.0)
        with (
            pytest.warns(EqualAnswersWarning, match="the same answer for all"),
            pytest.warns(DeadActivationWarning, match="unit conv"),
        ):
            result = quantize(model, recipe=clcalib.with_contrastive(QDROP))
        assert torch.isfinite(result.model(images())).all()

    def test_one_of_two_outputs_that_is_always_the_same(self):
        class Two(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.conv = torch.nn.Conv2d(3, 4, 3)
                self.constant = torch.nn.Conv2d(4, 4, 1)
                self.constant.weight.data.zero_()

            def forward(self, x):
                first = self.conv(x)
                return first, self.constant(first)

        settings = {"recipe": clcalib.recipes.nearest(), "bits": BITS, "measured_images": 0}
        with warnings.catch_warnings():
            warnings.simplefilter("error", EqualAnswersWarning)
            warnings.simplefilter("ignore", ConstantChannelWarning)
            clcalib.quantize(Two().eval(), clcalib.CalibrationSet.from_tensor(images()), **settings)


def test_overrides_change_the_named_layers_only():
    result = quantize(overrides={"block.*": clcalib.Bits(8, 6)}, bits=clcalib.Bits(2, 2))
    widths = {row.layer: (row.weight.bits, row.input.bits if row.input else None) for row in result.policy}
    assert widths == {"conv": (8, None), "block.conv1": (8, 6), "block.conv2": (8, 6), "fc": (8, 8)}


def test_settings_differ_at_the_second_layer():
    widths = {}
    for setting in ("qdrop", "brecq"):
        rows = quantize(setting=setting, recipe=clcalib.recipes.nearest(), bits=clcalib.Bits(2, 2)).policy
        widths[setting] = [(row.weight.bits, row.input.bits if row.input else None) for row in rows]
    assert widths["qdrop"] == [(8, None), (2, 2), (2, 2), (8, 8)]
    assert widths["brecq"] == [(8, None), (2, 8), (2, 2), (8, 8)]


def test_float_widths_leave_the_network_as_it_is():
    result = quantize(bits=clcalib.Bits(None, None), recipe=clcalib.recipes.nearest())
    torch.testing.assert_close(result.model(images()), tiny()(images()), rtol=1e-4, atol=1e-5)


def test_the_shortcut_reads_quantized_values():
    """A tensor that a layer reads is quantized where it is made, so the residual addition sees the same grid."""
    result = quantize(bits=clcalib.Bits(8, 2), recipe=clcalib.recipes.nearest())
    graph = result.model.graph
    quantizers = [node for node in graph.nodes if str(node.target).startswith("activation_")]
    readers = [len(node.users) for node in quantizers]
    assert max(readers) == 2


@pytest.mark.parametrize(("name", "value"), [("OMP_DYNAMIC", "TRUE"), ("OMP_THREAD_LIMIT", "1")])
def test_threads_that_never_come_are_told_before_they_are_waited_for(name, value, monkeypatch):
    monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    with pytest.raises(ArgumentError, match=f"{name}: expected .*giving 2 threads.*; unset it"):
        quantize()
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    assert quantize().record.threads == 1
