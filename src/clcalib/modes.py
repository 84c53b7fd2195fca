"""The modes of PyTorch that a run computes under, whatever those of its caller are."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def usual_modes() -> Iterator[None]:
    """Inside: float32 and the CPU by default, gradients, neither inference mode nor autocast, own randomness.

    On a GPU, cuDNN takes algorithms that add up in one order, and does not choose them by their time.  What was there
    before comes back at the end, after an error too.
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
        for flag, value in (("deterministic", True), ("benchmark", False)) if torch.cuda.is_available() else ():
            if getattr(torch.backends.cudnn, flag) is not value:
                stack.callback(setattr, torch.backends.cudnn, flag, not value)
                setattr(torch.backends.cudnn, flag, value)
        stack.callback(torch.set_default_dtype, before)
        torch.set_default_dtype(torch.float32)
        yield
