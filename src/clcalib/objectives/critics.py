"""Critics: how alike a quantized query and a float key are.  None is trained (docs/method.md, section 2)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Protocol

from torch import Tensor

from clcalib.errors import ArgumentError
from clcalib.objectives.keys import KeySet, unit_vectors


class Critic(Protocol):
    """Scores s of queries (B, d) against all keys (M, d) -> (B, M)."""

    def __call__(self, queries: Tensor, keys: KeySet) -> Tensor: ...


@dataclasses.dataclass(frozen=True)
class Cosine:
    """s_ij = <norm(q_i), norm(k_j)> / temperature.

    Args:
        temperature: divides the cosine; small values look at the hardest negatives alone.
    """

    temperature: float = 0.5

    def __post_init__(self) -> None:
        _check_temperature(self.temperature)

    def __call__(self, queries: Tensor, keys: KeySet) -> Tensor:  # (B, d) -> (B, M)
        return unit_vectors(queries, keys.least_norm) @ keys.directions.T / self.temperature


@dataclasses.dataclass(frozen=True)
class CentredCosine:
    """s_ij = <norm(q_i - mean), norm(k_j - mean)> / temperature, with the mean over the keys.

    Features behind a ReLU lie in one orthant, where even unrelated images have cosines near one.  Without their
    common mean the cosines use the whole range.

    *Deviation* from the published term, which does not subtract the mean.
    """

    temperature: float = 0.5

    def __post_init__(self) -> None:
        _check_temperature(self.temperature)

    def __call__(self, queries: Tensor, keys: KeySet) -> Tensor:  # (B, d) -> (B, M)
        return unit_vectors(queries - keys.mean, keys.least_centred_norm) @ keys.centred_directions.T / self.temperature


CRITICS: dict[str, Callable[[float], Critic]] = {"cosine": Cosine, "centred_cosine": CentredCosine}


def _check_temperature(temperature: float) -> None:
    if not 0 < temperature < float("inf"):
        raise ArgumentError("temperature", "a positive number", temperature, "0.5 is a good start")
