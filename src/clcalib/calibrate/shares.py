"""What a phase does in each shard: its part of a step's images, and how much its losses count there."""

from __future__ import annotations

import dataclasses

from clcalib.calibrate.layout import Layout
from clcalib.calibrate.recipe import Phase, Term
from clcalib.errors import ArgumentError
from clcalib.objectives.local import for_batch

LEAST = 2  # images of a shard that a term sees in a step, so that those that compare images have something to compare


@dataclasses.dataclass(frozen=True)
class Share:
    """A phase in one shard.

    Attributes:
        phase: with as many images a step as come from the shard.
        images: a step's images of the shard as a share of those of all shards.
        factors: by term, its images of the shard as a share of those of all shards; they add up to 1 over the shards.
    """

    phase: Phase
    images: float
    factors: tuple[float, ...]


def shares(phase: Phase, layout: Layout) -> list[Share]:
    """The phase in each of this worker's shards.

    The images of a step, and of a term that sees fewer, come from all shards alike.  Terms that compare the images of a
    batch with each other see those of a shard.
    """
    if layout.team.shards == 1:
        return [Share(phase, 1.0, (1.0,) * len(phase.terms))]
    batch = layout.limited(phase.batch_size)
    columns = [batch.limited(term.images or phase.batch_size) for term in phase.terms]
    found = []
    for shard in layout.team.own:
        terms = [_in(term, column.counts[shard]) for term, column in zip(phase.terms, columns, strict=True)]
        factors = tuple(column.counts[shard] / column.count for column in columns)
        own = dataclasses.replace(phase, batch_size=batch.counts[shard], terms=tuple(terms))
        found.append(Share(own, batch.counts[shard] / batch.count, factors))
    return found


def _in(term: Term, images: int) -> Term:
    few = None if term.images is None else images
    return dataclasses.replace(term, objective=for_batch(term.objective, images), images=few)


def check_shards(phases: tuple[Phase, ...], layout: Layout, held_out: Layout | None) -> None:
    """Raise where there are too many shards for the images, or for those of a step.

    Raises:
        ArgumentError: it says how many there can be.
    """
    shards = layout.team.shards
    if shards == 1:
        return
    most = [(layout.count // LEAST, f"{layout.count} calibration images")]
    most += [] if held_out is None else [(held_out.count, f"{held_out.count} held-out images")]
    for phase in phases:
        most.append((phase.batch_size // LEAST, f"{phase.batch_size} images a step in phase {phase.name!r}"))
        seen = [term.images for term in phase.terms if term.images is not None]
        most += [(images // LEAST, f"a term of phase {phase.name!r} that sees {images} images") for images in seen]
    limit, reason = min(most)
    if shards > limit:
        raise ArgumentError("shards", f"at most {limit}, with {reason}", shards, "take fewer, or give more images")
