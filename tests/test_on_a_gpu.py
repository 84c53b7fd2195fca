"""What only a GPU can show: its kernels give what the CPU gives, a step does not wait, a run repeats its bits, and
steps that are recorded as CUDA graphs and played back give the bits of steps that are run one by one.
"""

from __future__ import annotations

import math

import pytest
import torch

import clcalib
from clcalib.calibrate import device_step
from clcalib.calibrate.device_step import CudaGraphs
from clcalib.fused import device
from clcalib.fused.draws import ALL, Draw
from clcalib.fused.soft import rounding_penalty
from clcalib.fused.squared import mean_squared_error
from clcalib.quant.kernels import activation, soft_round
from tests.tiny import images, tiny

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
    pytest.mark.filterwarnings("ignore:.*debug mode is a prototype"),  # PyTorch's, when waiting is made an error
]
HALF = Draw(0xDEADBEEF, 0x80000001, 128)


def step(place: str, draw: Draw, dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    """Every elementwise function of a step, forward and backward."""
    generator = torch.Generator().manual_seed(0)
    x, residual, target = (torch.randn(4, 8, 33, 31, generator=generator).to(place, dtype) for _ in range(3))
    x, residual, target = (t.contiguous(memory_format=torch.channels_last) for t in (x, residual, target))
    v, floors = torch.randn(8, 8, 3, 3, generator=generator).to(place), torch.ones(8, 8, 3, 3, device=place)
    channels = torch.linspace(0.1, 0.5, 8, device=place).reshape(8, 1, 1, 1)
    scale, zero = torch.full((), 0.3, device=place), torch.zeros((), device=place)
    trained = [tensor.requires_grad_() for tensor in (x, residual, scale, v)]
    if place != "cpu":
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
    try:
        weight = soft_round(floors, v, channels, torch.zeros_like(channels), 0, 3)
        settings = {"residual": residual, "limits": (0.0, math.inf), "draw": draw, "gradient_factor": 0.5}
        output = activation(x, scale, zero, 0, 3, **settings)
        loss = mean_squared_error(output, target) + rounding_penalty(v, 7.3) + weight.square().sum()
        gradients = torch.autograd.grad(loss, trained)
    finally:
        if place != "cpu":
            torch.cuda.set_sync_debug_mode("default")
    return [tensor.detach().cpu() for tensor in (output, weight, *gradients)]


@pytest.mark.parametrize("draw", [ALL, HALF])
@pytest.mark.parametrize("is_fused", [True, False])
def test_a_step_is_that_of_the_cpu_and_waits_for_nothing(monkeypatch, draw, is_fused) -> None:
    place = torch.device("cuda", torch.cuda.current_device())
    if is_fused and not device.is_available(place):
        pytest.skip("the fused kernels cannot be had on this device")
    if not is_fused:
        monkeypatch.setattr(device, "is_available", lambda device: False)
    step("cuda", draw)  # compiles what is needed
    found, expected = step("cuda", draw), step("cpu", draw)
    for number, (one, other) in enumerate(zip(found, expected, strict=True)):
        tolerance = 1e-6 if number < 2 else 1e-5
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance * (1 + float(other.abs().max())))


def test_bfloat16_is_near() -> None:
    for one, other in zip(step("cuda", HALF, torch.bfloat16), step("cpu", HALF, torch.bfloat16), strict=True):
        torch.testing.assert_close(one.float(), other.float(), rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("precision", ["float32", "auto"])
def test_a_run_repeats_its_bits(precision) -> None:
    recipe = clcalib.with_contrastive(clcalib.recipes.qdrop(steps=30), interval=4, images=8)
    calibration = clcalib.CalibrationSet.from_tensor(images(100))
    settings = {"recipe": recipe, "bits": clcalib.Bits(2, 4), "device": "cuda", "precision": precision}
    first, second = (clcalib.quantize(tiny(), calibration, **settings).model.state_dict() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


STEPS = 160
RECIPES = {
    "fast": clcalib.recipes.fast(steps=STEPS),
    "contrastive": clcalib.with_contrastive(clcalib.recipes.qdrop(steps=STEPS), interval=4, images=8),
    "learned_head": clcalib.with_contrastive(clcalib.recipes.qdrop(steps=STEPS), images=8, read="learned_head"),
    "pd_quant": clcalib.with_contrastive(clcalib.recipes.pd_quant(steps=STEPS, correction_steps=3)),
    "brecq": clcalib.recipes.brecq(steps=STEPS, activation_steps=STEPS, is_fisher_weighted=True),
    "genie_m": clcalib.recipes.genie_m(steps=STEPS),
    "last_phase": clcalib.with_last_phase(clcalib.recipes.nearest(), steps=STEPS),
    "tuning": clcalib.with_tuning(clcalib.recipes.nearest(), steps=STEPS, augmentation=()),
}


class Counted(CudaGraphs):
    """Counts the graphs of all phases, and how often they are played."""

    recorded, played = 0, 0

    def record(self, work):
        replay = super().record(work)
        Counted.recorded += 1

        def play():
            Counted.played += 1
            replay()

        return play


@pytest.mark.parametrize("precision", ["float32", "auto"])
@pytest.mark.parametrize("name", RECIPES)
def test_recorded_steps_are_the_steps_one_by_one_bit_for_bit(monkeypatch, name, precision) -> None:
    """Where they cannot be recorded a warning tells why, and warnings are errors here."""
    device_step._tell.cache_clear()
    monkeypatch.setitem(device_step.RECORDERS, "cuda", Counted)
    monkeypatch.setattr(Counted, "recorded", 0)
    monkeypatch.setattr(Counted, "played", 0)
    calibration = clcalib.CalibrationSet.from_tensor(images(100))
    settings = {"recipe": RECIPES[name], "bits": clcalib.Bits(2, 4), "device": "cuda", "precision": precision}
    recorded = clcalib.quantize(tiny(), calibration, measured_images=0, **settings).model.state_dict()
    assert Counted.recorded > 0
    assert Counted.played > Counted.recorded
    monkeypatch.setenv("CLCALIB_GRAPHS", "0")
    before = Counted.played
    one_by_one = clcalib.quantize(tiny(), calibration, measured_images=0, **settings).model.state_dict()
    assert Counted.played == before
    assert all(torch.equal(recorded[name], one_by_one[name]) for name in recorded)
