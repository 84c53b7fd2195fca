"""The exchange through shared memory: the tensors of the library's, in any number, and a lost worker is noticed."""

from __future__ import annotations

import os
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from typing import Any, cast

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from clcalib.errors import WorkerLostError
from clcalib.team import nearby
from clcalib.team.group import ProcessGroup
from clcalib.team.nearby import SLOT, SLOTS, NearbyExchange, joined
from clcalib.team.team import Exchange, Team
from tests.team.workers import alone, answers_of, quantized
from tests.team.workers import digest as digest_of

pytestmark = [
    pytest.mark.skipif(not nearby.is_supported(), reason="there is no memory without a name here"),
    pytest.mark.filterwarnings("ignore::clcalib.errors.WorseThanNearestWarning"),
]
Work = Callable[[Exchange, int, int], Any]


def together(workers: int, task: Work, *, is_torn: bool = False) -> list[Any]:
    """What a task gives on each worker; where they are torn, worker 1 cannot reach the memory."""
    return answers_of(workers, _Connected(task, is_torn), 120)


class _Connected:
    def __init__(self, task: Work, is_torn: bool) -> None:
        self.task, self.is_torn = task, is_torn

    def __call__(self, workers: int, rank: int, port: int, answers: Any) -> None:
        torch.set_num_threads(1)
        try:
            store = dist.TCPStore("127.0.0.1", port, timeout=timedelta(seconds=60))
            group = ProcessGroup.join(store, rank, workers, address="127.0.0.1")
            if self.is_torn and rank == 1:
                nearby._opened = lambda store: None
            answer = self.task(joined(group, store, rank, workers), rank, workers)
        except BaseException:  # whatever it is, the test has to be told
            answers.put((rank, traceback.format_exc(), None))
        else:
            answers.put((rank, None, answer))


def tensors_of(rank: int) -> list[Tensor]:
    """All that a run exchanges, and what is at the edges: nothing, one number, a whole slot, and more."""
    generator = torch.Generator().manual_seed(rank)
    return [
        torch.randn(3, 5, generator=generator),
        torch.randn((), generator=generator),
        torch.zeros(0),
        torch.randint(-9, 9, (7,), generator=generator),
        torch.randn(4, generator=generator).double(),
        torch.randn(4, generator=generator).to(torch.bfloat16),
        torch.tensor([rank == 0, True]),
        torch.randn(2, 3, 4, generator=generator).transpose(0, 2),
        torch.randn(SLOT // 4, generator=generator),
        torch.randn(SLOT // 4 + 1, generator=generator),
    ]


def all_kinds(exchange: Exchange, rank: int, workers: int) -> bool:
    assert isinstance(exchange, NearbyExchange)
    for _ in range(3 * SLOTS):  # all slots several times
        for at, tensor in enumerate(tensors_of(rank)):
            found = exchange.begin(tensor)()
            expected = [tensors_of(each)[at] for each in range(workers)]
            assert len(found) == workers
            for one, other in zip(found, expected, strict=True):
                assert one.dtype == other.dtype
                assert torch.equal(one, other)
    assert exchange.broadcast(b"said" if rank == 0 else None) == b"said"
    return True


@pytest.mark.parametrize("workers", [2, 4])
def test_every_worker_gets_the_tensors_of_all(workers):
    assert together(workers, all_kinds) == [True] * workers


def many_at_once(exchange: Exchange, rank: int, workers: int) -> list[int]:
    """More than there are slots for, begun before the first is waited for, by workers that are late in turns."""
    assert isinstance(exchange, NearbyExchange)
    sums = []
    for turn in range(20):
        if turn % workers == rank:
            time.sleep(0.005)
        waits = [exchange.begin(torch.tensor([turn, rank, number])) for number in range(3 * SLOTS)]
        sums += [int(torch.stack(wait()).sum()) for wait in waits]
    assert exchange.messages == 20 * 3 * SLOTS
    assert exchange.sent_bytes == exchange.messages * 24
    return sums


def test_what_has_no_slot_takes_the_other_way():
    expected = [2 * turn + 1 + 2 * number for turn in range(20) for number in range(3 * SLOTS)]
    assert together(2, many_at_once) == [expected] * 2


def overwritten(exchange: Exchange, rank: int, workers: int) -> float:
    """What was waited for stays, whatever its worker makes of the tensor, and of its slot."""
    tensor = torch.full((4,), float(rank))
    kept = exchange.begin(tensor)()
    for number in range(2 * SLOTS):
        tensor.fill_(9.0 + number)
        exchange.begin(tensor)()
    return float(torch.stack(kept).sum())


def test_what_was_given_stays():
    assert together(2, overwritten) == [4.0, 4.0]


def left_alone(exchange: Exchange, rank: int, workers: int) -> float:
    exchange.begin(torch.zeros(1))()
    return 0.0 if rank == 1 else left_to_a_death(exchange)  # its process ends


def late_and_then_gone(exchange: Exchange, rank: int, workers: int) -> float:
    exchange.begin(torch.zeros(1))()
    if rank == 1 and os.fork() == 0:
        os._exit(0)  # a child's end, which closes what it has of its parent's, is not the worker's
    if rank == 1:
        time.sleep(2.5)  # who is late is not taken as gone
    exchange.begin(torch.zeros(1))()
    return 0.0 if rank == 1 else left_to_a_death(exchange)


def left_to_a_death(exchange: Exchange) -> float:
    start = time.monotonic()
    with pytest.raises(WorkerLostError, match="worker 1 is gone"):
        exchange.begin(torch.zeros(1))()
    return time.monotonic() - start


@pytest.mark.parametrize("task", [left_alone, late_and_then_gone])
def test_a_worker_that_is_gone_is_noticed_in_seconds(task):
    assert together(2, task)[0] < 10


def kind_of(exchange: Exchange, rank: int, workers: int) -> str:
    exchange.begin(torch.zeros(1))()
    return type(exchange).__name__


def test_all_take_the_library_where_one_cannot_reach_the_memory():
    assert together(2, kind_of) == ["NearbyExchange"] * 2
    assert together(2, kind_of, is_torn=True) == ["ProcessGroup"] * 2


def test_a_worker_that_does_not_come_is_told_as_lost():
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=1))
    with pytest.raises(WorkerLostError, match="the 2 workers do not meet in the store"):
        joined(cast(ProcessGroup, None), store, 0, 2)


def contrastive_digest(exchange: Exchange, rank: int, workers: int) -> str:
    return digest_of(quantized(Team(4, workers, rank, exchange), "contrastive"))


def test_a_run_has_the_bits_of_one_worker():
    assert together(2, contrastive_digest) == [alone(lambda team: digest_of(quantized(team, "contrastive")))] * 2


def test_no_other_platform_is_taken_as_one_that_keeps_the_order_of_stores(monkeypatch):
    for machine, expected in (("x86_64", True), ("AMD64", True), ("aarch64", False), ("ppc64le", False)):
        monkeypatch.setattr("platform.machine", lambda told=machine: told)
        assert nearby.is_supported() == expected
