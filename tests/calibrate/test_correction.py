"""The correction of distributions: the loss against loops, and that it does what it is there for."""

from __future__ import annotations

import pytest
import torch
from tests.reference import reconstruction as reference
from tests.tiny import images, tiny
from torch import nn

import clcalib
from clcalib.calibrate.correction import _Plateau, _Target, corrected, has_norms, statistics_error
from clcalib.calibrate.moving import advance_rows
from clcalib.calibrate.observer import SilentObserver
from clcalib.calibrate.recipe import Correction
from clcalib.calibrate.space import StoreSpace
from clcalib.calibrate.store import as_rows
from clcalib.capture.chain import capture
from clcalib.capture.fold import norm_statistics
from clcalib.errors import ArgumentError, NoBatchNormWarning


def norm(channels=5):
    torch.manual_seed(3)
    module = nn.BatchNorm2d(channels).eval()
    with torch.no_grad():
        module.weight.copy_(torch.tensor([1.5, -0.7, 0.0, 0.3, 2.0]))
        module.bias.normal_()
        module.running_mean.normal_()
        module.running_var.uniform_(0.2, 3.0)
    return module


def target_of(module, dtype=torch.float64):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv2d(5, 5, 1, bias=False), module

        def forward(self, x):
            return self.norm(self.conv(x))

    graph = capture(Model().eval(), torch.randn(2, 5, 3, 3)).module.graph
    (known,) = [found for node in graph.nodes if (found := norm_statistics(node)) is not None]
    target = _Target.of(known, torch.device("cpu"))
    return _Target(target.shift.to(dtype), target.inverse_gain.to(dtype), target.deviation.to(dtype), target.epsilon)


def test_behind_the_norm_the_errors_are_those_of_what_enters_it():
    module, entering = norm(), torch.randn(3, 5, 4, 2, dtype=torch.float64) * 2 + 1
    behind = module.double()(entering).detach()
    ours = statistics_error(behind, target_of(norm()))
    counts = [1, 1, 0, 1, 1]  # the third channel has a gain of zero: nothing is seen behind it
    slow = reference.statistics_error(entering, module.running_mean, module.running_var, module.eps, counts)
    assert float(ours) == pytest.approx(float(slow), rel=1e-5)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_gradient_of_the_error(memory_format):
    target = target_of(norm())
    output = torch.randn(2, 5, 3, 2, dtype=torch.float64).contiguous(memory_format=memory_format).requires_grad_(True)
    assert torch.autograd.gradcheck(lambda y: statistics_error(y, target), (output,))


def test_where_an_image_has_no_deviation_there_is_no_error_and_no_bad_gradient():
    target = target_of(norm())
    assert (
        float(statistics_error(torch.randn(4, 5, 1, 1), target))
        == float(statistics_error(torch.randn(4, 5), target))
        == 0
    )
    constant = torch.ones(2, 5, 3, 3, dtype=torch.float64, requires_grad=True)
    statistics_error(constant, target).backward()
    assert torch.isfinite(constant.grad).all()


def mismatch(chain, index, state):
    unit, named = chain.units[index], {node.name: node for node in chain.module.graph.nodes}
    names = [name for name in unit.nodes if norm_statistics(named[name]) is not None]
    outputs = chain.subgraph(unit.inputs, names)(*(rows.first(len(rows)) for rows in state))
    targets = [_Target.of(norm_statistics(named[name]), torch.device("cpu")) for name in names]
    return sum(float(statistics_error(y, target)) for y, target in zip(outputs, targets, strict=True))


def at_unit(index):
    chain = capture(tiny(), images(2))
    state = (as_rows(images()),)
    for earlier in range(index):
        state = advance_rows(chain.body(earlier), state, StoreSpace())
    return chain, state


@pytest.mark.parametrize("index", [0, 1])
def test_the_statistics_come_nearer_and_the_input_stays_near(index):
    chain, state = at_unit(index)
    before = [rows.first(48).clone() for rows in state]
    moved = {
        strength: corrected(chain, index, state, Correction(60, rate=1e-2, strength=strength), StoreSpace())
        for strength in (0.02, 10.0)
    }
    errors = {strength: mismatch(chain, index, rows) for strength, rows in moved.items()}
    assert errors[10.0] < errors[0.02] < mismatch(chain, index, state)
    distances = {strength: float((rows[0].first(48) - before[0]).square().mean()) for strength, rows in moved.items()}
    assert 0 < distances[0.02] < distances[10.0]
    assert distances[0.02] < 0.2 * float(before[0].var())
    assert torch.equal(state[0].first(48), before[0])
    assert moved[0.02][0].is_channels_last == state[0].is_channels_last


def test_images_are_corrected_each_by_itself():
    chain, state = at_unit(1)
    alone, together = (
        corrected(chain, 1, state, Correction(5, batch_size=size), StoreSpace())[0].first(48) for size in (16, 48)
    )
    torch.testing.assert_close(alone, together, rtol=1e-3, atol=1e-4)


def test_a_unit_without_a_norm_keeps_its_stores():
    chain, state = at_unit(2)
    assert corrected(chain, 2, state, Correction(5), StoreSpace()) is state


def test_the_rate_falls_when_the_loss_does_not():
    plateau = _Plateau(1e-3)
    for step in range(150):
        plateau.saw(torch.tensor(1.0 - 0.01 * min(step, 20)))
    assert plateau.rate == pytest.approx(1e-4)
    for _ in range(300):
        plateau.saw(torch.tensor(1.0))
    assert plateau.rate == pytest.approx(1e-4)


def test_the_rate_is_that_of_a_plateau_that_reads_every_loss_and_few_are_read():
    losses = torch.rand(1500, generator=torch.Generator().manual_seed(0)).cumsum(0).neg().exp().clamp(min=1e-3)
    lazy, eager, reads = _Plateau(1e-3), _Plateau(1e-3), 0
    for loss in losses:
        lazy.saw(loss)
        eager._read(float(loss))
        assert lazy.rate == eager.rate
        reads += not lazy._unread
    assert lazy.rate < 1e-3
    assert reads <= 20


def quantize(model, recipe, **options):
    calibration = clcalib.CalibrationSet.from_tensor(images())
    return clcalib.quantize(
        model, calibration, recipe=recipe, bits=clcalib.Bits(2, 4), measured_images=0, precision="float32", **options
    )


def test_the_observer_is_told_of_each_batch_before_the_first_step():
    told = []

    class Told(SilentObserver):
        def correcting(self, done, count):
            told.append((done, count))

        def step(self, step, losses):
            told.append(step)

    quantize(tiny(), clcalib.recipes.pd_quant(steps=2), observer=Told())
    assert told[:3] == [(32, 48), (48, 48), 0]


@pytest.mark.parametrize(("steps", "expected"), [(2, 20), (800, 20), (2000, 50), (20_000, 500), (40_000, 500)])
def test_short_runs_have_a_short_correction(steps, expected):
    assert clcalib.recipes.pd_quant(steps=steps).correction.steps == expected
    assert clcalib.recipes.pd_quant(steps=steps, correction_steps=7).correction.steps == 7


def test_a_network_without_batch_norm_leaves_it_out_and_says_so_once():
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 4)).eval()
    assert not has_norms(capture(plain, images(2)))
    with pytest.warns(NoBatchNormWarning, match="no batch norm") as told:
        result = quantize(plain, clcalib.recipes.pd_quant(steps=5))
    assert len([warning for warning in told if warning.category is NoBatchNormWarning]) == 1
    without = quantize(plain, clcalib.recipes.pd_quant(steps=5, correction_steps=0))
    assert torch.equal(result.model(images()), without.model(images()))
    assert any("no batch norm" in message for message in result.record.warnings)


def test_a_memory_budget_changes_no_bit():
    recipe = clcalib.recipes.pd_quant(steps=5, correction_steps=5)
    free, tight = (quantize(tiny(), recipe, memory_budget=budget).model(images()) for budget in (None, 20_000))
    assert torch.equal(free, tight)
    other = quantize(tiny(), clcalib.recipes.pd_quant(steps=5, correction_steps=0)).model(images())
    assert not torch.equal(free, other)


@pytest.mark.parametrize(
    ("settings", "argument"), [({"steps": 0}, "steps"), ({"rate": 0.0}, "rate"), ({"strength": -1.0}, "strength")]
)
def test_bad_settings_name_the_argument(settings, argument):
    with pytest.raises(ArgumentError, match=argument):
        Correction(**settings)
