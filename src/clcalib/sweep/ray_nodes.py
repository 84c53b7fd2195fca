"""Tasks on the nodes of Ray, which may come and go.

Ray only carries tasks to where there is room.  What is done and what is to be done again, the database says, so Ray
is told not to try anything again by itself.
"""

from __future__ import annotations

import os
import time
from typing import Any

from clcalib.errors import ArgumentError
from clcalib.sweep.jobs import Ended, Task
from clcalib.sweep.worker import work

LOOPBACK = "127.0.0.1"
# On Linux, Ray puts the machine's address for the loopback's, and listens everywhere, unless it is told, before it is
# imported, to know no clusters, as on other systems.
_NO_CLUSTERS = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
_ROOM = 100 << 20  # bytes for what tasks give each other, which is nothing; by default it is a third of the memory
_LOOK = 1.0  # seconds between looks at what nodes there are
_PATIENCE = 20.0


class RayNodes:
    """As many tasks at a time as the nodes have CPUs (or GPUs) for.

    Args:
        workers: CPUs of the node that is started here.
        address: of a cluster that runs already, such as ``auto`` or HOST:6379; None starts Ray here, bound to the
            loopback.
        cpus, gpus: of one task.

    Raises:
        ArgumentError: Ray does not start, listens elsewhere than on the loopback, or there is none at the address.
    """

    def __init__(self, workers: int, address: str | None = None, *, cpus: float = 1, gpus: float = 0) -> None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        if address is None:
            os.environ.update(_NO_CLUSTERS)
        import ray

        self._ray: Any = ray
        self._cpus, self._gpus = cpus, gpus
        self._is_own = not ray.is_initialized()
        if self._is_own:
            self._start(workers, address)
        self._work = ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=0)(work)
        self._tasks: dict[Any, Task] = {}
        self._looked_at, self._slots = float("-inf"), 0

    def _start(self, workers: int, address: str | None) -> None:
        quiet = {"log_to_driver": False, "logging_level": "error"}
        if address is None:
            own = {"num_cpus": workers, "object_store_memory": _ROOM, "include_dashboard": False}
            try:
                self._ray.init(address="local", _node_ip_address=LOOPBACK, **own, **quiet)
            except Exception as error:  # a plain one where a node has not started in half a minute
                remedy = "try again when the machine is less busy, or take --on processes"
                raise ArgumentError("--on ray", "Ray to start here", _first_line(error), remedy) from None
            self._require_loopback()
            return
        try:
            self._ray.init(address=address, **quiet)
        except Exception as error:  # of many kinds: nobody is there, another version, another token
            got = f"{address} ({_first_line(error)})"
            raise ArgumentError("--ray-address", "the address of a Ray cluster", got) from None

    def _require_loopback(self) -> None:
        place = str(self._ray.get_runtime_context().gcs_address)
        if not place.startswith(f"{LOOPBACK}:"):
            self._ray.shutdown()
            remedy = "start Ray yourself, as it shall listen, and give --ray-address"
            raise ArgumentError("--on ray", "Ray to listen on the loopback alone", place, remedy)

    @property
    def slots(self) -> int:
        """How many tasks all nodes together can run at a time; after ``stop`` what it was last."""
        if time.monotonic() > self._looked_at + _LOOK:
            self._looked_at = time.monotonic()
            resources = self._ray.cluster_resources()
            rooms = [resources.get("CPU", 0) / self._cpus] if self._cpus else []
            rooms += [resources.get("GPU", 0) / self._gpus] if self._gpus else []
            self._slots = int(min(rooms, default=0))
        return self._slots

    def submit(self, task: Task) -> None:
        """Hand a task to Ray."""
        self._tasks[self._work.remote(task)] = task

    def ended(self, timeout: float) -> list[Ended]:
        """The tasks that ended since the last call; waits for the first one, ``timeout`` seconds at most."""
        if not self._tasks:
            time.sleep(timeout)
            return []
        ready, _ = self._ray.wait(list(self._tasks), num_returns=1, timeout=timeout)
        more, _ = self._ray.wait(list(self._tasks), num_returns=len(self._tasks), timeout=0) if ready else ([], [])
        return [self._over(reference) for reference in {*ready, *more}]

    def _over(self, reference: Any) -> Ended:
        task = self._tasks.pop(reference)
        try:
            self._ray.get(reference)
        except self._ray.exceptions.RayError as error:
            return Ended(task, f"its Ray task died: {type(error).__name__}: {_first_line(error)}")
        except Exception as error:
            return Ended(task, f"its Ray task failed: {type(error).__name__}: {error}")
        return Ended(task)

    def stop(self) -> list[Ended]:
        """Ask all to end, which reaches them as Ctrl-C does; then leave Ray, which ends those that have not."""
        for reference in self._tasks:
            self._ray.cancel(reference, force=False)
        end, found = time.monotonic() + _PATIENCE, list[Ended]()
        while self._tasks and time.monotonic() < end:
            found += self.ended(0.2)
        found += [Ended(task, "it did not end in time") for task in self._tasks.values()]
        self._tasks.clear()
        self._looked_at = float("inf")  # Ray may be gone
        if self._is_own:
            self._ray.shutdown()
        return found


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
