"""Which keys a query is compared with, and the terms on the unit's own output."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from tests.contracts.objective_contract import ObjectiveContract, make_batch
from tests.reference import contrastive as reference
from tests.tiny import images, tiny

import clcalib
from clcalib.errors import ArgumentError
from clcalib.objectives.batch import Need, TrainedObjective, UnitBatch
from clcalib.objectives.contrastive import Contrastive
from clcalib.objectives.critics import Cosine
from clcalib.objectives.keys import BATCH_KEYS, build_keys, outside_batch, outside_subset
from clcalib.objectives.local import LearnedHead, LocalContrastive, _first_equal, batch_of, identity_of

QDROP = clcalib.recipes.qdrop(steps=100)


class TestSubsetOfKeys(ObjectiveContract):
    keys = 4

    def make(self):
        return Contrastive(critic=Cosine(0.3), keys=self.keys)

    def inputs(self, batch):
        return [batch.reads[Need.FEATURES]]

    def with_inputs(self, batch, inputs):
        return dataclasses.replace(batch, reads={Need.FEATURES: inputs[0]})

    def candidates(self, count, index):
        """The query's own key, and the first of a fixed order that are others, until there are enough."""
        order = torch.randperm(count, generator=torch.Generator().manual_seed(0)).tolist()
        return [[own, *[key for key in order if key != own][: self.keys - 1]] for own in index]

    def reference(self, batch):
        keys, index = batch.keys[Need.FEATURES], batch.sample_index.tolist()
        queries = batch.reads[Need.FEATURES].detach().numpy()
        scores = reference.cosine_scores(queries, keys.directions.numpy(), 0.3)
        excluded = np.ones(scores.shape, dtype=bool)
        for row, chosen in enumerate(self.candidates(len(keys), index)):
            excluded[row, chosen] = False
        return reference.info_nce(scores, index, excluded)


class TestKeysOfTheBatch(TestSubsetOfKeys):
    keys = "batch"

    def candidates(self, count, index):
        return [index] * len(index)


class OnOutput(ObjectiveContract):
    def inputs(self, batch):
        return [batch.output]

    def with_inputs(self, batch, inputs):
        return dataclasses.replace(batch, output=inputs[0])

    def vectors(self, tensor):
        raise AssertionError("say what is compared")

    def reference(self, batch):
        queries, keys = (self.vectors(tensor.detach().numpy()) for tensor in (batch.output, batch.target))
        scores = reference.cosine_scores(queries, keys, 0.3)
        return reference.info_nce(scores, range(len(keys)), np.zeros(scores.shape, dtype=bool))


class TestActivations(OnOutput):
    def make(self):
        return LocalContrastive(critic=Cosine(0.3))

    def vectors(self, tensor):
        return tensor.reshape(len(tensor), -1)


class TestPooledActivations(OnOutput):
    def make(self):
        return LocalContrastive(critic=Cosine(0.3), is_pooled=True)

    def vectors(self, tensor):
        return tensor.mean((2, 3))


class TestLearnedHead(OnOutput):
    def make(self, dtype=torch.float64):
        like = torch.zeros(1, 3, 2, 2, dtype=dtype)
        return LearnedHead(critic=Cosine(0.3), width=5).for_unit(like, 1, torch.Generator().manual_seed(1))

    def vectors(self, tensor):
        return tensor.mean((2, 3)) @ self.make().weight.detach().numpy().T

    def test_scalar_of_the_batch_dtype_and_deterministic(self):
        batch = make_batch(dtype=torch.float32)
        first, second = (self.make(torch.float32)(batch) for _ in range(2))
        assert (first.shape, first.dtype) == ((), torch.float32)
        assert torch.equal(first, second)

    def test_gradient_reaches_the_head_from_both_sides(self):
        head = self.make()
        assert isinstance(head, TrainedObjective)
        batch = dataclasses.replace(make_batch(), output=make_batch().output.detach())
        head(batch).backward()
        assert head.parameters()[0].grad.abs().sum() > 0

    def test_without_a_unit_it_is_refused(self):
        with pytest.raises(ArgumentError, match="for_unit"):
            LearnedHead()(make_batch())


def test_every_query_has_as_many_candidates_as_asked_for():
    index = torch.arange(50)
    allowed = ~outside_subset(50, 8, index)
    assert allowed.sum(1).tolist() == [8] * 50
    assert bool(allowed[index, index].all())
    assert not bool(outside_subset(50, 50, index).any())


def test_a_large_batch_counts_as_several():
    index = torch.randperm(100, generator=torch.Generator().manual_seed(0))[: 2 * BATCH_KEYS]
    allowed = ~outside_batch(100, index)
    assert allowed.sum(1).tolist() == [BATCH_KEYS] * len(index)
    assert set(allowed[0].nonzero().flatten().tolist()) == set(index[:BATCH_KEYS].tolist())


@pytest.mark.parametrize(
    ("count", "size", "groups"), [(33, 32, [33]), (34, 32, [32, 2]), (16, 8, [8, 8]), (17, 8, [8, 9]), (5, 8, [5])]
)
def test_no_group_is_a_single_image(count, size, groups):
    allowed = ~outside_batch(50, torch.arange(count), size)
    assert allowed.sum(1).tolist() == [own for own in groups for _ in range(own)]


@pytest.mark.parametrize("host", [QDROP, clcalib.recipes.pd_quant(steps=100)], ids=["qdrop", "pd_quant"])
@pytest.mark.parametrize("settings", [{"keys": "batch"}, {"read": "activations"}, {"read": "learned_head"}], ids=str)
def test_relative_weights_are_measured_on_groups_of_a_steps_size(host, settings):
    """A term of equal scores is the logarithm of the number of keys, in a step and on the 256 images of the probe."""
    term = clcalib.with_contrastive(host, **settings).phases[0].terms[-1]
    size = term.images
    assert size == (16 if host.name == "pd_quant" else 8)
    assert batch_of(term.objective) == size
    own = torch.eye(256)
    for count in (size, 256):
        index = torch.arange(count)
        keys = build_keys(own, index.new_zeros(256), torch.arange(256))
        output = torch.ones(count, 256)  # equal queries, so equal scores
        batch = UnitBatch(output, own[:count], index, reads={Need.FEATURES: output}, keys={Need.FEATURES: keys})
        objective = term.objective
        if isinstance(objective, LearnedHead):
            objective = dataclasses.replace(objective.for_unit(own[:1], 1, torch.Generator()), weight=own)
        assert objective(batch).item() == pytest.approx(math.log(size), rel=1e-4)


def test_all_images_count_as_many_as_the_batch():
    term = (
        clcalib.with_contrastive(clcalib.recipes.qdrop(batch_size=24), keys="batch", images="all").phases[0].terms[-1]
    )
    assert batch_of(term.objective) == 24
    assert batch_of(clcalib.with_contrastive(QDROP).phases[0].terms[-1].objective) is None


def test_equal_outputs_are_no_negatives():
    batch = make_batch()
    target = batch.target.detach().clone()
    target[1] = target[0]
    objective = LocalContrastive(critic=Cosine(0.3))
    pair = dataclasses.replace(batch.first(2), target=target[:2])
    assert objective(pair).item() == pytest.approx(0, abs=1e-12)


def test_equal_keys_are_told_apart_alike_on_every_device():
    keys = torch.randn(9, 300)
    keys[3], keys[7], keys[8] = keys[0], keys[0], keys[5]
    ours, theirs = _first_equal(keys), identity_of(keys)
    assert ours.tolist() == [0, 1, 2, 0, 4, 5, 6, 0, 5]
    assert torch.equal(ours[:, None] == ours, theirs[:, None] == theirs)


@pytest.mark.parametrize("keys", [1, 0, True, "all", 2.5])
def test_keys_out_of_range_are_refused(keys):
    with pytest.raises(ArgumentError, match="keys"):
        Contrastive(keys=keys)


@pytest.mark.parametrize("settings", [{"keys": 8}, {"false_negatives": "similar"}])
def test_what_the_units_own_output_cannot_do_is_refused(settings):
    with pytest.raises(ArgumentError, match=next(iter(settings))):
        clcalib.with_contrastive(QDROP, read="activations", **settings)


def bounds(**settings) -> float:
    """The bounds of all units on the calibration images, added up."""
    recipe = clcalib.with_contrastive(QDROP, weight=30.0, **settings) if settings else QDROP
    calibration = clcalib.CalibrationSet.from_tensor(images(64))
    result = clcalib.quantize(tiny(), calibration, recipe=recipe, bits=clcalib.Bits(2, 2), seed=0)
    return sum(unit.mutual_information_bound.calibration.after for unit in result.record.units)


@pytest.mark.parametrize(
    "settings",
    [
        {"keys": 8},
        {"keys": "batch"},
        {"read": "activations"},
        {"read": "pooled_activations"},
        {"read": "learned_head"},
    ],
    ids=str,
)
def test_each_form_raises_the_bound_and_repeats_bit_for_bit(settings):
    value = bounds(**settings)
    assert value > bounds()
    assert value == bounds(**settings)
