"""How good the network is so far: right, seldom, and without an effect on the result."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.tiny import images, tiny
from torch import nn

from clcalib.calibrate.observer import SilentObserver
from clcalib.calibrate.recipes import qdrop
from clcalib.calibrate.so_far import FIRST_AFTER, IMAGES, SHARE_OF_TIME, Quality, QualitySoFar
from clcalib.calibrate.store import as_rows
from clcalib.capture.chain import capture
from clcalib.data.calibration import CalibrationSet, EvaluationSet, labels_of
from clcalib.pipeline import quantize
from clcalib.quant.policy import Bits
from clcalib.team.team import Team


def test_it_is_the_shares_of_equal_and_of_right_classes() -> None:
    model, x = tiny(), images(80)
    chain = capture(model, x[:2], unit="layer")
    now = [0.0]
    labels = torch.arange(80) % 3
    so_far = QualitySoFar(chain, x, labels, clock=lambda: now[0])
    unlabelled = QualitySoFar(chain, x, clock=lambda: now[0])
    now[0] = FIRST_AFTER
    (state,) = chain.prefix(1)(x)
    with torch.no_grad():
        changed = state + 20.0 * torch.randn(state.shape, generator=torch.Generator().manual_seed(0))
        own, other = model(x).argmax(1), chain.suffix(0)(changed)[0].argmax(1)
    right = [float((each == labels)[:IMAGES].float().mean()) for each in (other, own)]
    assert so_far.after(0, (as_rows(state.detach()),)) == Quality(1.0, right[1], right[1])
    expected = float((own == other)[:IMAGES].float().mean())
    assert 0 < expected < 1
    assert right[0] != right[1]
    assert so_far.after(0, (as_rows(changed),)) == Quality(expected, *right)
    assert unlabelled.after(0, (as_rows(changed),)) == Quality(expected, None, None)


def test_it_takes_a_small_share_of_the_time() -> None:
    x = images(16)
    chain = capture(tiny(), x[:2], unit="block")
    now, spent = [0.0], [0.0]

    class Slow(QualitySoFar):
        def _measured(self, index: int, state: object) -> Quality:
            now[0] += 0.5
            spent[0] += 0.5
            return Quality(1.0)

    so_far, count = Slow(chain, x, clock=lambda: now[0]), 0
    for _ in range(1000):
        now[0] += 1.0
        found = so_far.after(0, ())
        count += found is not None
        assert found is None or now[0] > FIRST_AFTER
    assert count > 10
    assert spent[0] <= SHARE_OF_TIME * now[0] + 0.5


def test_what_does_not_classify_is_not_measured() -> None:
    x = torch.randn(8, 3, 8, 8)
    layers = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(), torch.nn.Conv2d(4, 4, 3))
    chain = capture(layers.eval(), x[:2])
    seconds = iter(range(0, 10_000, 1000))
    so_far = QualitySoFar(chain, x, clock=lambda: float(next(seconds)))
    assert so_far.after(0, tuple(as_rows(each.detach()) for each in chain.body(0)(x))) is None


class Listener(SilentObserver):
    """Hears of it; one that only ignores everything is spared the work."""

    def __init__(self) -> None:
        self.found: list[Quality] = []

    def quality_so_far(
        self, agreement: float, accuracy: float | None = None, float_accuracy: float | None = None
    ) -> None:
        self.found.append(Quality(agreement, accuracy, float_accuracy))


def of_both(monkeypatch: pytest.MonkeyPatch, team: Team | None = None, **sets: Any) -> tuple[Listener, nn.Module]:
    """Who listened to a run, and its result, which is that of a run to which nobody listened."""
    monkeypatch.setattr("clcalib.calibrate.so_far.FIRST_AFTER", 0.0)
    monkeypatch.setattr("clcalib.calibrate.so_far.SHARE_OF_TIME", 1e9)
    calibration, listener = CalibrationSet.from_tensor(images(32)), Listener()
    results = [
        quantize(tiny(), calibration, recipe=qdrop(steps=4), bits=Bits(3, 3), observer=observer, team=team, **sets)
        for observer in (listener, None)
    ]
    assert len(listener.found) == len(results[0].record.units)
    first, second = (result.model.state_dict() for result in results)
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())
    return listener, results[0].model


def test_the_result_is_the_same_with_and_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    listener, _ = of_both(monkeypatch)
    assert all(0 <= quality.agreement <= 1 and quality.accuracy is None for quality in listener.found)


@pytest.mark.parametrize("shards", [1, 2])
def test_held_out_images_with_classes_tell_the_accuracy(shards: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Behind the last unit it is that of the result."""
    model, all_images = tiny(), images(60, seed=9)
    with torch.no_grad():
        labels = model(all_images).argmax(1)
    labels[:20] = (labels[:20] + 1) % 4  # where float is wrong
    rows = torch.arange(59, 11, -1)
    evaluation = EvaluationSet.from_tensor(all_images, labels, indices=range(100, 160))
    held_out = CalibrationSet.from_tensor(all_images[rows], indices=(rows + 100).tolist())
    listener, model = of_both(monkeypatch, Team(shards), evaluation=evaluation, held_out=held_out)
    assert [quality.float_accuracy for quality in listener.found] == [pytest.approx(40 / 48)] * len(listener.found)
    with torch.no_grad():
        right = model(all_images[rows]).argmax(1) == labels[rows]
    assert listener.found[-1].accuracy == pytest.approx(float(right.float().mean()))


@pytest.mark.parametrize("change", ["indices", "source", "images", "labels", "places"])
def test_classes_are_taken_from_the_very_images_alone(change: str) -> None:
    x, labels = images(6), torch.arange(6)
    evaluation = EvaluationSet.from_tensor(x, None if change == "labels" else labels, indices=range(6))
    other = {
        "indices": {"indices": None},
        "source": {"indices": [4, 1], "source": "another folder"},
        "places": {"indices": [4, 7]},
    }
    taken = x[[4, 2]] if change == "images" else x[[4, 1]]
    held_out = CalibrationSet.from_tensor(taken, **other.get(change, {"indices": [4, 1]}))
    assert labels_of(held_out, evaluation, 2) is None
    assert labels_of(held_out, None, 2) is None


def test_classes_are_those_of_the_images_that_are_measured() -> None:
    x, labels = images(6), torch.arange(6)
    evaluation = EvaluationSet.from_tensor(x, labels, indices=range(6))
    held_out = CalibrationSet.from_tensor(x[[4, 1, 3]], indices=[4, 1, 3])
    found = [labels_of(held_out, evaluation, count) for count in (2, 3, 9)]
    assert [each.tolist() for each in found if each is not None] == [[4, 1], [4, 1, 3], [4, 1, 3]]
