"""Where Ray listens that a sweep has started: ``ray_listening.py [early]``, if Ray has been imported before."""

from __future__ import annotations

import os
import sys
from pathlib import Path

# The loopback in /proc/net: that of IPv4, that of IPv6, and that of IPv4 in IPv6.
_LOOPBACKS = ("0100007F", "00000000000000000000000001000000", "0000000000000000FFFF00000100007F")
_LISTENS = "0A"


def listening(processes: set[int]) -> tuple[int, list[str]]:
    """How many ports some processes listen on, and the addresses of those that are not of the loopback."""
    theirs = {link for number in processes for link in _open_files(number)}
    tables = (Path("/proc/net", name) for name in ("tcp", "tcp6"))
    lines = [line.split() for table in tables for line in table.read_text().splitlines()[1:]]
    found = sorted(line[1] for line in lines if line[3] == _LISTENS and f"socket:[{line[9]}]" in theirs)
    return len(found), [address for address in found if not address.startswith(_LOOPBACKS)]


def family(number: int) -> set[int]:
    """A process and all that descend from it."""
    parents = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(path.parent.name)] = int(path.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue  # it has ended meanwhile
    found, before = {number}, 0
    while len(found) > before:
        before = len(found)
        found |= {child for child, parent in parents.items() if parent in found}
    return found


def _open_files(number: int) -> list[str]:
    try:
        return [os.readlink(path) for path in Path(f"/proc/{number}/fd").iterdir()]
    except OSError:
        return []


def main() -> None:
    if "early" in sys.argv:
        import ray

    from clcalib.errors import ArgumentError
    from clcalib.sweep.ray_nodes import RayNodes

    try:
        pool = RayNodes(1)
    except ArgumentError as error:
        print(error, flush=True)
        return
    import ray

    ports, elsewhere = listening(family(os.getpid()))
    page = ray._private.worker._global_node.webui_url
    print(f"several: {ports > 3}, elsewhere: {elsewhere}, dashboard: {page!r}", flush=True)
    pool.stop()


if __name__ == "__main__":
    main()
