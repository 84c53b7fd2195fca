"""Tile sheets: many small images in one lossless PNG that a person can look at, with a JSON file beside it.

``calibration.png`` shows the tiles row by row, ``calibration.json`` tells their size, count and classes.  A large
set is split over several PNGs, named in ``sheets``; the tiles go on from one to the next.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from torch import Tensor

from clcalib.data.decode import png, read_json, read_rgb
from clcalib.errors import DataError
from clcalib.files import write_atomically

_Positive = Annotated[int, Field(ge=1)]
_FromZero = Annotated[int, Field(ge=0)]


class SheetIndex(BaseModel):
    """What the JSON file beside a tile sheet says.

    Args:
        tile: height and width of a tile in pixels.
        columns: tiles in a row of a sheet.
        count: tiles in all sheets together.
        labels: the class of each tile, or None.
        classes: the names of the classes, in the order of their numbers, or none.
        source: where the images came from.
        indices: the places of the images there, or None.
        sheets: the PNG files, beside the JSON file; by default the one that is named as the JSON file is.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    tile: tuple[_Positive, _Positive]
    columns: _Positive
    count: _Positive
    labels: tuple[_FromZero, ...] | None = None
    classes: tuple[str, ...] = ()
    source: str = ""
    indices: tuple[_FromZero, ...] | None = None
    sheets: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _check(self) -> Self:
        for name, values in (("labels", self.labels), ("indices", self.indices)):
            if values is not None and len(values) != self.count:
                raise ValueError(f"{name} has {len(values)} entries for {self.count} tiles")
        if self.labels and self.classes and max(self.labels) >= len(self.classes):
            raise ValueError(f"label {max(self.labels)} has no name among {len(self.classes)} classes")
        for sheet in self.sheets:
            if sheet in {"", ".", ".."} or Path(sheet).name != sheet or "\\" in sheet:
                raise ValueError(f"sheet {sheet!r} is not the name of a file beside the JSON file")
        return self


def read_sheet(path: str | Path) -> tuple[Tensor, SheetIndex]:
    """Return the tiles (N, 3, H, W) uint8 and the index of a tile sheet.

    Args:
        path: the JSON file, or the PNG file that is named as the JSON file is.

    Raises:
        DataError: a file is missing or damaged, or the sheets do not hold the tiles that the JSON file tells of.
    """
    index_path = Path(path).with_suffix(".json")
    try:
        index = SheetIndex.model_validate(read_json(index_path))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"]) or "sheet"
        raise DataError("path", "the description of a tile sheet", f"{index_path} ({place}: {first['msg']})") from error
    names = index.sheets or (index_path.with_suffix(".png").name,)
    tiles = torch.cat([_cut(index_path.with_name(name), index) for name in names])
    if len(tiles) < index.count:
        raise DataError("path", f"{index.count} tiles", f"{len(tiles)} in {', '.join(names)} beside {index_path}")
    return tiles[: index.count].permute(0, 3, 1, 2).contiguous(), index


def write_sheet(path: Path, tiles: Tensor, index: SheetIndex) -> list[Path]:
    """Write tiles (N, 3, H, W) uint8 as a tile sheet; return the files written, the JSON file last.

    Every sheet but the last is full: the tiles are spread evenly, so ``count`` must be a multiple of the sheets.

    Args:
        path: the JSON file; the PNG files go beside it.
        tiles: what to write.
        index: what to write about it.

    Raises:
        DataError: the tiles are not those that the index tells of.
    """
    expected = (index.count, 3, *index.tile)
    if tuple(tiles.shape) != expected or tiles.dtype != torch.uint8:
        raise DataError("tiles", f"uint8 {expected}", f"{tiles.dtype} {tuple(tiles.shape)}")
    names = index.sheets or (path.with_suffix(".png").name,)
    per_sheet = index.count // len(names)
    if per_sheet * len(names) != index.count or (len(names) > 1 and per_sheet % index.columns):
        raise DataError("count", f"whole rows of {index.columns} tiles on each of {len(names)} sheets", index.count)
    written = []
    for number, name in enumerate(names):
        part = tiles[number * per_sheet : (number + 1) * per_sheet]
        written.append(path.with_name(name))
        write_atomically(written[-1], png(_join(part, index.columns).numpy(), optimize=True))
    write_atomically(path, _as_json(index).encode())
    return [*written, path]


def _cut(path: Path, index: SheetIndex) -> Tensor:  # -> (tiles, height, width, 3) uint8
    pixels = read_rgb(path)  # (rows * height, columns * width, 3)
    height, width = index.tile
    rows = pixels.shape[0] // height
    expected = (rows * height, index.columns * width, 3)
    if rows == 0 or tuple(pixels.shape) != expected:
        size = f"{pixels.shape[1]} x {pixels.shape[0]} pixels"
        raise DataError("path", f"rows of {index.columns} tiles of {width} x {height} pixels", f"{path} of {size}")
    grid = pixels.reshape(rows, height, index.columns, width, 3).transpose(1, 2)
    return grid.reshape(-1, height, width, 3)


def _join(tiles: Tensor, columns: int) -> Tensor:  # (N, 3, H, W) -> (rows * H, columns * W, 3), blank tiles black
    count, _, height, width = tiles.shape
    rows = -(-count // columns)
    grid = torch.zeros(rows * columns, height, width, 3, dtype=torch.uint8)
    grid[:count] = tiles.permute(0, 2, 3, 1)
    grid = grid.reshape(rows, columns, height, width, 3).transpose(1, 2)
    return grid.reshape(rows * height, columns * width, 3)


def _as_json(index: SheetIndex) -> str:  # one line for each key, however long its list
    content = index.model_dump(mode="json", exclude_defaults=True)
    lines = [f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in content.items()]
    return "{\n" + ",\n".join(lines) + "\n}\n"
