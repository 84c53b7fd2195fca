"""What one worker sends comes to another one as it lay in memory."""

from __future__ import annotations

import math

import pytest
import torch

from clcalib.team.messages import ALIGNMENT, Message

VALUES = torch.arange(2 * 3 * 4 * 5, dtype=torch.float32).reshape(2, 3, 4, 5)


@pytest.mark.parametrize(
    "tensor",
    [
        VALUES,
        VALUES.contiguous(memory_format=torch.channels_last),
        VALUES[1:],
        VALUES[:, 1:2],
        VALUES.flatten()[3:40],
        torch.ones(()).expand(7, 2),
        torch.tensor(2.5, dtype=torch.float64),
        torch.empty(0, 3),
        VALUES > 7,
        VALUES.to(torch.bfloat16).permute(3, 0, 2, 1),
        torch.arange(5, dtype=torch.int16)[::2],
    ],
)
def test_values_order_and_place_come_back(tensor):
    sent = Message("word", {"number": 0.1}, [torch.ones(3), tensor, None])
    found = Message.from_bytes(sent.to_bytes())
    assert (found.word, found.values) == ("word", {"number": 0.1})
    _, own, none = found.tensors
    assert none is None
    assert own.dtype == tensor.dtype
    assert torch.equal(own, tensor)
    assert own.stride() == tensor.stride()
    if tensor.numel():
        assert own.data_ptr() % ALIGNMENT == tensor.data_ptr() % ALIGNMENT


def test_floats_in_values_come_back_bit_for_bit():
    numbers = [0.1 + 0.2, 1e-310, -0.0, math.inf]
    found = Message.from_bytes(Message("a", {"numbers": numbers}).to_bytes()).values["numbers"]
    assert [each.hex() for each in found] == [each.hex() for each in numbers]


def test_what_needs_a_gradient_is_sent_without():
    (own,) = Message.from_bytes(Message("a", {}, [torch.ones(2, requires_grad=True) * 2]).to_bytes()).tensors
    assert not own.requires_grad
