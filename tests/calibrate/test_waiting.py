"""A step queues its work and never waits for the device: on a GPU every number read from a tensor is such a wait.

There is no GPU here.  On the device ``meta``, which has no numbers, reading one raises; on the CPU, reads are counted
in whole runs that take the path of a device.
"""

from __future__ import annotations

import math

import pytest
import torch
from tests.tiny import images, tiny
from torch.utils._python_dispatch import TorchDispatchMode

import clcalib
from clcalib.calibrate import latest, loop
from clcalib.calibrate.adam import Adam
from clcalib.calibrate.loop import REPORT_EVERY
from clcalib.calibrate.mixing import mix_rows
from clcalib.calibrate.store import as_rows
from clcalib.fused import calls
from clcalib.fused.draws import ALL, NONE, Draw
from clcalib.fused.soft import rounding_penalty
from clcalib.fused.squared import mean_squared_error
from clcalib.modes import repeatable_convolutions, usual_modes
from clcalib.quant import passes
from clcalib.quant.kernels import activation, add_and_clamp, soft_round

HALF = Draw(123456789, 987654321, 128)
WAITS = ("_local_scalar_dense", "nonzero", "masked_select", "_unique2", "equal")


class Reads(TorchDispatchMode):
    """Counts what makes the host wait for a value; every number that Python reads passes ``_local_scalar_dense``."""

    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += function.overloadpacket.__name__ in WAITS
        return function(*args, **(kwargs or {}))


def test_reads_are_seen():
    with Reads() as reads:
        tensor = torch.ones(2, requires_grad=True)
        tensor.sum().backward()
        tensor = tensor.detach()
        assert (float(tensor.sum()), bool(tensor[0] > 0), tensor[1].item(), len(tensor.nonzero())) == (2, True, 1, 2)
    assert reads.count == 4
    with pytest.raises(RuntimeError, match="meta"):
        float(torch.ones((), device="meta"))


@pytest.mark.parametrize("draw", [ALL, HALF, NONE])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_step_reads_no_number(draw, dtype):
    with torch.device("meta"):
        x, residual = (torch.ones(4, 8, 5, 5, dtype=dtype).requires_grad_() for _ in range(2))
        scale, v = (torch.ones(shape, requires_grad=True) for shape in ((), (8, 8, 3, 3)))
        index, rows, zero = torch.arange(4), as_rows(torch.ones(9, 8, 5, 5)), torch.zeros(())
        mixed = mix_rows(rows, as_rows(torch.ones(9, 8, 5, 5)), index, draw, dtype)
        weight = soft_round(torch.ones(8, 8, 3, 3), v, torch.ones(8, 1, 1, 1), torch.ones(8, 1, 1, 1), 0, 3)
        output = activation(x, scale, zero, 0, 3, residual=residual, draw=draw, gradient_factor=0.5, dtype=dtype)
        output = add_and_clamp(output, mixed, (0.0, math.inf)).float() * weight.mean()
        (mean_squared_error(output, rows.take(index)) + rounding_penalty(v, 3.0)).backward()
        Adam([scale, v]).step(0.1)
    assert v.grad is not None
    assert v.grad.is_meta


@pytest.mark.parametrize("name", ["qdrop", "brecq"])
def test_a_run_reads_numbers_at_its_reports_only(monkeypatch, name):
    monkeypatch.setattr(calls, "is_available", lambda: False)
    monkeypatch.setattr(passes, "_reads_numbers", lambda tensor: False)
    for module in (loop, latest):
        monkeypatch.setattr(module, "is_read_without_waiting", lambda device: False)
    calibration = clcalib.CalibrationSet.from_tensor(images(40))

    def reads(steps: int) -> int:
        phase = {"activation_steps": steps} if name == "brecq" else {}
        recipe = clcalib.with_contrastive(getattr(clcalib.recipes, name)(steps=steps, **phase), interval=2, images=8)
        with Reads() as seen:
            clcalib.quantize(
                tiny(), calibration, recipe=recipe, bits=clcalib.Bits(2, 4), measured_images=0, precision="float32"
            )
        return seen.count

    assert reads(3) == reads(REPORT_EVERY) > 0


@pytest.mark.parametrize("own", [False, True])
def test_convolutions_repeat_and_the_callers_flag_comes_back(monkeypatch, own):
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", own)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", not own)
    for modes in (repeatable_convolutions, usual_modes):  # whose part the first one is
        with modes():
            assert torch.backends.cudnn.deterministic
            assert not torch.backends.cudnn.benchmark
        assert torch.backends.cudnn.deterministic == own
        assert torch.backends.cudnn.benchmark != own
