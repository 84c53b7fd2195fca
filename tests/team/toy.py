"""A job that needs no network: some units, each of a few sums over all workers, saved by worker 0 when it is done."""

from __future__ import annotations

import dataclasses
import os
import signal
import sys
import time
from pathlib import Path

import torch

from clcalib.durable.stop import is_asked, stopping_politely
from clcalib.errors import WorkerLostError
from clcalib.team.crew import Crew
from clcalib.team.member import LOST, Report, Seat, meet
from clcalib.team.nearby import exchange_of
from clcalib.team.place import Place
from clcalib.team.supervisor import Run, Supervisor


@dataclasses.dataclass(frozen=True)
class Toy:
    """What each worker does.

    Args:
        folder: where a unit's file is written, and ``log`` says who began.
        units, steps, seconds: how much there is, and how long a step takes.
        misfits: what goes wrong, by rank: ``fail`` with an error of its own, ``die`` at each attempt, ``hang`` at the
            first.
    """

    folder: Path
    units: int = 3
    steps: int = 5
    seconds: float = 0.01
    misfits: tuple[tuple[int, str], ...] = ()

    def __call__(self, seat: Seat) -> Report:
        with (self.folder / "log").open("a") as log:
            log.write(f"{seat.rank} {seat.attempt.rpartition('.')[2]} {os.getpid()}\n")
        try:
            with stopping_politely() as request:
                self._work(seat)
        except WorkerLostError as error:
            return Report(LOST, str(error), is_own=False)
        except KeyboardInterrupt:
            return Report(128 + (request.signal or signal.SIGINT), "stopped by the toy")
        return Report(0)

    def _work(self, seat: Seat) -> None:
        exchange = exchange_of(seat, meet(seat))
        for unit in range(self.units):
            path, total = self.folder / f"unit-{unit}", 0.0
            if exchange.broadcast(bytes([path.exists()]) if seat.rank == 0 else None) != b"\0":
                continue
            for step in range(self.steps):
                if seat.rank == 0 and is_asked():
                    raise KeyboardInterrupt
                time.sleep(self.seconds)
                self._misbehave(seat, unit, step)
                total += sum(float(each) for each in exchange.begin(torch.tensor([float(unit * step + seat.rank)]))())
            if seat.rank == 0:
                path.write_text(str(total))

    def _misbehave(self, seat: Seat, unit: int, step: int) -> None:
        what = dict(self.misfits).get(seat.rank)
        if (unit, step) != (1, 1) or what is None:
            return
        if what == "die" or (what == "die once" and seat.attempt.endswith(".1")):
            os.kill(os.getpid(), signal.SIGKILL)
        if what == "hang" and seat.attempt.endswith(".1"):
            os.kill(os.getpid(), signal.SIGSTOP)
        if what == "fail":
            raise SystemExit(f"rank {seat.rank} has bad images")


@dataclasses.dataclass(frozen=True)
class Failing(Toy):
    """The same with an error that would come again."""

    def __call__(self, seat: Seat) -> Report:
        try:
            return Toy.__call__(self, seat)
        except SystemExit as error:
            return Report(2, str(error))


def units_in(folder: Path) -> int:
    return len(list(folder.glob("unit-*")))


def supervise(place: Place, toy: Toy, seed: str = "0", silence: float = 20.0, **limits: float) -> int:
    """One call; lines are printed, and so is its end."""
    run = Run(
        progress=lambda: units_in(toy.folder),
        stopped=lambda: "go on with the toy",
        tell=lambda line: print(line, flush=True),
    )
    end = Supervisor(place, Crew(toy, silence), run, {"seed": seed}, silence=silence, **limits).run()  # type: ignore[arg-type]
    print(f"end {end.code}: {end.message}", flush=True)
    return end.code


if __name__ == "__main__":
    # FOLDER WORKERS [RANK HOST:PORT [UNITS]] for a call in a process of its own.
    where, count = Path(sys.argv[1]), int(sys.argv[2])
    own = Place.here(count) if len(sys.argv) < 5 else Place.among_machines(count, int(sys.argv[3]), sys.argv[4])
    number = int(sys.argv[5]) if len(sys.argv) > 5 else 3
    sys.exit(supervise(own, Toy(where, units=number, seconds=0.05), silence=5.0, wait=60.0))
