"""Kill workers of shared runs, and take the link between two machines down: benchmarks/results/worker_failures.json.

    python benchmarks/worker_failures.py kills     # 50 workers killed at random times, over runs of a small network
    python benchmarks/worker_failures.py link      # a link that is down for 60 s, 10 times (Linux, root)

Each part is written by itself.  A run must end by itself, with the bytes of one that nothing happened to, and do no
more than one unit again for each failure.  For the link, two network namespaces stand for two machines; where they
cannot be made, the part says so and writes nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

import torch
from safetensors.torch import save_file

from clcalib.cli import main as clcalib
from clcalib.files import write_atomically
from clcalib.team.crew import Crew
from common import RESULTS, ROOT, provenance

RESULT = RESULTS / "worker_failures.json"
KILLS, DOWNS, DOWN_SECONDS = 50, 10, 60.0
WORKERS = 2
ADDRESSES = ("10.77.31.1", "10.77.31.2")  # of the two namespaces
NAMES = ("clcalib-one", "clcalib-two")
PORT = 29577
MOST_SECONDS = 1800.0  # of a run, after which it counts as hanging

NETWORK = """
from torch import nn

def build(width=4, depth=4):
    layers = [nn.Conv2d(3, width, 3, padding=1), nn.ReLU()]
    for _ in range(depth):
        layers += [nn.Conv2d(width, width, 3, padding=1), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 3))
"""


@contextlib.contextmanager
def workplace(steps: int) -> Iterator[Path]:
    """A folder with a small network, its images and a configuration; the current one."""
    before, folder = Path.cwd(), Path(tempfile.mkdtemp(prefix="worker-failures-"))
    generator = torch.Generator().manual_seed(0)
    (folder / "net.py").write_text(NETWORK)
    sys.path.insert(0, str(folder))
    from net import build  # type: ignore[import-not-found]

    state = {name: torch.randn(tensor.shape, generator=generator) / 3 for name, tensor in build().state_dict().items()}
    save_file(state, folder / "net.safetensors")
    save_file({"images": torch.randn(32, 3, 8, 8, generator=generator)}, folder / "images.safetensors")
    text = (
        f'[model]\nentry = "{folder}/net.py:build"\nweights = "net.safetensors"\n[data]\n'
        f'calibration = "images.safetensors"\n[recipe]\nname = "qdrop"\nsteps = {steps}\n'
        '[quantization]\nweights = 2\n[run]\nprecision = "float32"\n'
    )
    (folder / "run.toml").write_text(text)
    os.chdir(folder)
    try:
        yield folder
    finally:
        os.chdir(before)
        sys.path.remove(str(folder))
        shutil.rmtree(folder, ignore_errors=True)


def digest_of(out: Path) -> str:
    """sha256 of a saved model, "" where there is none."""
    files = [out / name for name in ("model.safetensors", "model.json")]
    if not all(file.is_file() for file in files):
        return ""
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def repeated(text: str) -> int:
    """How many units were optimised again, from what worker 0 printed."""
    done = Counter(re.findall(r"^unit (\d+) of \d+ (?!.*saved earlier).*error .* -> ", text, re.MULTILINE))
    return sum(done.values()) - len(done)


class Killer(threading.Thread):
    """Kills a worker at each of some moments of a run."""

    def __init__(self, crews: list[Crew], moments: list[tuple[float, int]]) -> None:
        super().__init__(daemon=True)
        self.crews, self.moments = crews, moments
        self.killed: list[int] = []
        self.over = threading.Event()

    def run(self) -> None:
        for seconds, rank in self.moments:
            if self.over.wait(seconds):
                return
            process = self.crews[-1].numbers.get(rank) if self.crews else None
            if process:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)
                    self.killed.append(rank)


def part_kills(size: float, told: Path, errors: TextIO) -> dict[str, Any]:
    """Runs in which one to three workers are killed at random times, until there were enough kills."""
    wanted, chance, crews = max(1, round(KILLS * size)), random.Random(0), list[Crew]()
    start = Crew.start

    def remember(self: Crew, seats: Any) -> None:
        start(self, seats)
        crews.append(self)

    Crew.start = remember  # type: ignore[method-assign]
    found = Counter[str]()
    ranks, slowest, warm, expected = Counter[int](), 0.0, "", ""
    with workplace(steps=150) as folder:
        while found["kills"] < wanted:
            out, begun = folder / (f"out-{found['runs']}" if expected else "whole"), told.stat().st_size
            command = ["quantize", "run.toml", "--workers", str(WORKERS), "--out", str(out)]
            count = 0 if not expected else min(chance.choice((1, 1, 2, 3)), wanted - found["kills"])
            moments = [(chance.uniform(0.0, slowest or 1.0), chance.randrange(WORKERS)) for _ in range(count)]
            killer, clock = Killer(crews, moments), time.monotonic()
            killer.start()
            code = clcalib(command)
            seconds = time.monotonic() - clock
            killer.over.set()
            killer.join()
            if not expected:
                if not warm:  # the first one also loads what later ones find loaded
                    warm = digest_of(out)
                    shutil.rmtree(out)
                    continue
                expected, slowest = digest_of(out), seconds
                assert warm == expected, "two runs that nothing happened to differ"
                errors.write(f"the run that nothing happened to: {seconds:.1f} s\n")
                assert (code, bool(expected)) == (0, True), "the run that nothing happened to failed"
                continue
            with told.open() as log:
                log.seek(begun)
                again = repeated(log.read())
            ranks.update(killer.killed)
            found.update(
                runs=1,
                kills=len(killer.killed),
                other_results=int(digest_of(out) != expected),
                other_codes=int(code != 0),
                units_again=again,
                too_many_units_again=int(again > len(killer.killed)),
                longer_than_allowed=int(seconds > MOST_SECONDS),
            )
            errors.write(f"{dict(found)}, {seconds:.1f} s\n")
    Crew.start = start  # type: ignore[method-assign]
    return {"workers": WORKERS, **found, "kills_by_rank": {str(rank): ranks[rank] for rank in sorted(ranks)}}


def part_link(size: float, told: Path, errors: TextIO) -> dict[str, Any]:
    """One run over two namespaces, whose link is taken down again and again."""
    wanted, seconds, chance = max(1, round(DOWNS * size)), DOWN_SECONDS * min(1.0, 3 * size), random.Random(0)
    with workplace(steps=400) as folder:
        one = subprocess.run([*_command("one"), "--workers", "1"], env=_environment(), capture_output=True, text=True)
        assert one.returncode == 0, one.stderr
        expected, clock = digest_of(folder / "one"), time.monotonic()
        found = Counter[str]()
        with namespaces() as names, contextlib.ExitStack() as stack:
            while found["downs"] < wanted:
                out = f"out-{found['runs']}"
                log = stack.enter_context((folder / f"{out}.log").open("w+"))
                calls = [_call(name, rank, out, log) for rank, name in enumerate(names)]
                end = time.monotonic() + MOST_SECONDS
                while all(call.poll() is None for call in calls) and time.monotonic() < end:
                    if found["downs"] < wanted and _has_begun(folder / out):
                        time.sleep(chance.uniform(0.0, 3.0))
                        _ip("-n", names[1], "link", "set", "inner", "down")
                        time.sleep(seconds)
                        _ip("-n", names[1], "link", "set", "inner", "up")
                        found["downs"] += 1
                        errors.write(f"{dict(found)}\n")
                        _wait_for_work(folder / out, calls, end)
                    time.sleep(0.5)
                for call in calls:
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        call.wait(max(1.0, end - time.monotonic()))
                is_hanging = any(call.poll() is None for call in calls)
                for call in calls:
                    call.kill()
                codes = [call.wait() for call in calls]
                log.seek(0)
                again = repeated(log.read())
                found.update(
                    runs=1,
                    hanging=int(is_hanging),
                    stopped=int(any(codes) and not is_hanging),
                    other_results=int(not any(codes) and digest_of(folder / out) != expected),
                    units_again=again,
                )
                if any(codes):  # whatever is saved must be good to go on with
                    resumed = clcalib(["quantize", "--resume", str(folder / out), "--workers", "1"])
                    found["unusable_states"] += int(resumed != 0 or digest_of(folder / out) != expected)
        shutil.copyfileobj((folder / "out-0.log").open(), told.open("a"))
        took = round(time.monotonic() - clock, 1)
    return {"workers": WORKERS, "down_seconds": seconds, **found, "seconds": took}


def _command(out: str) -> list[str]:
    return [sys.executable, "-m", "clcalib", "quantize", "run.toml", "--out", out]


def _call(name: str, rank: int, out: str, log: Any) -> subprocess.Popen[bytes]:
    more = ["--workers", str(WORKERS), "--rendezvous", f"{ADDRESSES[0]}:{PORT}", "--rank", str(rank)]
    own = _command(out if rank == 0 else f"{out}-{rank}")
    return subprocess.Popen(["ip", "netns", "exec", name, *own, *more], stdout=log, stderr=log, env=_environment())


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT / "src"), "PYTHONUNBUFFERED": "1"}


def _has_begun(out: Path) -> bool:
    """Whether a run has saved something, and is not over."""
    return any((out / "state").glob("manifest-*"))


def _wait_for_work(out: Path, calls: list[subprocess.Popen[bytes]], end: float) -> None:
    """Until more is saved, so that failures do not follow each other without any work between them."""
    before = sorted(path.name for path in (out / "state").glob("*"))
    while time.monotonic() < end and all(call.poll() is None for call in calls):
        if sorted(path.name for path in (out / "state").glob("*")) != before:
            return
        time.sleep(0.2)


@contextlib.contextmanager
def namespaces() -> Iterator[tuple[str, str]]:
    """Two network namespaces with a link between them.

    Raises:
        OSError, subprocess.CalledProcessError: they cannot be made here.
    """
    one, two = NAMES
    for name in NAMES:
        subprocess.run(["ip", "netns", "del", name], capture_output=True)
    try:
        for name in NAMES:
            _ip("netns", "add", name)
        _ip("-n", one, "link", "add", "inner", "type", "veth", "peer", "name", "inner", "netns", two)
        for name, address in zip(NAMES, ADDRESSES, strict=True):
            _ip("-n", name, "addr", "add", f"{address}/24", "dev", "inner")
            _ip("-n", name, "link", "set", "inner", "up")
            _ip("-n", name, "link", "set", "lo", "up")  # a machine reaches its own addresses through it
        yield one, two
    finally:
        for name in NAMES:
            subprocess.run(["ip", "netns", "del", name], capture_output=True)


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


@contextlib.contextmanager
def printing_into(path: Path) -> Iterator[TextIO]:
    """Let this process, and all that come from it, print into a file; returns what stderr was."""
    before, handle = [os.dup(1), os.dup(2)], os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND)
    for number in (1, 2):
        os.dup2(handle, number)
    try:
        with os.fdopen(os.dup(before[1]), "w", buffering=1) as errors:
            yield errors
    finally:
        for stream, number, old in zip((sys.stdout, sys.stderr), (1, 2), before, strict=True):
            stream.flush()
            os.dup2(old, number)


PARTS = {"kills": part_kills, "link": part_link}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--size", type=float, default=1.0, help="a share of the full battery")
    parser.add_argument("--out", type=Path, default=RESULT)
    arguments = parser.parse_args()
    where, told = provenance(seed=0), Path(tempfile.mkstemp(suffix=".log")[1])
    try:
        if arguments.part == "link":
            with namespaces():
                pass
    except (OSError, subprocess.CalledProcessError) as error:
        sys.stderr.write(f"left out: network namespaces cannot be made here ({error})\n")
        return
    with printing_into(told) as errors:
        found = PARTS[arguments.part](arguments.size, told, errors)
    found |= {"size": arguments.size, **where}
    print(json.dumps(found, indent=1))
    result = json.loads(arguments.out.read_text()) if arguments.out.exists() else {}
    write_atomically(arguments.out, (json.dumps({**result, arguments.part: found}, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
