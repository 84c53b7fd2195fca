"""A run of seconds, with all that a tracker is told of."""

from __future__ import annotations

import random

import numpy as np
import torch
from tests.tiny import images, tiny

import clcalib

BITS = clcalib.Bits(2, 4)


def quantized(**settings):
    """Quantize the tiny network with labels, held-out images, and few steps."""
    labels = torch.arange(20) % 4
    options = {
        "recipe": clcalib.with_contrastive(clcalib.recipes.qdrop(steps=30)),
        "bits": BITS,
        "precision": "float32",
        "evaluation": clcalib.EvaluationSet.from_tensor(images(20, seed=2), labels),
        "held_out": clcalib.CalibrationSet.from_tensor(images(20, seed=3)),
    }
    return clcalib.quantize(tiny(), clcalib.CalibrationSet.from_tensor(images(48)), **(options | settings))


def tensors_of(result):
    return list(result.model.state_dict().values())


def random_states():
    """The states of all global generators."""
    return random.getstate(), torch.get_rng_state().tolist(), np.random.get_state()[1].tolist()
