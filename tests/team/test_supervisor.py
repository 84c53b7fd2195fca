"""Whatever becomes of a worker, the run ends by itself, with the result that it has without that."""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

from clcalib.team.member import LOST
from clcalib.team.place import Place
from tests.team.toy import Failing, Toy, supervise, units_in

WORKERS, MOST_SECONDS = 2, 90.0  # of a busy machine


def result(folder: Path) -> list[str]:
    return [path.read_text() for path in sorted(folder.glob("unit-*"))]


def started(folder: Path) -> list[tuple[int, int, int]]:
    """Rank, attempt and process of each worker that began."""
    path = folder / "log"
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    found = (line.split() for line in lines)
    return [(int(rank), int(attempt), int(process)) for rank, attempt, process in found]


def wait_until(is_so: Callable[[], bool]) -> None:
    end = time.monotonic() + MOST_SECONDS
    while not is_so():
        assert time.monotonic() < end
        time.sleep(0.02)


def is_there(process: int) -> bool:
    """Whether a process runs; one that nobody has buried does not."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    except OSError:
        return False


@pytest.fixture
def expected(tmp_path: Path) -> list[str]:
    folder = tmp_path / "whole"
    folder.mkdir()
    assert supervise(Place.here(WORKERS), Toy(folder)) == 0
    assert [attempt for _, attempt, _ in started(folder)] == [1] * WORKERS
    return result(folder)


@pytest.mark.parametrize(("rank", "what"), [(0, "die once"), (1, "die once"), (1, "hang")])
def test_a_worker_that_dies_or_hangs_is_replaced(
    rank: int, what: str, tmp_path: Path, expected: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    assert supervise(Place.here(WORKERS), Toy(tmp_path, misfits=((rank, what),)), silence=3.0) == 0
    assert result(tmp_path) == expected
    assert sorted(each[:2] for each in started(tmp_path)) == [(0, 1), (0, 2), (1, 1), (1, 2)]
    assert (
        f"worker {rank} was killed by SIGKILL; all workers begin again where the run was saved"
        in capfd.readouterr().out
    )


@pytest.mark.parametrize("rank", [0, 1])
def test_an_error_that_would_come_again_is_told_once(
    rank: int, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert supervise(Place.here(WORKERS), Failing(tmp_path, misfits=((rank, "fail"),))) == 2
    assert capfd.readouterr().out == f"end 2: rank {rank} has bad images\n"
    assert [attempt for _, attempt, _ in started(tmp_path)] == [1] * WORKERS


def test_a_worker_that_always_dies_ends_the_run(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert supervise(Place.here(WORKERS), Toy(tmp_path, misfits=((1, "die"),)), attempts=2) == LOST
    told = "worker 1 was killed by SIGKILL; nothing was saved in the last 2 attempts, so this is given up"
    assert f"end {LOST}: {told}; go on with the toy" in capfd.readouterr().out
    assert units_in(tmp_path) == 1
    assert max(attempt for _, attempt, _ in started(tmp_path)) == 3  # the first one saved a unit


def test_a_signal_lets_worker_0_save_and_ends_all(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    def ask() -> None:
        wait_until(lambda: units_in(tmp_path) > 0)
        assert signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL  # else it would end the tests
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=ask)
    thread.start()
    assert supervise(Place.here(WORKERS), Toy(tmp_path, units=1000, seconds=0.05)) == 143
    thread.join()
    assert "end 143: stopped by the toy" in capfd.readouterr().out
    assert not any(is_there(process) for *_, process in started(tmp_path))


def call(place: Place, toy: Toy) -> BaseProcess:
    """A call in a process of its own."""
    process = multiprocessing.get_context("forkserver").Process(target=supervise, args=(place, toy))
    process.start()
    return process


def kill(process: BaseProcess) -> None:
    process.kill()
    process.join()


def test_no_worker_stays_behind_a_supervisor_that_is_killed(tmp_path: Path) -> None:
    first = call(Place.here(WORKERS), Toy(tmp_path, units=1000))
    wait_until(lambda: units_in(tmp_path) > 0)
    kill(first)
    wait_until(lambda: not any(is_there(process) for *_, process in started(tmp_path)))


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def test_two_calls_meet_and_one_that_is_started_again_is_taken_back(tmp_path: Path, expected: list[str]) -> None:
    address = f"127.0.0.1:{free_port()}"
    places = [Place.among_machines(WORKERS, rank, address) for rank in range(WORKERS)]
    toy = Toy(tmp_path, seconds=0.2)
    codes = list[int]()
    first = threading.Thread(target=lambda: codes.append(supervise(places[0], toy)))
    first.start()
    lost = call(places[1], toy)
    wait_until(lambda: units_in(tmp_path) > 0)
    kill(lost)
    assert supervise(places[1], toy) == 0
    first.join()
    assert codes == [0]
    assert result(tmp_path) == expected
    assert {attempt for _, attempt, _ in started(tmp_path)} > {1}


def test_calls_with_other_settings_are_told(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    address = f"127.0.0.1:{free_port()}"
    codes = dict[int, int]()

    def run(rank: int) -> None:
        place = Place.among_machines(WORKERS, rank, address)
        codes[rank] = supervise(place, Toy(tmp_path), str(rank))

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(WORKERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert codes == {0: 2, 1: 2}
    assert (
        capfd.readouterr().out.count("worker 1 was started with other settings than worker 0: seed is 1, and not 0")
        == WORKERS
    )


def test_a_call_that_never_comes_is_waited_for_and_then_told(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    place = Place.among_machines(WORKERS, 0, f"127.0.0.1:{free_port()}")
    assert supervise(place, Toy(tmp_path), wait=1.0) == LOST
    assert f"worker 1 was not heard at 127.0.0.1:{place.port} for 1 seconds" in capfd.readouterr().out
