"""The quantized pass that a term may look at: nothing dropped in it, shared, and no effect on the training pass."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from tests.tiny import images, tiny

import clcalib
from clcalib.calibrate.recipe import Phase, Recipe, Term
from clcalib.calibrate.recipes import adaround, cl_calib, pd_quant, qdrop, with_contrastive
from clcalib.calibrate.streams import StepStream
from clcalib.calibrate.trainable import TrainableActivation
from clcalib.calibrate.unit_data import UnitData
from clcalib.errors import ArgumentError
from clcalib.fused.draws import ALL
from clcalib.objectives.batch import Need, UnitBatch
from clcalib.objectives.contrastive import Contrastive
from clcalib.objectives.lp import Reconstruction
from clcalib.objectives.prediction import Prediction, prediction_difference
from clcalib.objectives.rounding_penalty import RoundingPenalty

BITS = clcalib.Bits(2, 4)
UNITS = 3


def run(recipe, seed=0, **options):
    calibration = clcalib.CalibrationSet.from_tensor(images())
    options = {"measured_images": 0, "precision": "float32"} | options
    return clcalib.quantize(tiny(), calibration, recipe=recipe, bits=BITS, seed=seed, **options)


@dataclasses.dataclass(frozen=True)
class Watching:
    """A term of no effect that keeps what it saw."""

    seen: list
    weight: float = 0.0

    @property
    def needs(self):
        return frozenset()

    def __call__(self, batch: UnitBatch) -> torch.Tensor:
        self.seen.append(batch)
        return batch.output.sum() * self.weight


def with_term(host: Recipe, term: Term) -> Recipe:
    (phase,) = host.phases
    return dataclasses.replace(host, phases=(dataclasses.replace(phase, terms=(*phase.terms, term)),))


def test_a_pass_that_only_looks_on_changes_no_bit():
    host, seen = qdrop(steps=12), []
    watched = run(with_term(host, Term(Watching(seen), images=8, on="quantized")))
    assert len(seen) == 12 * UNITS
    for (name, tensor), other in zip(
        run(host).model.state_dict().items(), watched.model.state_dict().values(), strict=True
    ):
        assert torch.equal(tensor, other), name


def test_the_second_pass_is_the_quantized_unit_on_the_quantized_prefix():
    """In the first step of a unit, before anything was trained, it is computed by hand from the walk's own parts."""
    seen: list[UnitBatch] = []
    hand = []
    original = UnitData.batches

    def kept(self, outputs, index, progress, soft, terms, images=None):
        if "quantized" in outputs and len(hand) < UNITS * 2:
            hand.append((outputs["training"][0].detach(), outputs["quantized"][0].detach(), index))
        return original(self, outputs, index, progress, soft, terms, images)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(UnitData, "batches", kept)
        run(with_term(qdrop(steps=2), Term(Watching(seen), images=8, on="quantized")))
        dropped = dict(enumerate(hand))
        hand.clear()
        sure = qdrop(steps=2, keep_quantized_probability=1.0)
        run(with_term(sure, Term(Watching([]), images=8, on="quantized")))
    batch = seen[0]
    assert len(batch.output) == len(batch.target) == len(batch.sample_index) == 8
    assert torch.equal(batch.sample_index, dropped[0][2][:8])
    for number in range(2):  # the first unit: where nothing is dropped, both passes are one
        training, quantized, index = hand[number]
        torch.testing.assert_close(training[:8], quantized)
        assert torch.equal(index, dropped[number][2])
    torch.testing.assert_close(dropped[0][1], hand[0][1])
    third = dropped[2]  # the block: its input is mixed, its inside dropped
    assert not torch.allclose(third[0][:8], third[1])


def test_inside_the_pass_no_number_of_the_step_is_used_up():
    plain, watched = StepStream(0, 1, 0), StepStream(0, 1, 0)
    with watched.undropped():
        assert watched.draw(0.5) == watched.draw(0.0) == ALL
    assert plain.draw(0.5) == watched.draw(0.5) != ALL


def test_gradients_of_the_pass_reach_rounding_and_scales(monkeypatch):
    found = []
    original = UnitData.batches

    def kept(self, outputs, index, progress, soft, terms, images=None):
        found.append((outputs["quantized"][0], soft, terms))
        return original(self, outputs, index, progress, soft, terms, images)

    monkeypatch.setattr(UnitData, "batches", kept)
    scales = []
    forward = TrainableActivation.forward

    def kept_forward(self, x, residual=None):
        scales.append(self.scale)
        return forward(self, x, residual)

    monkeypatch.setattr(TrainableActivation, "forward", kept_forward)
    terms = (Term(Prediction(), on="quantized"),)
    phase = Phase("p", 1, terms, rounding_rate=1e-3, activation_rate=1e-3, keep_quantized_probability=0.5)
    run(Recipe("test", phases=(phase,)))
    assert len(found) == UNITS
    _, soft, _ = found[1]
    assert all(float(weight.v.grad.abs().sum()) > 0 for weight in soft)
    assert all(scale.grad is not None and float(scale.grad.abs()) > 0 for scale in scales)


def test_all_terms_of_a_pass_share_it(monkeypatch):
    passes, reads = [], []
    batches, read = UnitData.batches, UnitData._reads

    def counted(self, outputs, *rest):
        passes.append({name: len(state[0]) for name, state in outputs.items()})
        return batches(self, outputs, *rest)

    def counted_reads(self, outputs, terms, size):
        if terms:
            reads.append((len(terms), size))
        return read(self, outputs, terms, size)

    monkeypatch.setattr(UnitData, "batches", counted)
    monkeypatch.setattr(UnitData, "_reads", counted_reads)
    run(with_contrastive(pd_quant(steps=3, correction_steps=0)))
    probe, step = {"training": 48, "quantized": 48}, {"training": 32, "quantized": 16}
    assert passes == [probe, step, step, step] * UNITS
    assert reads == [(2, 48), (2, 16), (2, 16), (2, 16)] * UNITS


def test_the_contrastive_term_goes_where_the_host_looks():
    term = with_contrastive(pd_quant(steps=5)).phases[0].terms[-1]
    assert isinstance(term.objective, Contrastive)
    assert (term.on, term.images, term.interval) == ("quantized", 16, 1)
    assert with_contrastive(pd_quant(steps=5), images=4).phases[0].terms[-1].images == 4
    moved = with_contrastive(pd_quant(steps=5), on="training").phases[0].terms[-1]
    assert (moved.on, moved.images, moved.interval) == ("training", 8, 8)
    usual = with_contrastive(qdrop(steps=5)).phases[0].terms[-1]
    assert (usual.on, usual.images, usual.interval) == ("training", 8, 8)
    published = with_contrastive(qdrop(steps=5), interval=1, images="all").phases[0].terms[-1]
    assert (published.images, published.interval) == (None, 1)
    alone = with_contrastive(qdrop(steps=5), on="quantized", images=8).phases[0].terms[-1]
    assert (alone.on, alone.images) == ("quantized", 8)


def test_pd_quant_is_as_its_table_says():
    recipe = pd_quant()
    (joint,) = recipe.phases
    (own,) = qdrop().phases
    terms = (
        Term(Reconstruction()),
        Term(RoundingPenalty(), 0.01),
        Term(Prediction(4.0), 10.0, images=16, on="quantized"),
    )
    assert joint == dataclasses.replace(own, rounding_rate=3e-3, has_scale_gradient_factor=False, terms=terms)
    assert (recipe.unit, recipe.correction.steps, recipe.correction.rate, recipe.correction.strength) == (
        "block",
        500,
        1e-3,
        0.02,
    )
    assert recipe.needs >= {Need.LOGITS}
    assert pd_quant(temperature=1.0).phases[0].terms[-1].objective == Prediction(1.0)
    assert pd_quant(correction_steps=0).correction is None


def test_the_method_of_the_paper_is_pd_quant_with_the_term_in_every_step():
    paper = cl_calib()
    host = pd_quant()
    assert dataclasses.replace(paper, name="pd_quant+contrastive") == with_contrastive(host, interval=1, images="all")
    assert (paper.steps_per_unit, paper.correction) == (20_000, host.correction)
    (place,) = paper.contrastive["resolved"]
    assert place == {"phase": host.phases[0].name, "interval": 1, "images": 32, "on": "quantized"}
    settings = {"rounding_weight": 0.1, "temperature": 1.0, "correction_strength": 0.005, "batch_size": 16}
    short = cl_calib(steps=400, contrastive_weight=2.0, **settings)
    term = {"weight": 2.0, "interval": 1, "images": "all"}
    assert short.phases == with_contrastive(pd_quant(steps=400, **settings), **term).phases
    assert short.correction == pd_quant(steps=400, **settings).correction
    with pytest.raises(ArgumentError, match="^recipe: expected one without a contrastive term, got cl_calib"):
        with_contrastive(paper)


def test_pd_quant_beats_nearest_and_the_prediction_term_brings_the_prediction_nearer():
    def divergence(recipe, seed):
        logits, float_logits = run(recipe, seed).model(images()), tiny()(images()).detach()
        return float(prediction_difference(logits, float_logits, 1.0))

    def host(**settings):
        return pd_quant(steps=60, temperature=1.0, correction_steps=0, **settings)

    nearest = divergence(clcalib.recipes.nearest(), 0)
    without, ours = ([divergence(recipe, seed) for seed in (0, 2)] for recipe in (host(prediction_weight=1e-6), host()))
    assert max(ours) < nearest
    assert sum(ours) < 0.95 * sum(without)


def test_same_seed_same_result_and_another_seed_another():
    recipe = with_contrastive(pd_quant(steps=6, correction_steps=3))
    first, again, other = (run(recipe, seed).model(images()) for seed in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_a_term_may_be_on_the_quantized_pass_alone_and_with_an_interval():
    seen = []
    terms = (Term(Reconstruction(), on="quantized"), Term(Watching(seen), images=8, interval=3, on="quantized"))
    phase = Phase("p", 6, terms, rounding_rate=1e-3)
    run(Recipe("test", phases=(phase,)))
    assert [(batch.progress, len(batch.output)) for batch in seen] == [(0.0, 8), (0.5, 8)] * UNITS


@pytest.mark.parametrize(
    ("call", "argument"),
    [
        (lambda: Term(Reconstruction(), on="float"), "on"),
        (lambda: with_contrastive(adaround(steps=1), on="quantized"), "terms"),
        (lambda: pd_quant(steps=1, temperature=0), "temperature"),
        (lambda: pd_quant(steps=1, correction_steps=-1), "steps"),
    ],
)
def test_bad_settings_name_the_argument(call, argument):
    with pytest.raises(ArgumentError, match=argument):
        call()
