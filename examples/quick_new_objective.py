"""A new objective: a formula, a thin class around it, and a recipe in which it takes the first term's place.

    python examples/quick_new_objective.py

The objective weighs each channel's squared error by the size of that channel's float output, so that small channels do
not disappear behind large ones.  docs/extending.md has the rules, and a test for an objective.
"""

from __future__ import annotations

import dataclasses

from torch import Tensor

import clcalib
from clcalib import Recipe, Term
from clcalib.data.sources import load_calibration
from clcalib.objectives.batch import Need, UnitBatch
from demo_images import CALIBRATION, TRANSFORM, trained_resnet20


def relative_error(output: Tensor, target: Tensor, channel_axis: int, floor: float) -> Tensor:
    """mean over channels of sum (output - target)^2 / (sum target^2 + floor * its mean over channels).

    Args:
        output: (B, C, *spatial), or with the channels on another axis.
        target: same shape; a constant.
        channel_axis: which axis holds the channels.
        floor: keeps channels that are always zero from deciding.
    """
    others = [axis for axis in range(output.dim()) if axis != channel_axis % output.dim()]
    size = target.square().sum(others)  # (C,)
    return ((output - target).square().sum(others) / (size + floor * size.mean() + 1e-12)).mean()


@dataclasses.dataclass(frozen=True)
class RelativeReconstruction:
    """``relative_error`` between the quantized and the float unit."""

    floor: float = 0.1

    @property
    def needs(self) -> frozenset[Need]:
        return frozenset()

    def __call__(self, batch: UnitBatch) -> Tensor:
        return relative_error(batch.output, batch.target.detach(), batch.channel_axis, self.floor)


def with_relative_error(recipe: Recipe) -> Recipe:
    """The recipe with the objective as its first term, as large as the old one was (``is_relative``)."""
    phases = tuple(
        dataclasses.replace(phase, terms=(*phase.terms, Term(RelativeReconstruction(), 1.0, is_relative=True)))
        for phase in recipe.phases
    )
    return dataclasses.replace(recipe, name=f"{recipe.name}+relative", phases=phases)


def main() -> None:
    model = trained_resnet20()
    calibration = load_calibration(CALIBRATION, transform=TRANSFORM, count=64)
    evaluation = clcalib.EvaluationSet.from_tensor(load_calibration(CALIBRATION, transform=TRANSFORM).images[-256:])
    plain = clcalib.recipes.qdrop(steps=10)
    for recipe in (clcalib.recipes.nearest(), plain, with_relative_error(plain)):
        result = clcalib.quantize(
            model,
            calibration,
            recipe=recipe,
            bits=clcalib.Bits(weights=3, activations=4),
            evaluation=evaluation,
            measured_images=0,
        )
        print(f"{recipe.name:15} same class as the float network on {result.record.agreement:.1%} of 256 images")
    print("one seed and 10 steps: the way, not a result")


if __name__ == "__main__":
    main()
