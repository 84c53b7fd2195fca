"""A driver in a process of its own, that can be killed: ``drive_jobs.py DATABASE COUNT SECONDS MARKS``."""

from __future__ import annotations

import sys

from clcalib.durable.stop import stopping_politely
from clcalib.sweep.driver import drive
from clcalib.sweep.opening import open_database
from clcalib.sweep.processes import Processes
from tests.sweep.small_jobs import entry, hashed


def main() -> None:
    address, count, seconds, marks = sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), sys.argv[4]
    entries = [entry(number, seconds=seconds, marks=marks) for number in range(count)]
    with stopping_politely(20.0):
        summary = drive(entries, hashed, open_database(address), Processes(2), lease=5.0, most_attempts=99)
    print(summary.counts["done"], flush=True)


if __name__ == "__main__":
    main()
