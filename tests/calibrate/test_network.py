"""The last phase: its loss, what it trains, where it is told of, and that it helps."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
import torch
from tests.reference.network import network_error as slow_network_error
from tests.tiny import images, tiny
from torch import nn

import clcalib
from clcalib.calibrate import probes
from clcalib.calibrate.network import NAME, _Network
from clcalib.calibrate.observer import SilentObserver
from clcalib.calibrate.probes import term_scales
from clcalib.calibrate.unit_data import UnitData
from clcalib.calibrate.walk import Walk
from clcalib.capture.chain import capture
from clcalib.errors import ArgumentError
from clcalib.objectives.batch import Cut, Need, UnitBatch
from clcalib.objectives.contrastive import Contrastive
from clcalib.objectives.network import NetworkReconstruction, network_error
from clcalib.objectives.prediction import Prediction
from clcalib.objectives.rounding_penalty import RoundingPenalty
from clcalib.quant.insert import insert_quantizers
from clcalib.quant.modules import ActivationQuantizer, IntegerWeight
from clcalib.quant.policy import build_policy
from clcalib.quant.ranges import RANGE_RULES

BITS = clcalib.Bits(2, 4)
HELD_OUT = clcalib.CalibrationSet.from_tensor(images(32, seed=9))


def run(recipe, *, model=None, seed=0, **options):
    calibration = clcalib.CalibrationSet.from_tensor(images())
    return clcalib.quantize(
        model or tiny(),
        calibration,
        recipe=recipe,
        bits=BITS,
        seed=seed,
        measured_images=32,
        held_out=HELD_OUT,
        **options,
    )


def cuts(dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)

    def random(*shape):
        return torch.randn(shape, generator=generator, dtype=dtype)

    shapes = [(4, 3, 5, 5), (4, 6, 2, 2), (4, 7)]
    columns = zip(shapes, (2.0, 0.5, 30.0), (False, False, True), strict=True)
    return tuple(
        Cut(random(*shape).requires_grad_(), random(*shape), error, is_end=is_end) for shape, error, is_end in columns
    )


@pytest.mark.parametrize(("end_weight", "unit_weight"), [(0.0, 1.0), (1.0, 1.0), (5.0, 1.0), (5.0, 0.5), (1.0, 0.0)])
def test_the_error_of_all_units_is_that_of_the_slow_reference(end_weight, unit_weight):
    given = [(cut.output.detach().numpy(), cut.target.numpy(), cut.error) for cut in cuts()]
    expected = slow_network_error(given, end_weight, unit_weight)
    assert network_error(cuts(), end_weight, unit_weight).item() == pytest.approx(expected, rel=1e-5)


def test_the_weight_of_the_end_falls_on_no_other_unit():
    """Where the end is as good as float it is not among the outputs."""
    inner = cuts()[:-1]
    assert network_error(inner, 5.0).item() == network_error(inner, 1.0).item()


def test_which_output_is_the_networks_end_is_known():
    chain = capture(tiny(), images(2))
    quantized = insert_quantizers(chain, build_policy(chain.layers, BITS), RANGE_RULES["minmax"])
    recipe = clcalib.recipes.nearest()
    network = _Network.of(Walk(chain, quantized, recipe, RANGE_RULES["minmax"], {}, 0, SilentObserver()))
    all_units, end = (own(recipe).last_phase for own in (clcalib.with_last_phase, clcalib.with_tuning))
    assert network.inside([(1.0, 1.0)] * 3, all_units).are_ends == (False, False, True)
    assert network.inside([(1.0, 1.0), (1.0, 1.0), (0.0, 1.0)], all_units).are_ends == (False, False)
    assert network.inside([(1.0, 1.0)] * 3, end).are_ends == (True,)
    assert network.inside([(1.0, 1.0), (1.0, 1.0), (0.0, 1.0)], end).are_ends == ()


def test_its_gradient_reaches_every_output_and_no_target():
    made = cuts(torch.float64)
    targets = [cut.target.clone().requires_grad_() for cut in made]

    def error(*outputs):
        changed = (dataclasses.replace(c, output=o, target=t) for c, o, t in zip(made, outputs, targets, strict=True))
        return network_error(tuple(changed), 3.0)

    outputs = [cut.output for cut in made]
    assert torch.autograd.gradcheck(error, outputs)
    error(*outputs).backward()
    assert all(bool(output.grad.abs().sum() > 0) for output in outputs)
    assert all(target.grad is None for target in targets)


def test_it_counts_each_unit_once_at_the_start():
    made = tuple(
        dataclasses.replace(cut, error=network_error((dataclasses.replace(cut, error=1.0),)).item()) for cut in cuts()
    )
    assert network_error(made).item() == pytest.approx(1.0, rel=1e-5)


def test_the_mean_penalty_does_not_depend_on_the_number_of_weights():
    v = torch.linspace(-2, 2, 9)
    few, many = (UnitBatch(v, v, v, progress=0.5, rounding=(v,) * times) for times in (1, 4))
    total, mean = RoundingPenalty(), RoundingPenalty(is_mean=True)
    assert total(many).item() == pytest.approx(4 * total(few).item())
    assert mean(many).item() == pytest.approx(mean(few).item()) == pytest.approx(total(few).item() / 9)


def test_it_works_on_the_whole_network_only():
    batch = UnitBatch(torch.zeros(2, 3), torch.zeros(2, 3), torch.arange(2))
    with pytest.raises(ArgumentError, match="cuts, which NetworkReconstruction needs"):
        NetworkReconstruction()(batch)
    with pytest.raises(ArgumentError, match="end_weight"):
        NetworkReconstruction(-1.0)
    with pytest.raises(ArgumentError, match="unit_weight"):
        NetworkReconstruction(unit_weight=float("inf"))
    with pytest.raises(ArgumentError, match="one of both weights above 0"):
        NetworkReconstruction(0.0, 0.0)


def test_part_of_a_batch_is_part_of_every_cut():
    batch = UnitBatch(torch.zeros(4, 3), torch.zeros(4, 3), torch.arange(4), cuts=cuts()).first(2)
    assert [len(cut.output) for cut in batch.cuts] == [len(cut.target) for cut in batch.cuts] == [2, 2, 2]


@pytest.mark.parametrize("name", ["gptq", "adaround", "brecq", "qdrop", "fast"])
def test_it_brings_the_networks_end_nearer_to_the_float_one(name):
    host = clcalib.recipes.RECIPES[name](**({} if name == "gptq" else {"steps": 30}))
    # So small a network decides less in 100 steps: it takes a larger penalty than the default for nothing to stay open.
    record = run(clcalib.with_last_phase(host, steps=100, rounding_weight=100.0)).record
    last = record.last_phase
    assert last.reconstruction_error.calibration.after < last.reconstruction_error.calibration.before
    assert last.reconstruction_error.held_out.after < last.reconstruction_error.held_out.before
    assert 0 < last.changed_codes < 0.5
    assert (last.steps, record.recipe) == (100, f"{name}+last_phase")


def test_it_starts_from_what_the_units_found():
    host = clcalib.recipes.qdrop(steps=30)
    alone, followed = run(host), run(clcalib.with_last_phase(host, steps=100))
    ends = [alone.record.units[-1].reconstruction_error, followed.record.last_phase.reconstruction_error]
    assert ends[0].calibration.after == pytest.approx(ends[1].calibration.before, rel=1e-4)
    assert alone.record.last_phase is None
    # A rate too small to decide anything anew leaves every code as it was.
    still = run(clcalib.with_last_phase(host, steps=20, rounding_rate=1e-4))
    assert still.record.last_phase.changed_codes == 0.0


def test_it_trains_the_edges_with_8_bits_and_the_scales_too():
    host = clcalib.recipes.qdrop(steps=10)
    models = [run(recipe).model for recipe in (host, clcalib.with_last_phase(host, steps=150, rounding_rate=0.3))]
    codes, scales = (
        [[getattr(m, name) for m in model.modules() if isinstance(m, kind)] for model in models]
        for kind, name in ((IntegerWeight, "codes"), (ActivationQuantizer, "scale"))
    )
    assert all(not torch.equal(a, b) for a, b in zip(*codes, strict=True))
    assert all(not torch.equal(a, b) for a, b in zip(*scales, strict=True))


def test_same_seed_same_result_and_saved_is_loaded(tmp_path):
    recipe = clcalib.with_contrastive(clcalib.with_last_phase(clcalib.recipes.qdrop(steps=10), steps=40))
    first, again = run(recipe, seed=3), run(recipe, seed=3)
    assert torch.equal(first.model(images()), again.model(images()))
    first.save(tmp_path)
    assert torch.equal(clcalib.load(tmp_path, tiny(seed=9))(images()), first.model(images()))


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_contrastive_term_and_the_prediction_difference_apply(precision):
    host = clcalib.with_last_phase(clcalib.recipes.qdrop(steps=5), steps=60, prediction_weight=0.1)
    recipe = clcalib.with_contrastive(host, interval=2)
    assert torch.isfinite(run(recipe, precision=precision).model(images())).all()
    other = clcalib.with_last_phase(clcalib.with_contrastive(clcalib.recipes.qdrop(steps=5), interval=2), steps=60)
    kinds = [[type(term.objective) for term in made.last_phase.terms] for made in (recipe, other)]
    assert Prediction in kinds[0]
    assert Contrastive in kinds[0]
    assert Contrastive in kinds[1]
    assert recipe.needs == other.needs | {Need.LOGITS}
    assert Need.CUTS in other.needs


@pytest.mark.parametrize("name", ["qdrop", "pd_quant"])
@pytest.mark.parametrize(
    "settings",
    [{}, {"read": "activations"}, {"read": "learned_head"}, {"keys": "batch", "interval": 2, "images": 4}],
    ids=str,
)
def test_the_order_of_the_two_additions_makes_no_difference(name, settings):
    host = clcalib.recipes.RECIPES[name](steps=5)
    first = clcalib.with_last_phase(clcalib.with_contrastive(host, **settings), prediction_weight=0.1)
    second = clcalib.with_contrastive(clcalib.with_last_phase(host, prediction_weight=0.1), **settings)
    assert first.last_phase == second.last_phase
    assert dataclasses.replace(first, name="") == dataclasses.replace(second, name="")
    assert len(first.last_phase.terms) == 4


def test_the_temperature_of_the_predictions_can_be_set():
    phase = clcalib.with_last_phase(clcalib.recipes.nearest(), prediction_weight=0.1, temperature=1.0).last_phase
    assert [term.objective for term in phase.terms if isinstance(term.objective, Prediction)] == [Prediction(1.0)]


@pytest.mark.parametrize(
    "settings",
    [{}, {"read": "activations"}, {"keys": "batch", "images": 6}, {"read": "activations", "images": 9}],
    ids=str,
)
def test_relative_weights_of_the_whole_network_are_found_in_parts_as_at_once(settings, monkeypatch):
    sizes, found = [], []
    batches, scales = UnitData.batches, term_scales

    def counted(self, outputs, index, *more):
        sizes.append(len(index))
        return batches(self, outputs, index, *more)

    def both(phase, hardened, data):
        for most in (64, 1000):
            monkeypatch.setattr(probes, "BATCH", most)
            found.append(scales(phase, hardened, data))
            sizes.append(None)
        return found[0]

    monkeypatch.setattr(UnitData, "batches", counted)
    monkeypatch.setattr("clcalib.calibrate.walk.term_scales", both)
    recipe = clcalib.with_last_phase(clcalib.recipes.nearest(), steps=1)
    calibration = clcalib.CalibrationSet.from_tensor(images(129))
    clcalib.quantize(tiny(), calibration, recipe=clcalib.with_contrastive(recipe, **settings), bits=BITS)
    assert found[0] == pytest.approx(found[1], rel=1e-4)
    first = sizes[: sizes.index(None)]
    assert sum(first) == 129
    assert len(first) > 1
    assert 1 < min(first) <= max(first) <= 72


def test_the_penultimate_feature_is_read_inside_the_whole_network():
    """The queries of the contrastive term come from the penultimate feature and meet its keys, not the logits."""
    chain = capture(tiny(), images(2))
    quantized = insert_quantizers(chain, build_policy(chain.layers, BITS), RANGE_RULES["minmax"])
    keys = {Need.FEATURES: "features", Need.LOGITS: "logits"}
    recipe = clcalib.with_last_phase(clcalib.with_contrastive(clcalib.recipes.qdrop(steps=5)))
    walk = Walk(chain, quantized, recipe, RANGE_RULES["minmax"], keys, 0, SilentObserver())
    whole = _Network.of(walk).whole
    assert whole._keys_behind(0, Need.FEATURES) == "features"
    outputs = whole.floating.body(0)(images())
    (feature,) = whole._rest(0, (Need.FEATURES,))(*outputs)
    expected = chain.subgraph((chain.input_name,), (chain.feature_name,))(images())[0]
    assert torch.equal(feature, expected)
    assert walk._keys_behind(len(chain.units) - 1, Need.FEATURES) == "logits"


def test_progress_is_told():
    told = []

    class Told(SilentObserver):
        def stage(self, name):
            told.append(("stage", name))

        def unit_started(self, index, count, name, kind, steps):
            told.append((index, count, name, kind, steps))

        def unit_finished(self, index, name, error_before, error_after):
            told.append((name, error_after < error_before))

    result = run(clcalib.with_last_phase(clcalib.recipes.gptq(), steps=60), observer=Told())
    start = told.index(("stage", "last phase"))
    assert told[start + 1 : start + 3] == [(0, 1, NAME, "network", 60), (NAME, True)]
    assert "last phase" in result.record.seconds_per_stage


class OneLayer(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(192, 4)

    def forward(self, x):
        return self.fc(x.flatten(1))


def test_a_network_of_one_layer():
    torch.manual_seed(0)
    recipe = clcalib.with_contrastive(clcalib.with_last_phase(clcalib.recipes.gptq(), steps=20))
    assert torch.isfinite(run(recipe, model=OneLayer().eval()).model(images())).all()


def test_a_network_that_stays_float_is_left_alone():
    calibration = clcalib.CalibrationSet.from_tensor(images())
    recipe = clcalib.with_last_phase(clcalib.recipes.gptq(), steps=20)
    every = {"*": clcalib.Bits(None, None)}
    result = clcalib.quantize(tiny(), calibration, recipe=recipe, bits=BITS, overrides=every)
    torch.testing.assert_close(result.model(images()), tiny()(images()))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps"),
        ({"start_share": 1.0}, "start_share"),
        ({"prediction_weight": -1.0}, "prediction_weight"),
        ({"end_weight": float("inf")}, "end_weight"),
    ],
)
def test_bad_settings_are_told(options, message):
    with pytest.raises(ArgumentError, match=message):
        clcalib.with_last_phase(clcalib.recipes.qdrop(steps=5), **options)


def test_one_last_phase_is_enough():
    recipe = clcalib.with_last_phase(clcalib.recipes.qdrop(steps=5))
    with pytest.raises(ArgumentError, match="recipe: expected one without a last phase"):
        clcalib.with_last_phase(recipe)


def test_no_store_holds_the_units_outputs():
    """Beside the images themselves, only the logits of all images are kept."""
    sizes = []
    chain = capture(tiny(), images(2))
    quantized = insert_quantizers(chain, build_policy(chain.layers, BITS), RANGE_RULES["minmax"])
    walk = Walk(
        chain,
        quantized,
        clcalib.with_last_phase(clcalib.recipes.nearest(), steps=2),
        RANGE_RULES["minmax"],
        {},
        0,
        SilentObserver(),
    )
    list(itertools.islice(walk.run(images(), None), 3))
    allocate = walk.space.allocate
    walk.space.allocate = lambda shape, *more: sizes.append(shape) or allocate(shape, *more)
    clcalib.calibrate.network.run_last_phase(walk, images(), None)
    assert sizes == [(48, 4)]
