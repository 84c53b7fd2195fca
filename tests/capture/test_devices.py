"""A model whose parts lie on two devices."""

from __future__ import annotations

import re
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tests.capture.detector import detector
from torch import nn

from clcalib.capture.submodule import Part
from clcalib.capture.trace import trace
from clcalib.errors import ArgumentError


def test_a_model_on_two_devices_is_told_with_a_tensor_on_each(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole, and as the surroundings of a submodule; the second device is one by name only."""
    model = detector()
    named = nn.Module.named_parameters
    elsewhere = SimpleNamespace(device=torch.device("cuda:1"))

    def parameters(self: nn.Module, *arguments: Any, **options: Any) -> Any:
        for name, tensor in named(self, *arguments, **options):
            yield name, elsewhere if name == "refine.weight" else tensor

    monkeypatch.setattr(nn.Module, "named_parameters", parameters)
    message = "model: expected all of it on one device, got `backbone.stem.weight` on cpu, `refine.weight` on cuda:1"
    with pytest.raises(ArgumentError, match=re.escape(f"{message}; move it")):
        trace(model, torch.rand(2, 3, 8, 8))
    with pytest.raises(ArgumentError, match=re.escape(f"{message}; move it")):
        Part.of(model, "backbone", torch.rand(2, 3, 8, 8))
