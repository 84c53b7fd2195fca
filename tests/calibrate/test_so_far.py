"""How good the network is so far: right, seldom, and without an effect on the result."""

from __future__ import annotations

import torch
from tests.tiny import images, tiny

from clcalib.calibrate.observer import SilentObserver
from clcalib.calibrate.recipes import qdrop
from clcalib.calibrate.so_far import FIRST_AFTER, IMAGES, SHARE_OF_TIME, AgreementSoFar
from clcalib.calibrate.store import as_rows
from clcalib.capture.chain import capture
from clcalib.data.calibration import CalibrationSet
from clcalib.pipeline import quantize
from clcalib.quant.policy import Bits


def test_it_is_the_share_of_equal_classes() -> None:
    model, x = tiny(), images(80)
    chain = capture(model, x[:2], unit="layer")
    now = [0.0]
    so_far = AgreementSoFar(chain, x, clock=lambda: now[0])
    now[0] = FIRST_AFTER
    (state,) = chain.prefix(1)(x)
    with torch.no_grad():
        changed = state + 20.0 * torch.randn(state.shape, generator=torch.Generator().manual_seed(0))
        own, other = model(x).argmax(1), chain.suffix(0)(changed)[0].argmax(1)
    assert so_far.after(0, (as_rows(state.detach()),)) == 1.0
    expected = float((own == other)[:IMAGES].float().mean())
    assert 0 < expected < 1
    assert so_far.after(0, (as_rows(changed),)) == expected


def test_it_takes_a_small_share_of_the_time() -> None:
    x = images(16)
    chain = capture(tiny(), x[:2], unit="block")
    now, spent = [0.0], [0.0]

    class Slow(AgreementSoFar):
        def _measured(self, index: int, state: object) -> float:
            now[0] += 0.5
            spent[0] += 0.5
            return 1.0

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
    so_far = AgreementSoFar(chain, x, clock=lambda: float(next(seconds)))
    assert so_far.after(0, tuple(as_rows(each.detach()) for each in chain.body(0)(x))) is None


class Listener(SilentObserver):
    """Hears of it; one that only ignores everything is spared the work."""

    def __init__(self) -> None:
        self.shares: list[float] = []

    def agreement_so_far(self, share: float) -> None:
        self.shares.append(share)


def test_the_result_is_the_same_with_and_without_it(monkeypatch) -> None:
    monkeypatch.setattr("clcalib.calibrate.so_far.FIRST_AFTER", 0.0)
    monkeypatch.setattr("clcalib.calibrate.so_far.SHARE_OF_TIME", 1e9)
    calibration = CalibrationSet.from_tensor(images(32))
    listener = Listener()
    results = [
        quantize(tiny(), calibration, recipe=qdrop(steps=4), bits=Bits(3, 3), observer=observer)
        for observer in (listener, None)
    ]
    assert len(listener.shares) == len(results[0].record.units)
    assert all(0 <= share <= 1 for share in listener.shares)
    first, second = (result.model.state_dict() for result in results)
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())
