"""``clcalib quantize --workers``: which workers there are, what each of them does, and what comes of them all."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import sys
import traceback
from collections.abc import Iterator, Mapping
from signal import SIGINT
from typing import Any

from rich.console import Console
from rich.text import Text
from torch._C._distributed_c10d import Store

from clcalib.calibrate.observer import Observer, SilentObserver
from clcalib.cli.codes import DEBUG_FLAG, DEBUG_VARIABLE, outcome
from clcalib.cli.given import IMAGES, UNITS
from clcalib.cli.messages import new_console, shown_warnings
from clcalib.cli.progress import observer_for
from clcalib.config_sections import RunConfig
from clcalib.durable.stop import Request, stopping_politely
from clcalib.errors import ArgumentError, StoppedError, WorkerLostError
from clcalib.forking import CAPTURING
from clcalib.output import check_output_folder, has_unfinished, how_to_go_on, is_finished, occupied, saves, start_anew
from clcalib.pipeline import RECORD_FILE
from clcalib.report.environment import versions
from clcalib.report.record import RunRecord, read_record
from clcalib.run import follow, limited_threads, pinned, run
from clcalib.sweep.key import canonical
from clcalib.team.crew import Crew
from clcalib.team.line import Line, PairLinks
from clcalib.team.member import LOST, Report, Seat, meet
from clcalib.team.nearby import exchange_of
from clcalib.team.place import Place, own_address
from clcalib.team.supervisor import WAIT, Run, Supervisor
from clcalib.team.team import SHARDS, Team
from clcalib.tracking.measures import flattened

_TOLD = ("run.precision",)  # what worker 0 tells the others


def with_shards(
    table: dict[str, Any], place: Place | None, *, is_resumed: bool, is_by_units: bool = False
) -> dict[str, Any]:
    """Add what a shared run has by default: its shards, and a thread for each worker.

    A run that goes on has the shards that it began with; one whose units are dealt has one.
    """
    section = table.get("run", {})
    if place is None or not isinstance(section, Mapping):
        return table
    usual = {"threads": 1} if is_resumed or is_by_units else {"threads": 1, "shards": SHARDS}
    return {**table, "run": {**usual, **{key: value for key, value in section.items() if value is not None}}}


def check_team(config: RunConfig, place: Place, *, is_by_units: bool = False) -> None:
    """Raise where a run cannot be shared so.

    Raises:
        ArgumentError: the workers do not divide the shards, or the run is of a kind that one worker does alone.
    """
    if is_by_units:
        _check_units(config)
        return
    try:
        Team(config.run.shards, place.workers)
    except ArgumentError as error:
        raise error.under("--workers") from None
    if place.workers == 1:
        return
    if config.run.device != "cpu":
        raise ArgumentError("--device", "cpu with --workers", config.run.device, "leave --workers out")
    if config.target is not None:
        remedy = "leave --workers out, or find the widths first and share the run that has them"
        raise ArgumentError("--max-drop", "one worker, as widths are tried one after the other", place.workers, remedy)


def _check_units(config: RunConfig) -> None:
    """Raise for what needs the whole network on one worker, and for images in several shards."""
    remedy = "leave it out, or share the images instead (--split images)"
    if config.run.shards != 1:
        raise ArgumentError(
            "--shards", "1 with --split units, as each worker has all images", config.run.shards, remedy
        )
    refused: dict[str, tuple[object, str]] = {
        "--device": (None if config.run.device == "cpu" else config.run.device, "cpu"),
        "--max-drop": (config.target, "none, as it tries whole networks"),
        "--size-budget, --cost-budget": (config.budget, "none, as the widths are found on the whole network"),
        "--target": (config.quantization.target, "none, as its file is written from the whole network"),
        "--submodule": (config.model.submodule, "none, as the rest of the model is run by one worker"),
        "--last-phase": (config.last_phase, "none, as it trains the whole network at once"),
        "--tuning": (config.tuning, "none, as it trains the whole network at once"),
        "quantization.reparameterized_layer_norm": (
            config.quantization.reparameterized_layer_norm or None,
            "false, as it changes the network before it is dealt",
        ),
    }
    for name, (given, expected) in refused.items():
        if given is not None:
            got = given if isinstance(given, str | bool) else "one"
            raise ArgumentError(name, f"{expected}, with --split units", got, remedy)


def run_on_workers(
    config: RunConfig,
    place: Place,
    log: Console,
    *,
    is_resumed: bool,
    is_quiet: bool,
    is_json: bool,
    is_by_units: bool,
    wait: float | None,
) -> RunRecord | None:
    """The run, shared; returns its record, or None in a call without worker 0, which writes nothing.

    Raises:
        StoppedError: it did not come to its end; has the exit code of all calls.
    """
    out = config.run.out

    def tell(line: str) -> None:
        log.print(Text(line), soft_wrap=True)

    if place.is_first:
        check_output_folder(out, is_emptied=config.run.overwrite or is_resumed)
        if not is_resumed and has_unfinished(out):
            with occupied(out):
                start_anew(out)  # so that no later attempt goes on with it
    settings = {name: str(value) for name, value in flattened(canonical(config)).items() if name not in _TOLD}
    settings |= {**_versions(), "--workers": str(place.workers), "--split": UNITS if is_by_units else IMAGES}
    if place.is_first:
        with limited_threads(config.run.threads):
            config = pinned(config)  # the same for all attempts
    job = SharedRun(config.model_dump_json(), is_resumed, is_quiet, is_json, is_by_units, _mark(config), _is_debug())
    stopped = (lambda: how_to_go_on(out)) if place.is_first else (lambda: "worker 0 has what is saved")
    facts = Run(progress=lambda: saves(out), stopped=stopped, tell=tell)
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "FATAL")  # workers say themselves what they lost, on a line
    crew = Crew(job, preloaded=[__name__, *CAPTURING])
    end = Supervisor(place, crew, facts, settings, wait=WAIT if wait is None else wait).run()
    if end.code != 0:
        raise StoppedError(end.message, end.code)
    return read_record(out / RECORD_FILE) if place.is_first else None


@dataclasses.dataclass(frozen=True)
class SharedRun:
    """What each worker does: a part of the computation; worker 0 also all that is written and shown.

    Args:
        config: of the run, as JSON.
        is_resumed: whether the run goes on; an attempt after the first always does, where there is something.
        is_quiet, is_json, is_by_units: of the flags.
        before: what tells the record that was in the folder before from the run's own.
        is_debug: whether errors are shown with where they come from.
    """

    config: str
    is_resumed: bool
    is_quiet: bool
    is_json: bool
    is_by_units: bool
    before: tuple[int, ...]
    is_debug: bool

    def __call__(self, seat: Seat) -> Report:
        """Carry out one worker's part.  Nothing is raised."""
        config = RunConfig.model_validate_json(self.config)
        is_own = self.is_resumed or (not seat.is_first and _mark(config) != self.before)
        if seat.rank == 0 and is_own and is_finished(config.run.out):
            return Report(0)  # the last attempt ended when all was written
        request = Request()
        try:
            with shown_warnings(new_console(is_stderr=True)), stopping_politely() as request:
                self._work(config, seat)
        except KeyboardInterrupt as error:
            return Report(128 + (request.signal or SIGINT), str(error) or how_to_go_on(config.run.out))
        except WorkerLostError as error:
            return Report(LOST, f"worker {seat.rank} lost another one ({error})", is_own=False)
        except Exception as error:
            if self.is_debug:
                traceback.print_exc()
            code, message = outcome(error)
            return Report(code, message if seat.rank == 0 else f"worker {seat.rank}: {message}")
        return Report(0)

    def _work(self, config: RunConfig, seat: Seat) -> None:
        with self._observer(seat) as observer:
            store = meet(seat)
            share = _line(store, seat) if self.is_by_units else _team(store, seat, config.run.shards)
            if seat.rank == 0:
                run(config, observer, is_resumed=self.is_resumed or not seat.is_first, share=share)
            else:
                follow(config, share)

    @contextlib.contextmanager
    def _observer(self, seat: Seat) -> Iterator[Observer]:
        if self.is_quiet or seat.rank != 0:
            yield SilentObserver()
            return
        log = new_console(is_stderr=True)
        with observer_for(log if self.is_json else new_console(), log) as observer:
            yield observer


def _team(store: Store, seat: Seat, shards: int) -> Team:
    return Team(shards, seat.workers, seat.rank, exchange_of(seat, store))


def _line(store: Store, seat: Seat) -> Line:
    address = own_address(seat.host, seat.port)
    return Line(seat.workers, seat.rank, PairLinks.join(store, seat.rank, seat.workers, address=address))


def _mark(config: RunConfig) -> tuple[int, ...]:
    """What changes when the record in the output folder is written again."""
    try:
        found = (config.run.out / RECORD_FILE).stat()
    except OSError:
        return ()
    return found.st_mtime_ns, found.st_ino, found.st_size


def _versions() -> dict[str, str]:
    known = versions()
    return {f"{name}'s version": known[name] for name in ("clcalib", "torch")}


def _is_debug() -> bool:
    return DEBUG_FLAG in sys.argv or bool(os.environ.get(DEBUG_VARIABLE))
