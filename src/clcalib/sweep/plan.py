"""A sweep file: the axes networks, widths, recipes, contrastive settings and seeds, and which of them are crossed."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from clcalib.config_problems import unknown_name
from clcalib.config_sources import Table, merge, value_at, with_absolute_paths
from clcalib.sweep.jobs import NONE

# With several runs at a time, sums must not depend on how many, nor a precision on how busy the machine was.
_DEFAULTS: Table = {"run": {"threads": 1, "precision": "float32"}}
_OF_AXES = (
    *(("recipe", None), ("contrastive", None), ("quantization", "weights"), ("quantization", "activations")),
    *(("run", "seed"), ("run", "out"), ("run", "overwrite")),
)
_WIDTHS = re.compile(r"w(\d+)a(\d+)", re.IGNORECASE)

Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][\w.+=-]*$", max_length=60)]
_SECTIONS = "a table of sections, as in the TOML of a run"


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class SweepSection(_Part):
    """Where results go, and how patient a sweep is."""

    out: Path = Field(description="the path of the folder of all runs")
    database: str | None = Field(default=None, description="a path, or a URL such as postgresql://user@host/name")
    lease: float = Field(
        default=60.0, ge=1.0, description="seconds, at least 1, of silence after which a worker is taken for dead"
    )
    attempts: int = Field(
        default=5, ge=1, description="a whole number, at least 1, of times that a run is begun whose worker dies"
    )


class Grid(_Part):
    """What is crossed with what; an axis that is left out has all that the file names."""

    networks: tuple[str, ...] | None = Field(default=None, min_length=1, description="a list of names of networks")
    widths: tuple[str, ...] = Field(min_length=1, description='a list of widths, such as ["W4A4", "W2A2"]')
    recipes: tuple[str, ...] | None = Field(default=None, min_length=1, description="a list of names of recipes")
    contrastive: tuple[str, ...] | None = Field(
        default=None, min_length=1, description='a list of names of contrastive settings; "none" is the run without'
    )
    seeds: tuple[Annotated[int, Field(ge=0)], ...] = Field(
        default=(0,), min_length=1, description="a list of whole numbers, at least 0"
    )
    changes: dict[str, Any] = Field(default_factory=dict, description=_SECTIONS)


class SweepFile(_Part):
    """All of a sweep file."""

    sweep: SweepSection
    common: dict[str, Any] = Field(default_factory=dict, description=_SECTIONS)
    networks: dict[Name, dict[str, Any]] = Field(min_length=1, description="a table of networks, each with [model]")
    recipes: dict[Name, dict[str, Any]] = Field(min_length=1, description="a table of recipes by names of your own")
    contrastive: dict[Name, dict[str, Any]] = Field(default_factory=dict, description="a table of contrastive settings")
    grids: tuple[Grid, ...] = Field(min_length=1, description="a list of grids, each under [[grids]]")


class Cell(BaseModel):
    """What a row of a sweep is, but for the seed: names, and the sections of its configuration."""

    model_config = ConfigDict(frozen=True)

    network: str
    widths: str
    recipe: str
    contrastive: str
    changes: str
    seeds: tuple[int, ...]
    table: dict[str, Any]

    def label(self, seed: int | None = None) -> str:
        """``demo/W2A2/qdrop/none/seed0``; with the changes of its grid, where there are any."""
        parts = [self.network, self.widths, self.recipe, self.contrastive, self.changes]
        parts += [] if seed is None else [f"seed{seed}"]
        return "/".join(part for part in parts if part)


def absolute(table: Table, folder: Path) -> dict[str, Any]:
    """The table of a sweep file with the paths in it taken from ``folder``, where they are relative."""
    found = dict(table)
    if "common" in found:
        found["common"] = _absolute(found["common"], folder)
    networks = found.get("networks")
    if isinstance(networks, Mapping):
        found["networks"] = {name: _absolute(own, folder) for name, own in networks.items()}
    grids = found.get("grids")
    if isinstance(grids, list):
        found["grids"] = [
            {**grid, "changes": _absolute(grid["changes"], folder)}
            if isinstance(grid, Mapping) and "changes" in grid
            else grid
            for grid in grids
        ]
    section = found.get("sweep")
    if isinstance(section, Mapping):
        paths = with_absolute_paths({"run": {"out": section.get("out")}}, folder)["run"]
        database = section.get("database")
        if isinstance(database, str) and "://" not in database:
            database = with_absolute_paths({"run": {"out": database}}, folder)["run"]["out"]
        found["sweep"] = {**section, **({"out": paths["out"]} if "out" in section else {})}
        found["sweep"] |= {"database": database} if "database" in section else {}
    return found


def _absolute(own: Any, folder: Path) -> Any:
    return with_absolute_paths(own, folder) if isinstance(own, Mapping) else own


def problems_of(file: SweepFile) -> list[str]:
    """What is wrong with the names in a sweep file, and with keys that belong to an axis."""
    found = [] if NONE not in file.contrastive else [f"contrastive.{NONE}: expected another name; it is always there"]
    tables = {"common": file.common, **{f"networks.{name}": table for name, table in file.networks.items()}}
    tables |= {f"grids.{number}.changes": grid.changes for number, grid in enumerate(file.grids)}
    for place, table in tables.items():
        found += [
            f"{place}.{'.'.join(filter(None, key))}: belongs to an axis of the sweep; leave it out"
            for key in _OF_AXES
            if (key[0] in table if key[1] is None else value_at(table, key[0], key[1]) is not None)
        ]
    for number, grid in enumerate(file.grids):
        axes = (("networks", grid.networks, file.networks), ("recipes", grid.recipes, file.recipes))
        for axis, names, valid in (*axes, ("contrastive", grid.contrastive, {NONE, *file.contrastive})):
            found += [unknown_name(f"grids.{number}.{axis}", name, valid) for name in names or () if name not in valid]
        found += [
            f"grids.{number}.widths: expected widths such as W2A4, got {widths!r}"
            for widths in grid.widths
            if _WIDTHS.fullmatch(widths) is None
        ]
    return found


def cells(file: SweepFile, settings: Sequence[Table] = ()) -> Iterator[Cell]:
    """The cells of all grids, in their order; ``settings`` are laid over all of them.

    A cell that two grids have comes twice.
    """
    for grid in file.grids:
        axes = (
            grid.networks or tuple(file.networks),
            grid.widths,
            grid.recipes or tuple(file.recipes),
            grid.contrastive or (NONE, *file.contrastive),
        )
        for network, widths, recipe, contrastive in product(*axes):
            match = _WIDTHS.fullmatch(widths)
            if match is None:
                raise ValueError(f"not widths: {widths}")  # problems_of has told it
            bits = {"weights": int(match[1]), "activations": int(match[2])}
            own: dict[str, Any] = {"quantization": bits, "recipe": file.recipes[recipe]}
            own |= {} if contrastive == NONE else {"contrastive": file.contrastive[contrastive]}
            table = merge(_DEFAULTS, file.common, file.networks[network], grid.changes, *settings, own)
            yield Cell(
                network=network,
                widths=widths.upper(),
                recipe=recipe,
                contrastive=contrastive,
                changes=_told(grid.changes),
                seeds=grid.seeds,
                table=table,
            )


def _told(changes: Table) -> str:
    """``count=128`` for a grid's changes, as a part of a label."""
    tables = (section for section in changes.values() if isinstance(section, Mapping))
    flat = (f"{key}={value}" for table in tables for key, value in table.items())
    return re.sub(r"[^\w.+=,-]", "_", ",".join(flat))[:60]
