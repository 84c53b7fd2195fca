"""The loop and the walk on a tiny network: what is trained, what stays, and that it helps."""

from __future__ import annotations

import dataclasses
import weakref

import pytest
import torch
from tests.tiny import images, tiny
from torch import nn

import clcalib
from clcalib import job
from clcalib.calibrate.caches import round_to_nearest
from clcalib.calibrate.latest import LatestLosses
from clcalib.calibrate.observer import SilentObserver
from clcalib.calibrate.probes import ProbeError, term_scales
from clcalib.calibrate.recipe import Phase, Recipe, Term
from clcalib.calibrate.space import StoreSpace
from clcalib.calibrate.store import as_rows
from clcalib.calibrate.unit_data import UnitData
from clcalib.calibrate.walk import Walk
from clcalib.capture.chain import capture
from clcalib.capture.running import advance
from clcalib.errors import ArgumentError
from clcalib.objectives.batch import Need, UnitBatch
from clcalib.objectives.lp import Reconstruction
from clcalib.objectives.prediction import Prediction
from clcalib.objectives.rounding_penalty import RoundingPenalty
from clcalib.quant.insert import insert_quantizers
from clcalib.quant.modules import ActivationQuantizer, IntegerWeight
from clcalib.quant.policy import Bits, build_policy
from clcalib.quant.ranges import RANGE_RULES

RECIPES = ["adaround", "brecq", "qdrop", "pd_quant", "fast", "genie_m", "straight_through", "glf_q", "scale_only"]
BITS = Bits(2, 4)


def run(recipe, seed=0, bits=BITS, **options):
    calibration = clcalib.CalibrationSet.from_tensor(images())
    return clcalib.quantize(tiny(), calibration, recipe=recipe, bits=bits, seed=seed, measured_images=0, **options)


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("is_contrastive", [False, True])
def test_every_recipe_beats_nearest_rounding(name, is_contrastive):
    recipe = clcalib.recipes.RECIPES[name](steps=60)
    if is_contrastive:
        recipe = clcalib.with_contrastive(recipe, interval=2)
    result = run(recipe)
    optimised = [unit for unit in result.record.units if unit.name != "conv"]
    before = sum(unit.reconstruction_error.calibration.before for unit in optimised)
    after = sum(unit.reconstruction_error.calibration.after for unit in optimised)
    assert after < before
    assert torch.isfinite(result.model(images())).all()


def test_same_seed_same_result_and_another_seed_another():
    recipe = clcalib.with_contrastive(clcalib.recipes.qdrop(steps=15))
    outputs = [run(recipe, seed).model(images()) for seed in (3, 3, 4)]
    assert torch.equal(outputs[0], outputs[1])
    assert not torch.equal(outputs[0], outputs[2])


def test_the_first_unit_is_left_alone_where_the_recipe_says_so():
    nearest, brecq = run(clcalib.recipes.nearest()), run(clcalib.recipes.brecq(steps=40))
    codes = [[m.codes for m in result.model.modules() if isinstance(m, IntegerWeight)] for result in (nearest, brecq)]
    assert torch.equal(codes[0][0], codes[1][0])
    assert any(not torch.equal(a, b) for a, b in zip(codes[0][1:], codes[1][1:], strict=True))


def test_brecq_rounds_first_and_scales_later():
    """Phase one changes codes and no scale; phase two scales and no code."""
    full = clcalib.recipes.brecq(steps=40, activation_steps=20)
    first = dataclasses.replace(full, phases=full.phases[:1])
    results = {
        name: run(recipe) for name, recipe in [("none", clcalib.recipes.nearest()), ("first", first), ("both", full)]
    }

    def collected(name, kind, attribute):
        return [getattr(m, attribute) for m in results[name].model.modules() if isinstance(m, kind)]

    for a, b in zip(collected("first", IntegerWeight, "codes"), collected("both", IntegerWeight, "codes"), strict=True):
        assert torch.equal(a, b) or a.shape == (4, 8)  # the classifier sees the block's other scales
    scales = [collected(name, ActivationQuantizer, "scale") for name in ("first", "both")]
    assert any(not torch.equal(a, b) for a, b in zip(*scales, strict=True))


def quantized_chain(bits=BITS):
    chain = capture(tiny(), images(2))
    policy = build_policy(chain.layers, bits)
    return chain, insert_quantizers(chain, policy, RANGE_RULES["minmax"])


def test_the_walk_yields_each_unit_when_it_is_done():
    chain, quantized = quantized_chain()
    walk = Walk(chain, quantized, clcalib.recipes.nearest(), RANGE_RULES["minmax"], {}, 0, SilentObserver())
    steps = walk.run(images(), images(8, seed=5))
    first = next(steps)
    assert first.name == "conv"
    assert first.held_out_error_after is not None
    assert [trace.name for trace in steps] == ["block", "fc"]


def test_caches_move_forward_as_the_whole_network_computes():
    chain, quantized = quantized_chain()
    list(
        Walk(chain, quantized, clcalib.recipes.nearest(), RANGE_RULES["minmax"], {}, 0, SilentObserver()).run(
            images(), None
        )
    )
    state = (images(),)
    for index in range(len(chain.units)):
        state = advance(quantized.chain.body(index), state)
    torch.testing.assert_close(state[0], quantized.chain.module(images()))


def test_nearest_rounding_alone_is_the_walk_without_phases():
    (chain, walked), (_, rounded) = quantized_chain(), quantized_chain()
    rule, many = RANGE_RULES["minmax"], images(300, seed=2)
    list(Walk(chain, walked, clcalib.recipes.nearest(), rule, {}, 0, SilentObserver()).run(many, None))
    round_to_nearest(chain, rounded, many, rule)
    state, other = (quantized.chain.module.state_dict() for quantized in (walked, rounded))
    assert any("scale" in name for name in state)
    torch.testing.assert_close(state, other, rtol=1e-6, atol=0)


@dataclasses.dataclass(frozen=True)
class Constant:
    """A term with a known value."""

    value: float

    @property
    def needs(self) -> frozenset[Need]:
        return frozenset()

    def __call__(self, batch: UnitBatch) -> torch.Tensor:
        return batch.output.sum() * 0 + self.value


def test_a_relative_term_is_as_large_as_the_host_at_weight_one():
    body = quantized_chain()[0].body(0)
    target = body(images())[0]
    rows = (as_rows(images()),)
    data = UnitData(rows, rows, as_rows(target + 1.0), 0, None, (), {})
    terms = (Term(Reconstruction()), Term(Constant(4.0), 0.5, is_relative=True))
    scales = term_scales(Phase("p", 1, terms), body, data)
    host = 8.0  # eight channels, each off by one
    assert scales[0] == 1.0
    assert scales[1] * 4.0 == pytest.approx(0.5 * host, rel=1e-4)


def test_all_terms_behind_the_unit_share_one_pass(monkeypatch):
    passes = []
    original = UnitData._reads

    def counted(self, outputs, terms, size):
        if self.read is not None and terms:
            passes.append((self.read_points, min(size, max(term.images or size for term in terms))))
        return original(self, outputs, terms, size)

    monkeypatch.setattr(UnitData, "_reads", counted)
    host = clcalib.recipes.qdrop(steps=4)
    (phase,) = host.phases
    terms = (*phase.terms, Term(Prediction(), 0.1, images=16, interval=2))
    predicting = dataclasses.replace(host, phases=(dataclasses.replace(phase, terms=terms),))
    run(clcalib.with_contrastive(predicting, interval=2, images=8))
    points = (Need.FEATURES, Need.LOGITS)
    units = 3
    assert passes == [(points, 48), (points, 16), (points, 16)] * units  # the first one finds the relative weight


def test_keys_are_built_once_in_a_run(monkeypatch):
    built, build = [], job._keys
    monkeypatch.setattr(job, "_keys", lambda *arguments: (built.append(1), build(*arguments))[1])
    run(clcalib.with_contrastive(clcalib.recipes.qdrop(steps=3), interval=1))
    assert built == [1]


def test_a_rounding_penalty_alone_runs_through_its_warm_up():
    (host,) = clcalib.recipes.qdrop(steps=5).phases
    phase = dataclasses.replace(host, terms=(Term(RoundingPenalty(warm_up=0.5), 0.01),))
    losses = []

    class Watching(SilentObserver):
        def step(self, step, values):
            losses.append(values["RoundingPenalty"])

    result = run(dataclasses.replace(clcalib.recipes.qdrop(steps=5), phases=(phase,)), observer=Watching())
    assert losses[0] == 0.0
    assert torch.isfinite(result.model(images())).all()


def test_equal_outputs_have_equal_errors_however_they_lie_in_memory():
    unit = capture(tiny().eval(), images()).units[0]
    values = [torch.randn(200, 8, 8, 8, generator=torch.Generator().manual_seed(seed)) for seed in range(20)]
    for target, output in zip(values[::2], values[1::2], strict=True):
        errors = []
        for order in (torch.contiguous_format, torch.channels_last):
            probe = ProbeError(unit, (as_rows(target.contiguous(memory_format=torch.channels_last)),))
            probe.add(0, (output.contiguous(memory_format=order),))
            errors.append(probe.total())
        assert errors[0] == errors[1]


def test_two_terms_of_one_class_are_told_apart():
    (host,) = clcalib.recipes.qdrop(steps=5).phases
    latest = LatestLosses(dataclasses.replace(host, terms=(Term(Reconstruction()), Term(Reconstruction(2.4)))))
    latest.add((0, 1), (torch.tensor(1.0), torch.tensor(2.0)))
    assert latest.losses() == {"Reconstruction": 1.0, "Reconstruction 2": 2.0}


def test_what_is_put_aside_to_find_ranges_is_gone_when_a_unit_is_optimised(monkeypatch):
    """It counts for the memory budget, so it must not lie beside the stores through all steps."""
    passing, alive = [], []
    allocate, optimise = StoreSpace.allocate, Walk.optimise

    def watched(self, *arguments, **options):
        block = allocate(self, *arguments, **options)
        if options.get("is_passing"):
            passing.append(weakref.ref(block))
        return block

    def counted(self, *arguments):
        alive.append(sum(reference() is not None for reference in passing))
        return optimise(self, *arguments)

    monkeypatch.setattr(StoreSpace, "allocate", watched)
    monkeypatch.setattr(Walk, "optimise", counted)
    run(clcalib.recipes.qdrop(steps=2), held_out=clcalib.CalibrationSet.from_tensor(images(16, seed=8)))
    assert passing
    assert alive == [0, 0, 0]


def test_a_term_with_an_interval_is_reported_as_it_was_last_computed():
    @dataclasses.dataclass(frozen=True)
    class Step(Constant):
        def __call__(self, batch: UnitBatch) -> torch.Tensor:
            return batch.output.sum() * 0 + batch.progress * 60

    told = []

    class Told(SilentObserver):
        def step(self, step, losses):
            told.append((step, losses.get("Step")))

    phase = Phase("p", 60, (Term(Reconstruction()), Term(Step(0.0), interval=4)), rounding_rate=1e-3)
    run(Recipe("test", phases=(phase,)), observer=Told())
    units = 3
    assert [step for step, _ in told] == [0, 25, 50, 59] * units
    assert [value for _, value in told] == pytest.approx([0, 24, 48, 56] * units)


class OddCut(nn.Module):
    """Whole numbers and a mask pass the cuts; a size is added; whole numbers are clamped; a square transposed layer."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.up = nn.ConvTranspose2d(8, 8, 3, padding=1)
        self.embedding, self.fc = nn.Embedding(4, 8), nn.Linear(8, 4)

    def forward(self, x):
        mean = x.mean((1, 2, 3))
        index = torch.clamp((mean * 40).long().abs(), max=3)
        x = torch.relu(self.a(x) + 0.001 * x.shape[0])
        x = torch.where((mean > 0)[:, None, None, None], torch.relu(self.b(x)), x)
        x = torch.relu(self.up(x))
        return self.fc(x.mean((2, 3)) + self.embedding(index))


@pytest.mark.parametrize("name", ["adaround", "qdrop"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_whole_numbers_masks_and_sizes_at_a_cut(name, precision):
    torch.manual_seed(0)
    recipe = clcalib.with_contrastive(clcalib.recipes.RECIPES[name](steps=4))
    calibration = clcalib.CalibrationSet.from_tensor(images())
    result = clcalib.quantize(
        OddCut().eval(), calibration, recipe=recipe, bits=BITS, precision=precision, measured_images=0
    )
    assert torch.isfinite(result.model(images())).all()


def test_a_phase_needs_a_term_at_every_step():
    with pytest.raises(ArgumentError, match="terms: expected one with interval 1"):
        Phase("p", 1, (Term(Reconstruction(), interval=2),))


def test_a_term_with_an_interval_is_computed_at_its_steps_only():
    seen = []

    @dataclasses.dataclass(frozen=True)
    class Counting(Constant):
        def __call__(self, batch: UnitBatch) -> torch.Tensor:
            seen.append(batch.progress)
            return batch.output.square().mean()

    phase = Phase("p", 6, (Term(Reconstruction()), Term(Counting(1.0), interval=3)), rounding_rate=1e-3)
    run(Recipe("test", phases=(phase,)))
    assert seen == [0.0, 0.5] * 3


def test_fisher_weights_have_mean_one_and_change_the_result():
    plain, fisher = (run(clcalib.recipes.brecq(steps=30, is_fisher_weighted=flag)) for flag in (False, True))
    assert not torch.equal(plain.model(images()), fisher.model(images()))


def test_the_fast_recipe_needs_fewer_steps_than_qdrop():
    fast, qdrop = (run(clcalib.recipes.RECIPES[name](steps=30)) for name in ("fast", "qdrop"))
    errors = [
        sum(unit.reconstruction_error.calibration.after for unit in result.record.units) for result in (fast, qdrop)
    ]
    assert errors[0] < errors[1]
