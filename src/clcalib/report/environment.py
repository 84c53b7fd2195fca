"""What a record says of the run itself: seconds for each stage, memory, versions, digests and warnings."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import platform
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from types import TracebackType

import torch
from torch import nn

from clcalib.errors import ClcalibWarning
from clcalib.hearing import listening


class StageClock:
    """Sums the wall seconds of each stage; tells a listener when one starts.

    Example:
        >>> with StageClock(lambda name: None) as clock:
        ...     clock.stage("capture")
        >>> list(clock.seconds)
        ['capture']
    """

    def __init__(self, listener: Callable[[str], None], clock: Callable[[], float] = time.perf_counter) -> None:
        self.seconds: dict[str, float] = {}
        self._listener, self._clock = listener, clock
        self._current: str | None = None
        self._start = 0.0

    def stage(self, name: str) -> None:
        """End the current stage and start the next."""
        self._close()
        self._current, self._start = name, self._clock()
        self._listener(name)

    def __enter__(self) -> StageClock:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    def _close(self) -> None:
        if self._current is not None:
            elapsed = self._clock() - self._start
            self.seconds[self._current] = self.seconds.get(self._current, 0.0) + elapsed
        self._current = None


@contextlib.contextmanager
def collected_warnings() -> Iterator[list[str]]:
    """Collect the texts of clcalib's warnings, each once, and pass all warnings on as the caller wants them.

    The list is filled at the end of the block.
    """
    messages: list[str] = []
    with warnings.catch_warnings():
        warnings.filterwarnings("default", category=ClcalibWarning, append=True)
        with listening() as found:
            yield messages
    messages += dict.fromkeys(str(each.message) for each in found)


def peak_memory(device: torch.device) -> int:
    """Highest memory in bytes: of the CUDA device where one is used, else of the process since it started."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    try:
        import resource
    except ImportError:  # Windows has no such module
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def versions() -> dict[str, str]:
    """Versions of Python, torch and clcalib."""
    try:
        own = importlib.metadata.version("clcalib")
    except importlib.metadata.PackageNotFoundError:
        own = "not installed"
    return {"python": platform.python_version(), "torch": torch.__version__, "clcalib": own}


def model_digest(model: nn.Module) -> str:
    """sha256 over names, types, shapes and bytes of all parameters and buffers."""
    total = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        total.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return total.hexdigest()
