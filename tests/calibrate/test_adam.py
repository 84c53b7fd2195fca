from __future__ import annotations

import pytest
import torch

from clcalib.calibrate.adam import Adam, _step_together
from clcalib.fused import calls


@pytest.mark.parametrize("is_compiled", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_it_is_the_adam_of_pytorch(is_compiled, dtype, monkeypatch):
    if not is_compiled:
        monkeypatch.setattr(calls, "is_available", lambda: False)
    shapes = [(7,), (16, 8, 3, 3), ()]
    generator = torch.Generator().manual_seed(0)
    ours, theirs = [], []
    for shape in shapes:
        start = torch.randn(shape, generator=generator, dtype=dtype)
        if len(shape) == 4:
            start = start.contiguous(memory_format=torch.channels_last)
        ours.append(start.clone().requires_grad_())
        theirs.append(start.clone().requires_grad_())
    adam, reference = Adam(ours), torch.optim.Adam(theirs)
    for step in range(20):
        rate = 0.01 * (1 + step % 3)
        reference.param_groups[0]["lr"] = rate
        adam.forget_gradients()
        for one, other in zip(ours, theirs, strict=True):
            assert one.grad is None
            gradient = torch.randn(one.shape, generator=generator, dtype=dtype) * 10 ** (step % 4 - 2)
            one.grad, other.grad = gradient, gradient.clone()
        adam.step(rate)
        reference.step()
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_a_late_gradient_has_its_own_bias_correction():
    early, late = (torch.ones(2, requires_grad=True) for _ in range(2))
    adam = Adam([early, late])
    for step in range(5):
        early.grad, late.grad = torch.ones(2), torch.ones(2) if step == 4 else None
        adam.step(0.1)
    torch.testing.assert_close(late.detach(), torch.full((2,), 0.9))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_numbers_in_a_tensor_give_the_same_bits(dtype, monkeypatch):
    """Also of a parameter that has its gradients late, and of one that is left alone."""
    monkeypatch.setattr(calls, "is_available", lambda: False)
    generator = torch.Generator().manual_seed(0)
    starts = [torch.randn(shape, generator=generator, dtype=dtype) for shape in [(7,), (16, 8, 3, 3), (), (2,)]]
    ours, theirs = ([start.clone().requires_grad_() for start in starts] for _ in range(2))
    plain, by_tensor = Adam(ours), Adam(theirs)
    partitions = set()
    for step in range(12):
        rate = 0.01 * (1 + step % 3)
        for adam in (plain, by_tensor):
            adam.forget_gradients()
        for at, (one, other) in enumerate(zip(ours[:3], theirs, strict=False)):
            if at != 2 or step % 4 == 2:
                one.grad = torch.randn(one.shape, generator=generator, dtype=dtype)
                other.grad = one.grad.clone()
        partitions.add(by_tensor.partition())
        plain.step(rate)
        moved = by_tensor.step_by(torch.tensor(by_tensor.factors(rate), dtype=torch.float64))
        assert moved == ([0, 1, 2] if step % 4 == 2 else [0, 1])
        by_tensor.count(moved)
        assert all(torch.equal(one, other) for one, other in zip(plain.state(), by_tensor.state(), strict=True))
    assert partitions == {(0, 0, 0, 0), (0, 0, 2, 2), (0, 0, 2, 3)}


def test_parameters_without_a_gradient_stay():
    parameter = torch.ones(3, requires_grad=True)
    Adam([parameter]).step(1.0)
    assert parameter.tolist() == [1.0, 1.0, 1.0]


def test_a_device_moves_all_parameters_together():
    with torch.device("meta"):
        parameters = [torch.ones(3, requires_grad=True), torch.ones((), requires_grad=True)]
        adam = Adam(parameters)
        adam.step(0.1)
        parameters[0].grad = torch.ones(3)
        adam.step(0.1)
    starts = [torch.randn(shape) for shape in ((7,), (4, 3, 3, 3), ())]
    rows = [(start, torch.randn_like(start), torch.rand_like(start), torch.rand_like(start)) for start in starts]
    alone = [tuple(tensor.clone() for tensor in row) for row in rows]
    _step_together(rows, -0.1 / 0.3, 0.2**0.5)
    for row in alone:
        _step_together([row], -0.1 / 0.3, 0.2**0.5)
    assert all(
        torch.equal(a, b) for one, other in zip(rows, alone, strict=True) for a, b in zip(one, other, strict=True)
    )
