"""One save between two marks, for a tracer that kills the process at each system call of it."""

import os
import sys
from pathlib import Path

import torch

from clcalib.durable.payload import Payload
from clcalib.durable.state import RunState

IDENTITY = {"seed": "0"}


def payload(value: int) -> Payload:
    return Payload({"codes": torch.full((4096,), value, dtype=torch.int8)}, {"value": value})


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    state = RunState.resume(folder, IDENTITY)
    os.write(2, b"THE SAVE BEGINS\n")
    state.put("unit", payload(2))
    os.write(2, b"THE SAVE ENDS\n")
