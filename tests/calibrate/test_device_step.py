"""Steps that are recorded and played back, emulated on the CPU: the same bits as the steps of the host."""

from __future__ import annotations

import dataclasses
import warnings

import pytest
import torch
from tests.calibrate.emulated_graph import EmulatedGraphs
from tests.tiny import images, tiny

import clcalib
from clcalib.calibrate import device_step
from clcalib.calibrate.device_step import StepNumbers
from clcalib.calibrate.observer import SilentObserver
from clcalib.calibrate.streams import StepStream
from clcalib.calibrate.trainable import TrainableActivation
from clcalib.errors import SlowPathWarning
from clcalib.fused import calls
from clcalib.fused.draws import keep_mask
from clcalib.quant import passes

STEPS = 16
recipes = clcalib.recipes
RECIPES = {
    "qdrop": recipes.qdrop(steps=STEPS),
    "fast": recipes.fast(steps=STEPS),
    "contrastive": clcalib.with_contrastive(recipes.qdrop(steps=STEPS), interval=4, images=8),
    "subset": clcalib.with_contrastive(recipes.qdrop(steps=STEPS), interval=2, keys=16, loss="normalised_crd_nce"),
    "pd_quant": clcalib.with_contrastive(recipes.pd_quant(steps=STEPS, correction_steps=3)),
    "brecq": recipes.brecq(steps=STEPS, activation_steps=STEPS, is_fisher_weighted=True),
    "genie_m": recipes.genie_m(steps=STEPS),
    "straight_through": recipes.straight_through(steps=STEPS),
    "last_phase": clcalib.with_last_phase(recipes.nearest(), steps=STEPS, prediction_weight=1.0),
}


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
            settings = {"bits": clcalib.Bits(2, 4), "measured_images": 0, "precision": "float32", "observer": Watching()}
            calibration = clcalib.CalibrationSet.from_tensor(images())
            result = clcalib.quantize(tiny(), calibration, recipe=recipe, **{**settings, **options})
        return result.model.state_dict(), reports

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
    assert_same(recorded, emulation.run(RECIPES[name], recorder=None))
