"""Every objective against its loop-level reference, through the shared battery."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from tests.contracts.objective_contract import ObjectiveContract, make_batch
from tests.reference import contrastive as reference
from tests.reference import reconstruction

from clcalib.calibrate.recipes import scale_only
from clcalib.errors import ArgumentError
from clcalib.fused.soft import rectified_sigmoid
from clcalib.objectives.batch import AnnealedObjective, Need
from clcalib.objectives.contrastive import LOSSES, Contrastive
from clcalib.objectives.critics import CRITICS
from clcalib.objectives.features import FeatureReconstruction
from clcalib.objectives.fisher import FisherReconstruction
from clcalib.objectives.keys import FALSE_NEGATIVES, build_keys
from clcalib.objectives.lp import Reconstruction, lp_error
from clcalib.objectives.prediction import Prediction
from clcalib.objectives.rounding_penalty import RoundingPenalty, annealed_beta


def numpy(tensor):
    return tensor.detach().numpy()


class OnOutput(ObjectiveContract):
    def inputs(self, batch):
        return [batch.output]

    def with_inputs(self, batch, inputs):
        return dataclasses.replace(batch, output=inputs[0])


class TestReconstruction(OnOutput):
    def make(self):
        return Reconstruction()

    def reference(self, batch):
        return reconstruction.lp_error(numpy(batch.output), numpy(batch.target), 2.0)


class TestReconstructionExponent(OnOutput):
    def make(self):
        return Reconstruction(2.4)

    def reference(self, batch):
        return reconstruction.lp_error(numpy(batch.output), numpy(batch.target), 2.4)


class TestFisher(OnOutput):
    def make(self):
        return FisherReconstruction()

    def reference(self, batch):
        return reconstruction.fisher_error(numpy(batch.output), numpy(batch.target), numpy(batch.float_gradient))


class TestRoundingPenalty(ObjectiveContract):
    def make(self):
        return RoundingPenalty()

    def reference(self, batch):
        beta = annealed_beta(batch.progress, 0.2, 20, 2)
        return reconstruction.rounding_penalty([numpy(rectified_sigmoid(v)) for v in batch.rounding], beta)

    def inputs(self, batch):
        return list(batch.rounding)

    def with_inputs(self, batch, inputs):
        return dataclasses.replace(batch, rounding=tuple(inputs))


class TestPrediction(ObjectiveContract):
    def make(self):
        return Prediction(3.0)

    def reference(self, batch):
        floats = numpy(batch.keys[Need.LOGITS].values[batch.sample_index])
        return reconstruction.prediction_difference(numpy(batch.reads[Need.LOGITS]), floats, 3.0)

    def inputs(self, batch):
        return [batch.reads[Need.LOGITS]]

    def with_inputs(self, batch, inputs):
        return dataclasses.replace(batch, reads={Need.LOGITS: inputs[0]})


class TestFeatureReconstruction(ObjectiveContract):
    def make(self):
        return FeatureReconstruction()

    def reference(self, batch):
        floats = numpy(batch.keys[Need.FEATURES].values[batch.sample_index])
        return reconstruction.feature_error(numpy(batch.reads[Need.FEATURES]), floats)

    def inputs(self, batch):
        return [batch.reads[Need.FEATURES]]

    def with_inputs(self, batch, inputs):
        return dataclasses.replace(batch, reads={Need.FEATURES: inputs[0]})


class ContrastiveContract(ObjectiveContract):
    loss, read, critic, false_negatives = "info_nce", "features", "cosine", "keep"

    def make(self):
        return Contrastive(self.loss, self.read, CRITICS[self.critic](0.3), self.false_negatives)

    def inputs(self, batch):
        return [batch.reads[Need(self.read)]]

    def with_inputs(self, batch, inputs):
        return dataclasses.replace(batch, reads={Need(self.read): inputs[0]})

    def reference(self, batch):
        keys, index = batch.keys[Need(self.read)], batch.sample_index.tolist()
        if self.critic == "cosine":
            scores = reference.cosine_scores(numpy(batch.reads[Need(self.read)]), numpy(keys.directions), 0.3)
        else:
            # Keys that lie at mean + direction have the centred directions of the set.
            points = numpy(keys.centred_directions) + numpy(keys.mean)
            scores = reference.cosine_scores(numpy(batch.reads[Need(self.read)]), points, 0.3, numpy(keys.mean))
        excluded = np.zeros(scores.shape, dtype=bool)
        for row, own in enumerate(index):
            for j in range(len(keys)):
                same = keys.predictions[own] == keys.predictions[j]
                close = float(keys.directions[own].detach() @ keys.directions[j].detach()) > 0.9
                excluded[row, j] = {"keep": False, "same_prediction": bool(same), "similar": close}[
                    self.false_negatives
                ]
        return getattr(reference, self.loss)(scores, index, excluded)


class TestInfoNce(ContrastiveContract):
    pass


class TestInfoNceMasked(ContrastiveContract):
    false_negatives = "same_prediction"


class TestInfoNceSimilar(ContrastiveContract):
    false_negatives = "similar"


class TestInfoNceCentredLogits(ContrastiveContract):
    critic, read = "centred_cosine", "logits"


class TestSigmoidNce(ContrastiveContract):
    loss = "sigmoid_nce"


class TestSigmoidNceMasked(ContrastiveContract):
    loss, false_negatives = "sigmoid_nce", "same_prediction"


class TestCrdNce(ContrastiveContract):
    loss = "crd_nce"


class TestCrdNceMasked(ContrastiveContract):
    loss, false_negatives = "crd_nce", "same_prediction"


class TestNormalisedCrdNce(ContrastiveContract):
    loss = "normalised_crd_nce"

    def test_gradient(self):
        """The constant is held, so the gradient is that of ``crd_nce`` on scores shifted by it."""
        batch = make_batch()
        objective = self.make()
        own = torch.autograd.grad(objective(batch), self.inputs(batch))[0]
        keys, queries = batch.keys[Need.FEATURES], batch.reads[Need.FEATURES]
        scores = objective.critic(queries, keys)
        constant = scores.detach().exp().mean().log()
        excluded = torch.zeros_like(scores, dtype=torch.bool)
        held = LOSSES["crd_nce"](scores - constant, batch.sample_index, excluded)
        torch.testing.assert_close(own, torch.autograd.grad(held, queries)[0])


@pytest.mark.parametrize("loss", sorted(LOSSES))
def test_duplicates_are_no_negatives(loss):
    """A copy of the query's image among the keys changes nothing but the number of keys."""
    raw = torch.randn(5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    plain = build_keys(raw, torch.arange(5), torch.arange(5))
    doubled = build_keys(torch.cat([raw, raw[:1]]), torch.tensor([0, 1, 2, 3, 4, 0]), torch.tensor([0, 1, 2, 3, 4, 0]))
    index = torch.tensor([0])
    masks = [FALSE_NEGATIVES["keep"](keys, index) for keys in (plain, doubled)]
    assert masks[1].tolist() == [[True, False, False, False, False, True]]
    if loss in ("info_nce", "sigmoid_nce"):
        values = []
        for keys, mask in zip((plain, doubled), masks, strict=True):
            scores = CRITICS["cosine"](0.2)(raw[:1] + 0.1, keys)
            values.append(LOSSES[loss](scores, index, mask))
        torch.testing.assert_close(values[0], values[1])


def test_keys_of_one_distinct_image_serve_terms_that_need_no_negatives():
    keys = build_keys(torch.ones(3, 2), torch.zeros(3, dtype=torch.long), torch.zeros(3, dtype=torch.long))
    assert keys.has_copies
    assert all(bool(part.isfinite().all()) for part in (keys.values, keys.directions, keys.centred_directions))


@pytest.mark.parametrize("exponent", [0.0, -2.0, float("nan"), float("inf")])
def test_the_exponent_must_be_positive(exponent):
    with pytest.raises(ArgumentError, match="exponent: expected a positive number"):
        Reconstruction(exponent)
    with pytest.raises(ArgumentError, match="exponent: expected a positive number"):
        scale_only(exponent=exponent)


@pytest.mark.parametrize(("argument", "value"), [("loss", "infonce"), ("read", "pixels"), ("false_negatives", "none")])
def test_unknown_names_are_refused(argument, value):
    with pytest.raises(ArgumentError, match=argument):
        Contrastive(**{argument: value})


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan"), float("inf")])
def test_temperature_must_be_positive(temperature):
    with pytest.raises(ArgumentError, match="temperature"):
        CRITICS["cosine"](temperature)


def test_penalty_waits_for_the_warm_up():
    assert float(RoundingPenalty()(make_batch(progress=0.1))) == 0.0
    assert RoundingPenalty()(make_batch(progress=0.2)).item() > 0.0
    assert RoundingPenalty().annealed(0.1) is None


def test_penalty_takes_beta_from_a_tensor_with_the_same_bits():
    """As on a GPU, where a number of Python's would be frozen; the progress is not looked at then."""
    penalty = RoundingPenalty()
    assert isinstance(penalty, AnnealedObjective)
    for progress in (0.2, 0.37, 0.99):
        beta = torch.tensor(penalty.annealed(progress), dtype=torch.float64)
        plain, annealed = make_batch(progress=progress), make_batch(progress=float("nan"))
        annealed = dataclasses.replace(annealed, annealed=beta)
        values = [penalty(batch) for batch in (plain, annealed)]
        assert torch.equal(*values)
        gradients = [torch.autograd.grad(v, b.rounding)[0] for v, b in zip(values, (plain, annealed), strict=True)]
        assert torch.equal(*gradients)


def test_beta_runs_from_start_to_end():
    assert annealed_beta(0.2, 0.2, 20, 2) == 20
    assert annealed_beta(0.6, 0.2, 20, 2) == pytest.approx(11)
    assert annealed_beta(1.0, 0.2, 20, 2) == 2


def test_tokens_have_their_channels_last():
    output = torch.randn(2, 5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = reconstruction.lp_error(output.numpy(), np.zeros((2, 5, 3)), 2.0)
    assert float(lp_error(output, torch.zeros_like(output), channel_axis=2)) == pytest.approx(expected)


def test_crd_with_the_plain_constant_pushes_equal_features_apart():
    """The collapse that the normalising constant and the masks are there for.

    When all features are nearly equal, the plain critic is near one for every pair, so the negatives dominate; with the
    constant, the loss is near its value at chance.
    """
    scores = torch.full((4, 100), 9.0, dtype=torch.float64)
    positive, excluded = torch.arange(4), torch.zeros(4, 100, dtype=torch.bool)
    plain = LOSSES["crd_nce"](scores, positive, excluded)
    normalised = LOSSES["normalised_crd_nce"](scores, positive, excluded)
    assert float(plain) > 100 * 8
    assert float(normalised) < 100
