"""Where Ray listens that a sweep has started: ``ray_listening.py [early]``, if Ray has been imported before."""

from __future__ import annotations

import sys
from pathlib import Path

# The loopback in /proc/net: that of IPv4, that of IPv6, and that of IPv4 in IPv6.
_LOOPBACKS = ("0100007F", "00000000000000000000000001000000", "0000000000000000FFFF00000100007F")
_LISTENS = "0A"


def listening() -> set[str]:
    """The addresses on which processes of this machine listen, but for those of the loopback."""
    tables = (Path("/proc/net", name) for name in ("tcp", "tcp6"))
    lines = [line.split() for table in tables for line in table.read_text().splitlines()[1:]]
    return {line[1] for line in lines if line[3] == _LISTENS and not line[1].startswith(_LOOPBACKS)}


def main() -> None:
    if "early" in sys.argv:
        import ray

    from clcalib.errors import ArgumentError
    from clcalib.sweep.ray_nodes import RayNodes

    before = listening()
    try:
        pool = RayNodes(1)
    except ArgumentError as error:
        print(error, flush=True)
        return
    import ray

    page = ray._private.worker._global_node.webui_url
    print(f"elsewhere: {sorted(listening() - before)}, dashboard: {page!r}", flush=True)
    pool.stop()


if __name__ == "__main__":
    main()
