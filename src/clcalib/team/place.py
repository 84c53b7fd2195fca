"""Where the workers of a run meet: an address that all of them know, and who is who."""

from __future__ import annotations

import contextlib
import dataclasses
import ipaddress
import socket
from collections.abc import Mapping

from clcalib.errors import ArgumentError

LOOPBACK = "127.0.0.1"
_VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@dataclasses.dataclass(frozen=True)
class Place:
    """What one call of the command line knows of the workers.

    Args:
        host, port: where the first call keeps the store; port 0 is any free one.
        workers: of all calls together.
        ranks: the workers of this call.
        is_host: whether this call keeps the store.
        session: what keys in a store that is not the run's own begin with.
    """

    host: str
    port: int
    workers: int
    ranks: tuple[int, ...]
    is_host: bool
    session: str = ""

    @classmethod
    def here(cls, workers: int) -> Place:
        """All workers on this machine, which nothing outside can reach."""
        return cls(LOOPBACK, 0, workers, tuple(range(workers)), is_host=True)

    @classmethod
    def among_machines(cls, workers: int, rank: int, rendezvous: str) -> Place:
        """One worker in each call; that of rank 0 keeps the store.

        Raises:
            ArgumentError: the address or the rank is none.
        """
        host, port = address_of(rendezvous)
        if not 0 <= rank < workers:
            raise ArgumentError("--rank", f"0 to {workers - 1}, with --workers {workers}", rank)
        return cls(host, port, workers, (rank,), is_host=rank == 0)

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Place:
        """One worker in each process, as ``torchrun`` and others start them.

        Where ``torchrun``'s agent keeps a store, that is used; its restarts are told from each other.

        Raises:
            ArgumentError: a variable is missing or has a value that it cannot have.
        """
        if missing := [name for name in _VARIABLES if not environment.get(name)]:
            remedy = "start it by torchrun, or give a number of workers"
            raise ArgumentError("--workers env", f"the variables {', '.join(_VARIABLES)}", f"no {missing[0]}", remedy)
        rank, workers, port = (_number(name, environment[name]) for name in ("RANK", "WORLD_SIZE", "MASTER_PORT"))
        if not 0 <= rank < workers:
            raise ArgumentError("RANK", f"0 to {workers - 1}, as WORLD_SIZE says", rank)
        has_agent = environment.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
        names = (environment.get(f"TORCHELASTIC_{name}", "") for name in ("RUN_ID", "RESTART_COUNT"))
        session = "-".join(("clcalib", *names)) if has_agent else ""
        return cls(environment["MASTER_ADDR"], port, workers, (rank,), rank == 0 and not has_agent, session)

    @property
    def is_first(self) -> bool:
        """Whether worker 0 is of this call."""
        return 0 in self.ranks

    @property
    def is_alone(self) -> bool:
        """Whether there is no other call."""
        return len(self.ranks) == self.workers


def address_of(text: str) -> tuple[str, int]:
    """Host and port of ``HOST:PORT``; an IPv6 address stands in brackets.

    Example:
        >>> address_of("10.0.0.7:29500"), address_of("[fe80::1]:29500")
        (('10.0.0.7', 29500), ('fe80::1', 29500))

    Raises:
        ArgumentError: it is none.
    """
    host, _, port = text.strip().rpartition(":")
    host = host.removeprefix("[").removesuffix("]") if host.startswith("[") else host
    is_address = not (":" in host and not _is_ipv6(host))
    if not host or not is_address or not port.isascii() or not port.isdecimal() or not 1 <= int(port) <= 65535:
        raise ArgumentError("--rendezvous", "HOST:PORT of the machine with --rank 0, such as 10.0.0.7:29500", text)
    return host, int(port)


def own_address(host: str, port: int) -> str:
    """The address of this machine from which ``host`` is reached, which is where others reach it; nothing is sent.

    Raises:
        OSError: the host has no address, or there is no way to it.
    """
    family, kind, _, _, address = socket.getaddrinfo(host, port or 9, type=socket.SOCK_DGRAM)[0]
    with contextlib.closing(socket.socket(family, kind)) as probe:
        probe.connect(address)
        return str(probe.getsockname()[0])


def _is_ipv6(text: str) -> bool:
    try:
        return ipaddress.ip_address(text).version == 6
    except ValueError:
        return False


def _number(name: str, text: str) -> int:
    if not (text.isascii() and text.isdecimal()):
        raise ArgumentError(name, "a whole number", repr(text))
    return int(text)
