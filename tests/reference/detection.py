"""Agreement of detections, box by box in plain Python."""

from __future__ import annotations


def overlap(a: list[float], b: list[float]) -> float:
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    common = width * height
    return common / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - common)


def matched_overlaps(floats: dict, own: dict, threshold: float, least: float) -> tuple[list[float], int]:
    """Overlaps of the float detections that are found again, and how many float detections there are."""
    ours = [i for i in range(len(own["scores"])) if own["scores"][i] >= threshold]
    theirs = [i for i in range(len(floats["scores"])) if floats["scores"][i] >= threshold]
    theirs.sort(key=lambda i: -floats["scores"][i])
    ours.sort(key=lambda i: -own["scores"][i])
    found = []
    for i in theirs:
        best, place = -1.0, None
        for j in ours:
            if own["labels"][j] == floats["labels"][i]:
                value = overlap(floats["boxes"][i], own["boxes"][j])
                if value > best:
                    best, place = value, j
        if place is not None and best >= least:
            found.append(best)
            ours.remove(place)
    return found, len(theirs)
