"""A PostgreSQL server of the system's packages, started for as long as it is needed."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

_BINARIES = ("usr/lib/postgresql/*/bin/initdb", "usr/pgsql-*/bin/initdb")
_PASSWORD = "tested"


def initdb() -> Path | None:
    """The program that makes a cluster; Debian does not put it on the path."""
    places = [Path(found)] if (found := shutil.which("initdb")) else []
    places += [path for pattern in _BINARIES for path in sorted(Path("/").glob(pattern))]
    return places[-1] if places else None


@contextlib.contextmanager
def running(program: Path) -> Iterator[str]:
    """The address, without the name of a database, of a new server on the loopback; ``program`` is its ``initdb``."""
    folder, who = Path(tempfile.mkdtemp(prefix="clcalib-postgresql-")), _unprivileged()
    try:
        (folder / "password").write_text(_PASSWORD)
        if who:
            for path in (folder, folder / "password"):
                shutil.chown(path, "postgres")
        data, port = folder / "data", _free_port()
        settings = ["--auth=scram-sha-256", "--username=tester", f"--pwfile={folder / 'password'}", "--no-sync"]
        made = subprocess.run(
            [program, "-D", data, *settings, "--encoding=UTF8", "--locale=C"], capture_output=True, cwd=folder, **who
        )
        assert made.returncode == 0, made.stderr.decode()
        options = ["listen_addresses=127.0.0.1", f"port={port}", "unix_socket_directories=", "max_connections=50"]
        command = [program.with_name("postgres"), "-D", data, *(part for each in options for part in ("-c", each))]
        with (folder / "log").open("wb") as log, subprocess.Popen(command, stderr=log, cwd=folder, **who) as server:
            address = f"postgresql://tester:{_PASSWORD}@127.0.0.1:{port}"
            try:
                _wait(address, server, folder / "log")
                yield address
            finally:
                server.terminate()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def new_database(server: str) -> str:
    """The address of an empty database."""
    import psycopg

    name = f"test_{time.time_ns()}"
    with psycopg.connect(f"{server}/postgres", autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    return f"{server}/{name}"


def _unprivileged() -> dict[str, str]:
    """What starts a program as another user than root, which PostgreSQL refuses."""
    return {"user": "postgres"} if hasattr(os, "getuid") and os.getuid() == 0 else {}


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def _wait(address: str, server: subprocess.Popen[bytes], log: Path) -> None:
    import psycopg

    end = time.monotonic() + 120
    while True:
        try:
            psycopg.connect(f"{address}/postgres", connect_timeout=5).close()
            return
        except psycopg.OperationalError:
            assert server.poll() is None, log.read_text()
            assert time.monotonic() < end, log.read_text()
            time.sleep(0.1)
