"""The battery that every objective must pass.  A test class inherits it and says how to make one."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from clcalib.errors import ArgumentError
from clcalib.objectives.batch import Need, Objective, UnitBatch
from clcalib.objectives.keys import build_keys


def make_batch(*, size=4, dtype=torch.float64, seed=0, progress=0.5, images=9) -> UnitBatch:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=dtype)

    index = torch.randperm(images, generator=generator)[:size]
    keys = build_keys(normal(images, 6), torch.arange(images) % 3, torch.arange(images))
    return UnitBatch(
        output=normal(size, 3, 2, 2).requires_grad_(True),
        target=normal(size, 3, 2, 2).requires_grad_(True),
        sample_index=index,
        progress=progress,
        rounding=(torch.rand(3, 2, generator=generator, dtype=dtype).requires_grad_(True),),
        reads={need: normal(size, 6).requires_grad_(True) for need in (Need.FEATURES, Need.LOGITS)},
        keys={need: keys for need in (Need.FEATURES, Need.LOGITS)},
        float_gradient=normal(size, 3, 2, 2).square(),
    )


class ObjectiveContract:
    """Value against the reference, gradient, shapes, dtype, determinism, batch of one, declared needs."""

    def make(self) -> Objective:
        raise AssertionError("say how to make the objective")

    def reference(self, batch: UnitBatch) -> float:
        raise AssertionError("say what its value must be")

    def inputs(self, batch: UnitBatch) -> list[torch.Tensor]:
        """The tensors that carry gradients into the objective."""
        raise AssertionError("say where gradients go")

    def with_inputs(self, batch: UnitBatch, inputs: list[torch.Tensor]) -> UnitBatch:
        raise AssertionError("put the tensors back")

    @pytest.mark.parametrize("seed", [0, 1, 2])
    def test_value_is_the_reference(self, seed):
        batch = make_batch(seed=seed)
        assert self.make()(batch).item() == pytest.approx(self.reference(batch), rel=1e-9)

    def test_batch_of_one(self):
        batch = make_batch(size=1)
        assert self.make()(batch).item() == pytest.approx(self.reference(batch), rel=1e-9)

    def test_gradient(self):
        batch, objective = make_batch(), self.make()
        inputs = self.inputs(batch)
        assert torch.autograd.gradcheck(lambda *x: objective(self.with_inputs(batch, list(x))), inputs)

    def test_gradient_reaches_the_quantized_side_and_never_the_float_side(self):
        batch = make_batch()
        keys = batch.keys[Need.FEATURES]
        self.make()(batch).backward()
        assert all(tensor.grad is not None and tensor.grad.abs().sum() > 0 for tensor in self.inputs(batch))
        assert batch.target.grad is None
        assert not keys.directions.requires_grad

    def test_scalar_of_the_batch_dtype_and_deterministic(self):
        batch = make_batch(dtype=torch.float32)
        values = [self.make()(batch) for _ in range(2)]
        assert values[0].shape == ()
        assert values[0].dtype == torch.float32
        assert torch.equal(*values)

    def test_a_missing_need_names_the_objective(self):
        objective = self.make()
        if not objective.needs - {Need.ROUNDING}:
            return
        batch = dataclasses.replace(make_batch(), reads={}, keys={}, float_gradient=None)
        with pytest.raises(ArgumentError, match=type(objective).__name__):
            objective(batch)
