"""How good the network is so far: a few images through the finished units, and through the float rest of the network.

It is told to whoever watches, and decides nothing; so it is measured as often as a small share of the time allows.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from clcalib.calibrate.observer import Observer, SilentObserver
from clcalib.calibrate.store import RowState
from clcalib.capture.chain import Chain
from clcalib.capture.running import advance

IMAGES = 64
SHARE_OF_TIME = 0.02
FIRST_AFTER = 5.0  # seconds; a shorter run is over before anyone has read it


class Quality(NamedTuple):
    """Shares of images, from 0 to 1.

    Attributes:
        agreement: the network, quantized so far, gives the class that the float network gives.
        accuracy: it gives the right one; None where classes are not known.
        float_accuracy: the float network gives the right one.
    """

    agreement: float
    accuracy: float | None = None
    float_accuracy: float | None = None


class QualitySoFar:
    """Measures how often the network, quantized so far, gives the float network's class, and the right one.

    Args:
        chain: the float chain, which classifies: its output is (N, classes).
        images: what it reads; the first ``IMAGES`` are taken.  Of several workers each looks at its own: when it does
            is a matter of its clock, so none waits for another.
        labels: their classes (N,), None where they are not known.
        clock: seconds.

    Example:
        >>> import torch
        >>> from clcalib.capture.chain import capture
        >>> from clcalib.calibrate.store import as_rows
        >>> layers = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.ReLU(), torch.nn.Linear(4, 3)).eval()
        >>> images = torch.randn(8, 4)
        >>> chain, times = capture(layers, images, unit="layer"), iter(range(0, 100, 10))
        >>> so_far = QualitySoFar(chain, images, torch.zeros(8, dtype=torch.int64), clock=lambda: next(times))
        >>> so_far.after(0, (as_rows(chain.body(0)(images)[0]),)).agreement
        1.0
    """

    def __init__(
        self,
        chain: Chain,
        images: Tensor,
        labels: Tensor | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._chain, self._images, self._clock = chain, images[:IMAGES], clock
        self._labels = None if labels is None else labels[:IMAGES]
        self._start, self._spent, self._last = clock(), 0.0, 0.0
        self._classes: Tensor | None = None
        self._is_possible = len(chain.output_names) == 1

    def tell(self, observer: Observer, index: int, state: RowState) -> None:
        """Tell an observer what ``after`` gives; one that ignores everything is spared the work."""
        if type(observer) is not SilentObserver and (quality := self.after(index, state)) is not None:
            observer.quality_so_far(*quality)

    def after(self, index: int, state: RowState) -> Quality | None:
        """The shares when unit ``index`` is finished; None where they are not measured now.

        Args:
            index: of the unit.
            state: behind the quantized unit, the same images first.
        """
        begun = self._clock()
        passed = begun - self._start
        # What it costs is known when it was done once.
        if not self._is_possible or passed < FIRST_AFTER or self._spent + self._last > SHARE_OF_TIME * passed:
            return None
        quality = self._measured(index, state)
        self._last = self._clock() - begun
        self._spent += self._last
        return quality

    def _measured(self, index: int, state: RowState) -> Quality | None:
        if self._classes is None:
            chain = self._chain
            (outputs,) = advance(chain.subgraph((chain.input_name,), (chain.output_name,)), (self._images,))
            self._is_possible = outputs.ndim == 2 and outputs.shape[1] > 1 and len(outputs) > 1
            if not self._is_possible:
                return None
            self._classes = outputs.argmax(1)
        rows = tuple(each.first(IMAGES) for each in state)
        (outputs,) = advance(self._chain.suffix(index), rows)
        classes = outputs.argmax(1)
        if self._labels is None:
            return Quality(_share(classes, self._classes))
        own, floating = (_share(each, self._labels) for each in (classes, self._classes))
        return Quality(_share(classes, self._classes), own, floating)


def _share(classes: Tensor, others: Tensor) -> float:
    """Of equal ones."""
    return float((classes == others.to(classes.device)).float().mean())
