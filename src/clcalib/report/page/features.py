"""The map of the features of both networks."""

from __future__ import annotations

import dataclasses

from markupsafe import Markup

from clcalib.report.charts.plot import SERIES, scatter
from clcalib.report.evidence import Evidence


@dataclasses.dataclass(frozen=True)
class FeatureView:
    """The map, and (name, class of its colour) of each class where every class has a colour of its own."""

    chart: Markup
    legend: tuple[tuple[str, str], ...]


def feature_view(evidence: Evidence | None) -> FeatureView | None:
    """The section about features, or None where there is no map."""
    if evidence is None or evidence.features is None or not evidence.features.floating:
        return None
    record, numbers = evidence.predictions, sorted(set(evidence.features.classes or ()))
    names = {each: f"class {each}" if record is None else record.class_name(each) for each in numbers}
    legend = [(names[number], f"s{at}") for at, number in enumerate(numbers, 1)] if len(numbers) <= SERIES else []
    return FeatureView(scatter(evidence.features, names), tuple(legend))
