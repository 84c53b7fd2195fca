"""Everything that a calibration's result depends on, field by field, so that a run goes on only as what it began as."""

from __future__ import annotations

import dataclasses
import enum
import hashlib
import importlib.metadata
import json
import platform
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from clcalib.data.calibration import digest
from clcalib.errors import ArgumentError
from clcalib.job import Job
from clcalib.quant.kernels import kernels_on
from clcalib.quant.spec import QuantSpec
from clcalib.report.environment import model_digest, versions


def identity_of(job: Job) -> dict[str, str]:
    """Name -> value of every field.

    Memory budget, spill folder, evaluation images, what is measured and the number of workers are none of them: the
    calibrated network does not depend on these.
    """
    if job.identity is not None:
        return dict(job.identity)
    chain = job.chain
    units = [(unit.name, unit.kind, unit.nodes, unit.inputs, unit.outputs) for unit in chain.units]
    fields = {
        "model's weights": model_digest(chain.module),
        "model's graph": _sha256(chain.module.code),
        "units": _sha256(repr(units)),
        "submodule": str(None if job.part is None else job.part.path),
        "calibration images": digest(job.images),
        "held-out images": "none" if job.held_out is None else digest(job.held_out),
        "seed": str(job.seed),
        **dict(_flat("recipe", job.recipe)),
        **{f"widths of {row.layer}": _widths(row.weight, row.input, row.right) for row in job.policy},
        "weight_range": repr(job.weight_rule),
        "activation_range": repr(job.activation_rule),
        "target": "none" if job.target is None else job.target.name,
        "guard_tolerance": str(job.used_tolerance),
        "precision": str(job.dtype),
        "cache_precision": str(job.cache_dtype),
        **({} if job.team.shards == 1 else {"shards": str(job.team.shards)}),
    }
    return {**fields, **_machine(job.device)}


def check_team(job: Job) -> None:
    """Raise, on all workers, where they do not all do the same run on machines that compute alike.

    Raises:
        ArgumentError: it says what differs.
    """
    team, own = job.team, identity_of(job) if job.team.workers > 1 else {}
    if team.workers == 1:
        return
    first: dict[str, str] = json.loads(team.exchange.broadcast(json.dumps(own).encode() if team.rank == 0 else None))
    fields = [name for name in {**first, **own} if first.get(name) != own.get(name)]
    others = [rank for rank, count in enumerate(team.by_worker(torch.tensor(len(fields)))) if int(count)]
    if others:
        pairs = [(name, own.get(name, "not there"), first.get(name, "not there")) for name in fields]
        told = "; ".join(f"{name} is {here}, and {there} on worker 0" for name, here, there in pairs)
        got = told or f"worker(s) {', '.join(map(str, others))} with another one, which they tell"
        raise ArgumentError("team", "the same run, and the same kind of machine, on all workers", got)


def _machine(device: torch.device) -> dict[str, str]:
    """What decides in which order numbers are added up."""
    known = versions()
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else torch.backends.cpu.get_cpu_capability()
    return {
        "clcalib version": known["clcalib"],
        "torch version": known["torch"],
        "safetensors version": importlib.metadata.version("safetensors"),
        "device": f"{device.type}, {platform.machine()} {name}",
        "threads": str(torch.get_num_threads()),
        "kernels": kernels_on(device),
        "deterministic algorithms": str(torch.are_deterministic_algorithms_enabled()),
    }


def _flat(name: str, value: Any) -> Iterator[tuple[str, str]]:
    """The leaves of nested dataclasses, mappings and sequences, each under its path."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        yield f"{name} (kind)", _name(type(value))
        for field in dataclasses.fields(value):
            yield from _flat(f"{name}.{field.name}", getattr(value, field.name))
    elif isinstance(value, Mapping):
        for key in sorted(value, key=str):
            yield from _flat(f"{name}.{key}", value[key])
    elif isinstance(value, list | tuple):
        yield f"{name} (number)", str(len(value))
        for number, item in enumerate(value):
            yield from _flat(f"{name}.{number}", item)
    else:
        yield name, _leaf(value)


def _leaf(value: Any) -> str:
    if isinstance(value, Tensor):
        return digest(value.detach().cpu())
    if isinstance(value, str | int | float | bool | None | torch.dtype | enum.Enum):
        return repr(value)
    if isinstance(value, set | frozenset):
        return repr(sorted(map(str, value)))
    if callable(value) and hasattr(value, "__qualname__"):
        return _name(value)
    # An object of the user's own class: its attributes, as far as they are plain.
    return "; ".join(f"{key} {text}" for key, text in _flat(_name(type(value)), dict(getattr(value, "__dict__", {}))))


def _widths(*specs: QuantSpec | None) -> str:
    return ", ".join("float" if spec is None else repr(spec) for spec in specs)


def _name(thing: Any) -> str:
    return f"{getattr(thing, '__module__', '')}.{getattr(thing, '__qualname__', repr(thing))}"


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
