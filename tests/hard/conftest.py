"""What batteries of many short runs share."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import fx

from clcalib.capture import chain
from clcalib.report.environment import model_digest

_KNOWN: dict[tuple[object, ...], fx.GraphModule] = {}


@pytest.fixture
def exported_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The export of a network, most of the time of a short run, is done once for all that start from the same one."""

    def trace(model: torch.nn.Module, example: torch.Tensor) -> fx.GraphModule:
        key = type(model), model_digest(model), example.shape, example.dtype
        if key not in _KNOWN:
            _KNOWN[key] = original(model, example)
        return copy.deepcopy(_KNOWN[key])

    original = chain.trace
    monkeypatch.setattr(chain, "trace", trace)
