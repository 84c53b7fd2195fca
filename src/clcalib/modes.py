"""The modes of PyTorch that a run computes under, whatever those of its caller are."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def repeatable_convolutions() -> Iterator[None]:
    """On a GPU, cuDNN takes algorithms that add up in one order, and does not choose them by their time.

    The caller's choice comes back at the end.
    """
    cudnn, wanted = torch.backends.cudnn, {"deterministic": True, "benchmark": False}
    before = {flag: getattr(cudnn, flag) for flag in wanted}
    changed = [flag for flag in wanted if before[flag] is not wanted[flag]]  # PyTorch can be told to refuse a change
    try:
        for flag in changed:
            setattr(cudnn, flag, wanted[flag])
        yield
    finally:
        for flag in changed:
            setattr(cudnn, flag, before[flag])


@contextlib.contextmanager
def usual_modes() -> Iterator[None]:
    """Inside: float32 and the CPU by default, gradients, neither inference mode nor autocast, own randomness.

    Convolutions repeat (``repeatable_convolutions``).  What was there before comes back at the end, after an error too.
    """
    before = torch.get_default_dtype()
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))  # in inference mode nothing can be trained
        stack.enter_context(torch.random.fork_rng(devices=[]))
        for device in ("cpu", "cuda"):
            if torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        if torch.get_default_device().type != "cpu":  # entering it costs a little in every call of PyTorch
            stack.enter_context(torch.device("cpu"))
        stack.enter_context(repeatable_convolutions())
        stack.callback(torch.set_default_dtype, before)
        torch.set_default_dtype(torch.float32)
        yield
