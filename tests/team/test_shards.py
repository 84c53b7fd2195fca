"""What is computed shard by shard against the same over all images at once."""

from __future__ import annotations

import functools
import itertools
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import clcalib
from clcalib.calibrate.caches import find_ranges
from clcalib.calibrate.fuse import fuse
from clcalib.calibrate.layout import ALIGNMENT, Layout, joined
from clcalib.calibrate.loop import HostSteps
from clcalib.calibrate.moving import squared_gradient
from clcalib.calibrate.observer import SilentObserver
from clcalib.calibrate.probes import stored_error, term_scales
from clcalib.calibrate.recipe import Phase, Term
from clcalib.calibrate.shared_step import SharedSteps
from clcalib.calibrate.space import StoreSpace
from clcalib.calibrate.step import Step
from clcalib.calibrate.store import as_rows
from clcalib.calibrate.streams import StepStream
from clcalib.calibrate.unit_data import UnitData
from clcalib.calibrate.walk import Walk
from clcalib.capture.chain import capture
from clcalib.job import _keys
from clcalib.objectives.batch import Need
from clcalib.objectives.contrastive import Contrastive
from clcalib.objectives.local import LearnedHead
from clcalib.objectives.lp import Reconstruction
from clcalib.objectives.rounding_penalty import RoundingPenalty
from clcalib.quant.condense import EXACT_VALUES, Histogram, gathered
from clcalib.quant.insert import chain_policy, insert_quantizers
from clcalib.quant.ranges import RANGE_RULES
from clcalib.team.team import Team
from tests.team.workers import Echo
from tests.tiny import images, tiny

COUNT = 32  # images, all of which a step sees, so that the order in which they are drawn plays no part


@given(shards=st.integers(1, 6), count=st.integers(12, 60), size=st.integers(1, 9), first=st.integers(1, 70))
def test_batches_stay_within_shards_and_take_the_first_of_each(shards, count, size, first):
    layout = Layout.of(Team(shards=shards), count)
    batches = layout.batches(size, first)
    rows = [row for batch in batches for row in range(batch.start, batch.stop)]
    counts = layout.limited(first).counts
    expected = [start + at for start, some in zip(layout.starts, counts, strict=True) for at in range(some)]
    assert rows == expected
    assert [batch.place for batch in batches] == [rows.index(batch.start) for batch in batches]
    assert all(layout.shard_of(batch.start) == layout.shard_of(batch.stop - 1) == batch.shard for batch in batches)
    assert sum(counts) <= first or first < shards


@given(shards=st.sampled_from([2, 4, 6]), count=st.integers(12, 40))
def test_workers_have_the_batches_of_one(shards, count):
    def seen(workers):
        layouts = [Layout.of(Team(shards, workers, rank), count) for rank in range(workers)]
        return [(layout.first + b.start, layout.first + b.stop) for layout in layouts for b in layout.batches(3, 20)]

    assert seen(1) == seen(2)


def test_rows_of_all_workers_come_in_their_order():
    values = torch.arange(10.0)[:, None]
    parts = [values[:4], values[4:]]

    class Two:
        def begin(self, tensor):
            padded = [torch.cat([part, part.new_zeros(6 - len(part), 1)]) for part in parts]
            return lambda: padded

    for rank in (0, 1):
        assert torch.equal(joined(Team(2, 2, rank, Two()), parts[rank], [4, 6]), values)


def test_what_lies_otherwise_on_another_worker_is_moved():
    storage = torch.arange(40.0)
    odd = storage[1:9]
    assert Layout.of(Team(shards=2), 4).aligned(odd).data_ptr() % ALIGNMENT == 0
    assert Layout.alone(4).aligned(odd) is odd


@pytest.mark.parametrize("count", [100, EXACT_VALUES + 8])
def test_statistics_of_workers_are_those_of_all_values(count):
    values = torch.randn(count, generator=torch.Generator().manual_seed(0)).relu() - 0.1
    whole, parts, meeting = gathered(lambda: [values]), (values[: count // 3], values[count // 3 :]), Meeting(2)

    def of_worker(rank):
        return gathered(lambda: [parts[rank]], lambda tensor: meeting.exchanged(rank, tensor))

    with ThreadPoolExecutor(2) as pool:
        for found in pool.map(of_worker, range(2)):
            if isinstance(whole, Histogram):
                columns = [(getattr(each, name) for name in ("middles", "counts", "lower", "upper"))
                           for each in (whole, found)]  # fmt: skip
                assert all(map(torch.equal, *columns))
            else:
                assert torch.equal(whole, found)


class Meeting:
    """Threads that exchange tensors."""

    def __init__(self, workers: int) -> None:
        self._barrier, self._found = threading.Barrier(workers, timeout=60), [torch.empty(0)] * workers

    def exchanged(self, rank: int, tensor: torch.Tensor) -> list[torch.Tensor]:
        self._found[rank] = tensor
        self._barrier.wait()
        found = list(self._found)
        self._barrier.wait()
        return found


@functools.cache
def network():
    return capture(tiny(), images(2), unit="block")


def at_the_block(shards: int, terms, count: int = COUNT):
    """A walk that stands before the block, the second unit: the walk, its phase, the stores, and the unit's targets."""
    chain = network()
    base = insert_quantizers(chain, chain_policy(chain, clcalib.Bits(3, 4)), RANGE_RULES["minmax"], None)
    phase = Phase("p", 4, terms, batch_size=count, rounding_rate=1e-3, activation_rate=1e-3)
    keys = _keys(chain, images(count)) if phase.needs & {Need.FEATURES, Need.LOGITS} else {}
    recipe = clcalib.Recipe("r", phases=(phase,))
    walk = Walk(chain, base, recipe, RANGE_RULES["minmax"], keys, 0, SilentObserver(), team=Team(shards=shards))
    pair = walk.pair(images(count))
    for index in (0, 1):
        targets = walk._floats(chain.body(index), pair)
        walk._find_ranges(index, pair, targets)
        if index == 0:
            walk.pass_on(0, pair, None)
    return walk, phase, pair, targets


def stepping(shards: int, terms):
    """Its steps, and the scales of its terms."""
    walk, phase, pair, targets = at_the_block(shards, terms)
    points = tuple(need for need in (Need.FEATURES, Need.LOGITS) if need in phase.needs)
    data = UnitData(
        pair.quantized, pair.floating, targets[0], 0, walk._rest(1, points), points, walk.keys, dealt=pair.layout
    )
    random = StepStream(0, 1, 0, shards)
    scales = term_scales(phase, walk.quantized.chain.body(1), data)
    body = fuse(walk._working_body(1, phase, random), torch.float32, casts_inputs=False)
    step = Step.of(body, data, phase, random, scales=scales)
    return step, HostSteps(step) if shards == 1 else SharedSteps(step), scales


def gradients(shards: int, terms):
    """Of one step that sees all images, those of everything that is trained, and the losses."""
    step, steps, scales = stepping(shards, terms)
    steps.run(3)
    rounding, activations = ([p.grad for p in group.optimizer.parameters] for group in step.trained)
    return rounding, activations, steps.losses(), scales


def head() -> LearnedHead:
    return LearnedHead(weight=torch.nn.Parameter(torch.ones(4, 8)))


@pytest.mark.parametrize(
    "terms",
    [
        (Term(Reconstruction()), Term(RoundingPenalty(warm_up=0.0), 0.01)),
        (Term(Reconstruction()), Term(Contrastive(), 0.5, is_relative=True)),
        (Term(Reconstruction(2.4)), Term(Contrastive(), 0.5, on="quantized")),
    ],
)
@pytest.mark.parametrize("shards", [3, 4])
def test_the_gradient_is_that_of_all_images_at_once(terms, shards):
    *expected, losses, scales = gradients(1, terms)
    *found, own_losses, own_scales = gradients(shards, terms)
    assert own_scales == pytest.approx(scales, rel=1e-4)
    assert own_losses == pytest.approx(losses, rel=1e-4)
    pairs = (zip(*columns, strict=True) for columns in zip(found, expected, strict=True))
    for own, whole in itertools.chain.from_iterable(pairs):
        assert own.stride() == whole.stride()
        torch.testing.assert_close(own, whole, rtol=1e-3, atol=1e-5 * float(whole.abs().max()))


def test_parameters_without_a_gradient_are_left_alone():
    """The head sees nothing in a step at which its term is not due; Adam must not count the step for it."""
    step, steps, _ = stepping(4, (Term(Reconstruction()), Term(head(), interval=2)))
    for number in range(3):
        steps.run(number)
    assert [group.optimizer.steps()[0] for group in step.trained] == [3, 3, 2]
    assert list(steps.losses()) == ["Reconstruction", "LearnedHead"]


def test_ranges_errors_and_fisher_weights_are_those_of_all_images():
    count = 50
    walk, _, pair, targets = at_the_block(1, (Term(Reconstruction()),), count)
    body, rest, rows, found = walk.quantized.chain.body(1), walk.floating.suffix(1), pair.floating, []
    for shards in (1, 4):
        layout, space = Layout.of(Team(shards=shards), count), StoreSpace()
        open_body = insert_quantizers(
            network(), chain_policy(network(), clcalib.Bits(3, 4)), RANGE_RULES["minmax"], None
        )
        ranges = find_ranges(open_body.chain.body(1), rows, RANGE_RULES["mse_grid"], space, layout)
        first = next(iter(ranges.quantizers.values()))  # of what is stored, before anything is computed
        moved = (as_rows(targets[0].first(count) + 0.1),)
        error = stored_error(walk.floating.units[1], moved, targets, layout)
        weights = squared_gradient(body, rest, pair.quantized, targets, 0, space, layout=layout).first(count)
        found.append((first.scale, first.zero_point, error, weights))
    (scale, zero, error, weights), (own_scale, own_zero, own_error, own_weights) = found
    assert torch.equal(scale, own_scale)
    assert torch.equal(zero, own_zero)
    assert own_error == pytest.approx(error, rel=1e-5)
    torch.testing.assert_close(own_weights, weights, rtol=1e-2, atol=1e-3)
    assert float(own_weights.mean()) == pytest.approx(1, rel=1e-5)


def test_keys_are_those_of_all_images_on_each_worker():
    chain, many = capture(tiny(), images(2), unit="block"), images(20)
    team = Team(2, 2, 1, Echo(2))
    assert all(len(keys) == 20 for keys in _keys(chain, many, team).values())
    layout = Layout.of(team, 20)
    assert (layout.first, layout.own_count) == (10, 10)


def test_shards_have_random_numbers_of_their_own():
    random = StepStream(0, 1, 0, 2)
    random.advance(5, 0)
    first, batch = random.draw(0.5), random.batch(20, 5)
    random.advance(5, 1)
    assert random.draw(0.5) != first
    assert not torch.equal(random.batch(20, 5), batch)
    assert torch.equal(random.batch(20, 5, shard=0), batch)
    plain, alone = StepStream(0, 1, 0), StepStream(0, 1, 0, 1)
    assert torch.equal(plain.batch(20, 5), alone.batch(20, 5))
