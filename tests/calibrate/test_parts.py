"""Streams, schedules, mixing and the recipes' data."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from clcalib.calibrate.codes import CodeGrid
from clcalib.calibrate.mixing import mix, mix_rows
from clcalib.calibrate.recipe import Phase, Recipe, Term
from clcalib.calibrate.recipes import (
    RECIPES,
    adaround,
    brecq,
    fast,
    genie_m,
    glf_q,
    gptq,
    pd_quant,
    qdrop,
    with_contrastive,
)
from clcalib.calibrate.recipes.cl_calib import SHARE
from clcalib.calibrate.schedules import SCHEDULES, WARM_UP, cosine, short_run_rate, warm_up_cosine
from clcalib.calibrate.space import StoreSpace
from clcalib.calibrate.store import RowsWriter
from clcalib.calibrate.streams import StepStream, stream
from clcalib.errors import ArgumentError
from clcalib.fused import calls
from clcalib.fused.draws import ALL, Draw
from clcalib.objectives.batch import Need
from clcalib.objectives.features import FeatureReconstruction
from clcalib.objectives.fisher import FisherReconstruction
from clcalib.objectives.lp import Reconstruction
from clcalib.objectives.rounding_penalty import RoundingPenalty


def draw(generator):
    return torch.rand(4, generator=generator).tolist()


def test_streams_depend_on_every_counter_and_on_nothing_else():
    assert draw(stream(0, 1, 2)) == draw(stream(0, 1, 2))
    others = [draw(stream(*counters)) for counters in [(0, 1, 2), (1, 1, 2), (0, 2, 2), (0, 1, 3), (0, 12), (0, 1)]]
    assert len({tuple(numbers) for numbers in others}) == len(others)


def test_a_step_can_be_started_again_at_any_step():
    straight, jumped = StepStream(0, 1, 0), StepStream(0, 1, 0)
    for step in range(5):
        straight.advance(step)
    jumped.advance(4)
    assert straight.batch(50, 8).tolist() == jumped.batch(50, 8).tolist()
    assert straight.draw(0.5) == jumped.draw(0.5)


def test_cosine_falls_from_one_to_zero():
    values = [cosine(step, 10) for step in range(11)]
    assert values[0] == 1.0
    assert values[5] == pytest.approx(0.5)
    assert values[10] == pytest.approx(0.0)
    assert values == sorted(values, reverse=True)


def test_the_rate_warms_up_and_then_falls_as_the_cosine():
    steps, rising = 200, round(200 * WARM_UP)
    values = [warm_up_cosine(step, steps) for step in range(steps)]
    expected = [(step + 1) / (rising + 1) for step in range(rising)]
    expected += [0.5 + 0.5 * math.cos(math.pi * step / (steps - rising)) for step in range(steps - rising)]
    assert values == pytest.approx(expected)
    assert max(values) == values[rising] == 1.0


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("steps", [1, 2, 7])
def test_every_schedule_is_a_share_of_the_rate_at_every_step(name, steps):
    assert all(0 < SCHEDULES[name](step, steps) <= 1 for step in range(steps))


def test_short_runs_are_faster_and_long_ones_are_the_papers():
    assert short_run_rate(1e-3, 20_000, 20_000, 1e-2) == 1e-3
    assert short_run_rate(1e-3, 40_000, 20_000, 1e-2) == 1e-3
    assert short_run_rate(1e-3, 5_000, 20_000, 1e-2) == pytest.approx(2e-3)
    assert short_run_rate(1e-3, 1, 20_000, 1e-2) == 1e-2


def test_mix_takes_the_given_share():
    quantized, floating = torch.ones(200, 100), torch.zeros(200, 100)
    mixed = mix(quantized, floating, Draw(7, 8, 64))
    assert set(mixed.unique().tolist()) == {0.0, 1.0}
    assert float(mixed.mean()) == pytest.approx(0.25, abs=0.02)
    assert mix(quantized, floating, ALL) is quantized
    assert mix(quantized, floating, Draw(7, 8, 0)) is floating


def test_mix_keeps_the_memory_order():
    quantized = torch.ones(2, 4, 6, 6).contiguous(memory_format=torch.channels_last)
    mixed = mix(quantized, torch.zeros_like(quantized), Draw(7, 8, 128))
    assert mixed.is_contiguous(memory_format=torch.channels_last)


def stored(values, grid=None, dtype=torch.float32):
    writer = RowsWriter(StoreSpace(), len(values), grid, dtype)
    writer.append(values)
    return writer.finish()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("draw", [ALL, Draw(7, 8, 128), Draw(7, 8, 0)])
@pytest.mark.parametrize("bits", [None, 4, 8])
@pytest.mark.parametrize("cached", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(4, 6, 5), (3, 5, 5), (7,)])
def test_rows_are_gathered_and_mixed_in_one_pass_as_in_two(shape, cached, bits, draw, dtype, monkeypatch):
    values = torch.randint(-3, 4, (9, *shape)).float() * 0.3
    grid = None if bits is None else CodeGrid(torch.tensor(0.3).item(), 2.0, -4, bits)
    floating = stored(torch.randn(9, *shape), dtype=cached)
    quantized = stored(values, grid, dtype=torch.float32 if bits else cached)
    assert quantized.grid == grid
    index = torch.tensor([8, 0, 3])
    rows = mix_rows(quantized, floating, index, draw, dtype)
    assert torch.equal(rows, mix(quantized.take(index), floating.take(index), draw).to(dtype))
    assert rows.shape == (3, *shape)
    monkeypatch.setattr(calls, "is_available", lambda: False)
    assert torch.equal(rows, mix_rows(quantized, floating, index, draw, dtype))


def test_rows_in_files_are_read_once_where_nothing_is_mixed(monkeypatch):
    def in_files(values):
        writer = RowsWriter(StoreSpace(budget=0), len(values), None, torch.float32)
        writer.append(values)
        return writer.finish()

    values = torch.randn(2, 9, 4, 6, 6)
    quantized, floating = map(in_files, values)
    assert quantized.storage is None
    read, take = [], type(quantized).take
    monkeypatch.setattr(type(quantized), "take", lambda self, index: (read.append(self), take(self, index))[1])
    index = torch.tensor([8, 0, 3])
    for draw, wanted, rows in ((ALL, values[0], quantized), (Draw(7, 8, 0), values[1], floating)):
        assert torch.equal(mix_rows(quantized, floating, index, draw), wanted[index])
        assert read == [rows]
        read.clear()


def test_papers_differ_as_their_table_says():
    (joint,) = qdrop().phases
    assert (joint.steps, joint.rounding_rate, joint.activation_rate) == (20_000, 1e-3, 4e-5)
    assert (joint.quantized_input_probability, joint.keep_quantized_probability) == (0.5, 0.5)
    assert joint.terms == (Term(Reconstruction()), Term(RoundingPenalty(), 0.01))
    rounding, scales = brecq().phases
    assert (rounding.activations, rounding.rounding_rate, rounding.activation_rate) == ("float", 1e-3, None)
    assert (scales.steps, scales.activation_rate, scales.rounding_rate) == (5_000, 4e-4, None)
    assert scales.quantized_input_probability == 0.0
    assert scales.terms == (Term(Reconstruction(2.4)),)
    assert brecq().skips_first_unit
    assert FisherReconstruction() in [term.objective for term in brecq(is_fisher_weighted=True).phases[0].terms]
    (every,) = genie_m().phases
    assert (every.rounding_rate, every.weight_scale_rate, every.activation_rate) == (1e-3, 1e-3, 4e-5)
    settings = {"name": every.name, "weight_scale_rate": 1e-3, "has_scale_gradient_factor": False}
    assert dataclasses.replace(joint, **settings) == every
    (feature,) = glf_q().phases
    assert (feature.steps, feature.rounding, feature.weight_scale_rate) == (3_000, "straight_through", 2e-2)
    assert feature.terms == (Term(Reconstruction()), Term(FeatureReconstruction(), is_relative=True))
    assert adaround().unit == "layer"
    assert adaround().steps_per_unit == 10_000
    assert {recipe().unit for name, recipe in RECIPES.items() if name not in ("adaround",)} == {"block"}


@pytest.mark.parametrize("name", [name for name in RECIPES if RECIPES[name]().phases and name != "cl_calib"])
def test_the_contrastive_term_goes_on_any_host(name):
    host = RECIPES[name](steps=10)
    recipe = with_contrastive(host, weight=2.0)
    assert recipe.name == f"{name}+contrastive"
    assert Need.FEATURES in recipe.needs
    for phase, own in zip(recipe.phases, host.phases, strict=True):
        assert phase.terms[:-1] == own.terms
        assert phase.terms[-1].weight == pytest.approx(2.0 * SHARE)
        assert dataclasses.replace(phase, terms=own.terms) == own


@pytest.mark.parametrize(
    ("call", "argument"),
    [
        (lambda: with_contrastive(RECIPES["nearest"]()), "recipe"),
        (lambda: with_contrastive(gptq()), "recipe"),
        (lambda: Recipe("r", start="float"), "start"),
        (lambda: Phase("p", 1, (), rounding_schedule="linear"), "rounding_schedule"),
        (lambda: Phase("p", 1, (), start_share=1.0), "start_share"),
        (lambda: fast(start_share=-0.1), "start_share"),
        (lambda: with_contrastive(with_contrastive(qdrop(steps=1))), "recipe"),
        (lambda: with_contrastive(qdrop(steps=1), weight=0), "weight"),
        (lambda: with_contrastive(qdrop(steps=1), critic="dot"), "critic"),
        (lambda: with_contrastive(qdrop(steps=1), temperature=-1), "temperature"),
        (lambda: with_contrastive(qdrop(steps=1), interval=0), "interval"),
        (lambda: with_contrastive(qdrop(steps=1), share=-1), "share"),
        (lambda: with_contrastive(qdrop(steps=1), images="some"), "images"),
        (
            lambda: with_contrastive(qdrop(steps=1), read="foo"),
            "read: expected one of features, logits, activations, pooled_activations, learned_head, got 'foo'",
        ),
        (lambda: pd_quant(correction_steps=-1), "^correction_steps: expected a whole number of at least 0"),
        (lambda: pd_quant(correction_steps=1.5), "^correction_steps: expected"),
        (lambda: pd_quant(correction_strength=0.0), "^correction_strength: expected a positive number"),
        (lambda: qdrop(steps=0), "steps"),
        (lambda: qdrop(steps=1.5), "steps"),
        (lambda: qdrop(steps=1, batch_size=0), "batch_size"),
        (lambda: qdrop(steps=1, rounding_rate=-1.0), "rounding_rate"),
        (lambda: qdrop(steps=1, keep_quantized_probability=1.5), "probability"),
        (lambda: Term(RoundingPenalty(warm_up=1.0)), "warm_up"),
    ],
)
def test_bad_settings_name_the_argument(call, argument):
    with pytest.raises(ArgumentError, match=argument):
        call()


def test_a_recipe_is_a_value():
    assert qdrop(steps=5) == qdrop(steps=5)
    assert Recipe("none").needs == frozenset()
    assert Phase("p", 3, ()).needs == frozenset()
