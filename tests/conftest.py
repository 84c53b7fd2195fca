"""What holds for all tests: one thread, a fixed start of the random state, reproducible property tests."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import settings
from torch import fx

from clcalib.capture import chain
from clcalib.report.environment import model_digest

_KNOWN: dict[tuple[object, ...], fx.GraphModule] = {}

settings.register_profile("clcalib", deadline=None, derandomize=True, database=None, max_examples=50)
settings.load_profile("clcalib")

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _fixed_random_state() -> None:
    torch.manual_seed(0)


@pytest.fixture
def generator() -> torch.Generator:
    """A generator of its own for each test."""
    return torch.Generator().manual_seed(0)


@pytest.fixture
def exported_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The export of a network, most of the time of a short run, is done once for all that start from the same one."""

    def trace(model: torch.nn.Module, example: torch.Tensor) -> fx.GraphModule:
        key = type(model), repr(model), model_digest(model), model.training, example.shape, example.dtype
        if key not in _KNOWN:
            _KNOWN[key] = original(model, example)
        return copy.deepcopy(_KNOWN[key])

    original = chain.trace
    monkeypatch.setattr(chain, "trace", trace)
