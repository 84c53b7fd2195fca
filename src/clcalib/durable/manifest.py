"""The manifest of a saved state: which files belong to it, what their bytes must be, and of what run they are."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from clcalib.files import write_atomically

FORMAT = 1
MOST_BYTES = 64 << 20  # of a manifest; it has a line for each unit and each setting
_PAYLOAD = re.compile(r"[A-Za-z0-9_-]+\.(\d{6,12})\.safetensors")
_FILE = re.compile(r"manifest-(\d{6,12})\.json")

FileName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*\.safetensors$", max_length=200)]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Entry(_Strict):
    """One file: its name in the folder, its size and the sha256 of its content."""

    file: FileName
    size: int = Field(ge=0)
    sha256: Digest


class Manifest(_Strict):
    """One generation of a state.

    Attributes:
        generation: grows by one with each save.
        identity: everything that the result depends on, by name.
        entries: what is saved, by the name of the part.
        seconds: of work that the state stands for.
        resumptions: how often the run has gone on after a stop.
    """

    format: int = FORMAT
    generation: int = Field(ge=0)
    identity: dict[str, str]
    entries: dict[str, Entry] = Field(default_factory=dict)
    seconds: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    resumptions: int = Field(default=0, ge=0)

    def write(self, folder: Path) -> Path:
        """Write it under the name of its generation; return the path."""
        path = manifest_path(folder, self.generation)
        body = self.model_dump(mode="json")
        content = {"sha256": _digest(body), **body}
        write_atomically(path, (json.dumps(content, indent=1, sort_keys=True) + "\n").encode())
        return path


def manifest_path(folder: Path, generation: int) -> Path:
    """Where the manifest of a generation is."""
    return folder / f"manifest-{generation:06d}.json"


def generation_of(path: Path) -> int | None:
    """The generation that a file's name tells, or None where it is no manifest."""
    match = _FILE.fullmatch(path.name)
    return None if match is None else int(match[1])


def payload_name(name: str, generation: int) -> str:
    """What the file of a part is called."""
    return f"{name}.{generation:06d}.safetensors"


def payload_generation(path: Path) -> int | None:
    """The generation that a payload's name tells, or None where the file is none."""
    match = _PAYLOAD.fullmatch(path.name)
    return None if match is None else int(match[1])


def read_manifest(path: Path) -> Manifest:
    """Read and verify one.

    Raises:
        ValueError: it is not what was written.
        OSError: it cannot be read.
    """
    if path.stat().st_size > MOST_BYTES:
        raise ValueError(f"larger than {MOST_BYTES:,} bytes")
    try:
        content = json.loads(path.read_bytes())
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(content, dict):
        raise ValueError("not a table")
    expected = content.pop("sha256", None)
    if expected != _digest(content):
        raise ValueError("its sha256 is another one than it says")
    try:
        manifest = Manifest.model_validate(content)
    except ValidationError as error:
        raise ValueError(str(error.errors()[0]["msg"])) from None
    if manifest.format != FORMAT:
        raise ValueError(f"of format {manifest.format}; this version reads format {FORMAT}")
    if manifest.generation != generation_of(path):
        raise ValueError(f"of generation {manifest.generation}, which its name does not say")
    return manifest


def _digest(body: object) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
