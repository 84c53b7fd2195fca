"""What holds for all tests: one thread, a fixed start of the random state, reproducible property tests."""

from __future__ import annotations

import pytest
import torch
from hypothesis import settings

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
