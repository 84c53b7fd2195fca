"""Steps that are recorded and played back, emulated on the CPU: the same bits as the steps of the host."""

from __future__ import annotations

import contextlib
import dataclasses
import math

import pytest
import torch
from tests.calibrate.emulated_graph import EmulatedGraphs
from tests.tiny import images, tiny

import clcalib
from clcalib.calibrate import device_step
from clcalib.calibrate.device_step import StepNumbers
from clcalib.calibrate.observer import SilentObserver
from clcalib.calibrate.recipe import Term
from clcalib.calibrate.streams import StepStream
from clcalib.errors import SlowPathWarning
from clcalib.fused import calls
from clcalib.fused.draws import keep_mask
from clcalib.objectives import local
from clcalib.quant import passes

STEPS = 16
recipes = clcalib.recipes
RECIPES = {
    "qdrop": recipes.qdrop(steps=STEPS),
    "fast": recipes.fast(steps=STEPS),
    "contrastive": clcalib.with_contrastive(recipes.qdrop(steps=2 * STEPS), interval=4, images=8),
    "subset": clcalib.with_contrastive(recipes.qdrop(steps=STEPS), interval=2, keys=16, loss="normalised_crd_nce"),
    "pd_quant": clcalib.with_contrastive(recipes.pd_quant(steps=STEPS, correction_steps=3)),
    "brecq": recipes.brecq(steps=STEPS, activation_steps=STEPS, is_fisher_weighted=True),
    "genie_m": recipes.genie_m(steps=STEPS),
    "straight_through": recipes.straight_through(steps=STEPS),
    "tuning": clcalib.with_tuning(recipes.nearest(), steps=STEPS, augmentation=()),
    "last_phase": clcalib.with_last_phase(recipes.nearest(), steps=STEPS, prediction_weight=1.0),
}
HOST: dict[str, tuple] = {}


class Emulation:
    """Whole runs on the CPU as if it were the GPU, on PyTorch's own passes, which are what a tape can see."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.patch, self.made = patch, list[EmulatedGraphs]()

    def run(self, recipe, recorder=EmulatedGraphs, **options) -> tuple[dict[str, torch.Tensor], list[tuple[int, dict]]]:
        """The model's tensors, and what was reported."""

        def make(device):
            self.made.append(recorder(device))
            return self.made[-1]

        reports: list[tuple[int, dict]] = []

        class Watching(SilentObserver):
            def step(self, step, losses):
                reports.append((step, dict(losses)))

        with self.patch.context() as patch:
            patch.setattr(calls, "is_available", lambda: False)
            patch.setattr(passes, "_reads_numbers", lambda tensor: False)
            patch.setattr(device_step, "LEAST_LEFT", 0)
            if recorder is not None:
                patch.setitem(device_step.RECORDERS, "cpu", make)
            settings = {
                "bits": clcalib.Bits(2, 4),
                "measured_images": 0,
                "precision": "float32",
                "observer": Watching(),
            }
            calibration = clcalib.CalibrationSet.from_tensor(images())
            result = clcalib.quantize(tiny(), calibration, recipe=recipe, **{**settings, **options})
        return result.model.state_dict(), reports

    def on_host(self, name: str):
        """What the loop of every other device gives, for a recipe of the table."""
        if name not in HOST:
            HOST[name] = self.run(RECIPES[name], recorder=None)
        return HOST[name]

    @property
    def played(self) -> int:
        return sum(graphs.played for graphs in self.made)


@pytest.fixture
def emulation(monkeypatch):
    monkeypatch.delenv("CLCALIB_GRAPHS", raising=False)
    device_step._tell.cache_clear()
    yield Emulation(monkeypatch)
    device_step._tell.cache_clear()


def assert_same(one, other) -> None:
    assert one[1] == other[1]
    for name, tensor in one[0].items():
        assert torch.equal(tensor, other[0][name]), name


@pytest.mark.parametrize("name", RECIPES)
def test_recorded_steps_are_the_steps_of_the_host_bit_for_bit(emulation, name):
    recorded = emulation.run(RECIPES[name])
    assert emulation.played > sum(graphs.recorded for graphs in emulation.made) > 0
    assert_same(recorded, emulation.on_host(name))


@pytest.mark.parametrize("read", ["activations", "learned_head"])
def test_terms_on_the_units_own_output_are_recorded_too(emulation, monkeypatch, read):
    """On a GPU their keys are told apart in another way, here too."""
    monkeypatch.setattr(local, "identity_of", local._first_equal)
    recipe = clcalib.with_contrastive(recipes.qdrop(steps=STEPS), interval=3, images=8, read=read)
    recorded = emulation.run(recipe)
    assert emulation.played > 0
    assert_same(recorded, emulation.run(recipe, recorder=None))


def told(emulation, match, played=0, **options):
    with pytest.warns(SlowPathWarning, match=match) as warned:
        found = emulation.run(**options)
    assert len([one for one in warned if one.category is SlowPathWarning]) == 1
    assert emulation.played == played
    return found


class Fails(EmulatedGraphs):
    def record(self, work):
        super().record(work)
        raise RuntimeError("operation not permitted when stream is capturing")


class DoesNothing(EmulatedGraphs):
    def record(self, work):
        return lambda: None


@pytest.mark.parametrize(("recorder", "reason"), [(Fails, "not permitted"), (DoesNothing, "gives other bits")])
def test_what_cannot_be_recorded_runs_as_it_is_and_is_told_once(emulation, recorder, reason):
    found = told(emulation, reason, recipe=RECIPES["qdrop"], recorder=recorder)
    assert_same(found, emulation.on_host("qdrop"))


@dataclasses.dataclass(frozen=True)
class HalfTime:
    """A user's objective that decides by the progress in Python."""

    @property
    def needs(self):
        return frozenset()

    def __call__(self, batch):
        return batch.output.square().mean() * (1.0 if batch.progress < 0.5 else 0.0)


def test_an_objective_that_decides_in_python_keeps_its_steps_from_being_recorded(emulation):
    host = recipes.qdrop(steps=8)
    phase = dataclasses.replace(host.phases[0], terms=(*host.phases[0].terms, Term(HalfTime())))
    recipe = dataclasses.replace(host, phases=(phase,))
    found = told(emulation, "synchronizing operation", recipe=recipe)
    assert_same(found, emulation.run(recipe, recorder=None))


def test_rows_in_files_keep_steps_from_being_recorded(emulation):
    options = {"recipe": recipes.qdrop(steps=8), "memory_budget": 1}
    assert_same(told(emulation, "are in files", **options), emulation.run(recorder=None, **options))


def test_two_terms_of_one_class_are_told_apart_on_a_device_too(emulation):
    (phase,) = recipes.qdrop(steps=STEPS).phases
    phase = dataclasses.replace(phase, terms=(*phase.terms, Term(phase.terms[0].objective, 0.5)))
    _, reports = emulation.run(dataclasses.replace(recipes.qdrop(steps=STEPS), phases=(phase,)))
    assert {"Reconstruction", "Reconstruction 2"} <= reports[-1][1].keys()


def test_numbers_that_are_not_finite_are_the_same_where_they_are_in_the_same_places():
    nan = torch.tensor([1.0, math.nan])
    assert device_step._is_same(nan, nan.clone())
    assert not device_step._is_same(nan, torch.tensor([math.nan, 1.0]))
    assert not device_step._is_same(nan, torch.tensor([1.0, 2.0]))


def test_it_can_be_switched_off_in_silence(emulation, monkeypatch):
    monkeypatch.setenv("CLCALIB_GRAPHS", "0")
    found = emulation.run(RECIPES["qdrop"])
    assert not emulation.made
    assert_same(found, emulation.on_host("qdrop"))


def test_the_emulation_freezes_numbers_and_reads_tensors():
    total, tensor, number = torch.zeros(2), torch.tensor(2.0), [3.0]
    play = EmulatedGraphs(torch.device("cpu")).record(lambda: total.add_(tensor * number[0]))
    assert total.tolist() == [0.0, 0.0]
    number[0] = 100.0
    tensor.fill_(10.0)
    play()
    play()
    assert total.tolist() == [60.0, 60.0]


def test_a_number_that_a_recording_would_freeze_is_found_out(emulation, monkeypatch):
    monkeypatch.setattr(StepStream, "reading", lambda self, words: contextlib.nullcontext())
    found = told(emulation, "gives other bits", recipe=RECIPES["qdrop"], played=3)  # to be checked, in each unit
    assert_same(found, emulation.on_host("qdrop"))


def test_each_kind_of_step_is_recorded_once(emulation):
    """With and without the contrastive term, before and after the penalty begins, for each of the three units."""
    emulation.run(clcalib.with_contrastive(recipes.qdrop(steps=40), interval=2, images=8))
    assert [graphs.recorded for graphs in emulation.made] == [4, 4, 4]


def test_a_phase_of_few_steps_is_not_recorded(emulation, monkeypatch):
    step = device_step.LEAST_LEFT
    assert step > STEPS
    monkeypatch.setattr(device_step.DeviceSteps, "_record", None)
    with monkeypatch.context() as patch:
        patch.setitem(device_step.RECORDERS, "cpu", EmulatedGraphs)
        calibration = clcalib.CalibrationSet.from_tensor(images())
        clcalib.quantize(tiny(), calibration, recipe=RECIPES["qdrop"], bits=clcalib.Bits(2, 4), measured_images=0)


@pytest.mark.parametrize("seed", [0, 7])
def test_the_device_draws_what_the_host_draws(seed):
    random = StepStream(seed, 3, 1)
    numbers = StepNumbers(torch.device("cpu"), batch=8, draws=5, terms=2, groups=[2, 1])
    for step in (0, 1, 17):
        random.advance(step)
        index = random.batch(50, 8)
        expected = [random.draw(0.5) for _ in range(5)]
        numbers.write(index, random.numbers(5), [0.25, 20.0, 0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
        random.advance(step)
        with random.reading(numbers.words):
            found = [random.draw(0.5) for _ in range(5)]
        assert torch.equal(numbers.index, index)
        for one, other in zip(found, expected, strict=True):
            assert isinstance(one.key, torch.Tensor)
            assert (int(one.key) % 2**32, int(one.tweak) % 2**32, one.threshold) == other
            assert torch.equal(keep_mask((999,), one), keep_mask((999,), other))
        assert random.draw(0.5).key != expected[0].key  # outside, the host's own go on
    assert (float(numbers.progress), numbers.annealed.tolist()) == (0.25, [20.0, 0.0])
    assert [part.tolist() for part in numbers.factors] == [[[1.0, 2.0], [3.0, 4.0]], [[5.0, 6.0]]]
