"""A run's saved state: parts under names, each replaced as a whole, of which a crash at any moment leaves a good one.

A save is: payload under a name of its generation -> flush -> rename -> flush of the folder -> read back and compared ->
manifest of the same generation, likewise.  Only then are files that neither this generation nor the one before refers
to removed.  So there is always a manifest that is whole, and the files that it names are.

Where something was damaged afterwards, its hash tells: the file is named in a warning, and its part counts as not
saved.
"""

from __future__ import annotations

import contextlib
import hashlib
import shutil
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from clcalib.durable.manifest import (
    Entry,
    Manifest,
    generation_of,
    manifest_path,
    payload_generation,
    payload_name,
    read_manifest,
)
from clcalib.durable.payload import Payload
from clcalib.errors import DamagedStateWarning, OutputExistsError, ResumeError, StorageError
from clcalib.files import write_atomically

KEPT = 2  # generations
_FINISHED = ".finished-state"


class RunState:
    """The saved state in a folder that this process has locked.

    Make it with ``RunState.begin`` or ``RunState.resume``.
    """

    def __init__(self, folder: Path, manifest: Manifest, clock: Callable[[], float] = time.monotonic) -> None:
        self.folder = folder
        self._manifests = [manifest]
        self._before, self._clock, self._start = manifest.seconds, clock, clock()
        self._refused = dict[str, str]()

    @classmethod
    def begin(cls, folder: Path, identity: Mapping[str, str]) -> RunState:
        """Begin in a folder that is new or empty; files whose name begins with a dot do not count.

        Raises:
            OutputExistsError: there is something in it, which could be anything of the user's.
        """
        if folder.is_dir() and any(not path.name.startswith(".") for path in folder.iterdir()):
            raise OutputExistsError(f"{folder} exists and is not empty; a run's state needs a folder of its own")
        state = cls(folder, Manifest(generation=0, identity=dict(identity)))
        state._manifests[-1].write(folder)
        return state

    @classmethod
    def resume(cls, folder: Path, identity: Mapping[str, str]) -> RunState:
        """Go on with what is in the folder.

        Args:
            folder: of ``begin``.
            identity: what the result depends on, which must be what it was.

        Raises:
            ResumeError: no manifest is whole, or the identity is another one; every field that differs is named.

        Warns:
            DamagedStateWarning: the newest manifest cannot be read, so that the one before is taken.
        """
        found = _whole_manifests(folder)
        manifest = found[max(found)]
        _check_older(folder, found)
        if problems := _differences(manifest.identity, identity):
            raise ResumeError(
                f"{folder} is of a run with other settings: {'; '.join(problems)}; give the settings that it began "
                "with, or begin anew in another folder"
            )
        return cls(folder, manifest.model_copy(update={"resumptions": manifest.resumptions + 1}))

    @property
    def resumptions(self) -> int:
        """How often the run went on after a stop."""
        return self._manifest.resumptions

    @property
    def seconds_before(self) -> float:
        """Of work that earlier processes put into the state."""
        return self._before

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all parts that are saved."""
        return tuple(self._manifest.entries)

    def get(self, name: str) -> Payload | None:
        """The saved part of this name, or None where there is none that is whole.

        Warns:
            DamagedStateWarning: its file is damaged or missing.
        """
        entry = self._manifest.entries.get(name)
        if entry is None:
            return None
        path = self.folder / entry.file
        try:
            return Payload.from_bytes(_verified(path, entry))
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) and error.strerror else error
            self.refuse(name, str(reason))
            return None

    def refuse(self, name: str, reason: str) -> None:
        """Take a part as not saved, since it is not what it should be; a warning names its file."""
        entry = self._manifest.entries[name]
        message = f"{self.folder / entry.file} is damaged: {reason}; what it held is computed again"
        warnings.warn(message, DamagedStateWarning, stacklevel=2)
        self._refused[name] = entry.sha256
        self._forget([name])

    def put(self, name: str, payload: Payload, *, instead_of: str | None = None, before: Sequence[str] = ()) -> None:
        """Save a part; when this returns, it is on the disk.

        Args:
            name: letters, digits and hyphens.
            payload: what is saved.
            instead_of: a part that this one replaces in the same moment.
            before: parts that were computed from this one.  Where it was damaged and is not what it was, they go too.

        Raises:
            StorageError: it could not be written; what was saved before still is.
        """
        content, generation = payload.to_bytes(), self._manifest.generation + 1
        digest = hashlib.sha256(content).hexdigest()
        entry = Entry(file=payload_name(name, generation), size=len(content), sha256=digest)
        path = self.folder / entry.file
        write_atomically(path, content)
        try:
            self._check(path, entry)
            if self._refused.pop(name, digest) != digest:
                self._forget(before)
            entries = {key: value for key, value in self._manifest.entries.items() if key not in (name, instead_of)}
            seconds = self._before + self._clock() - self._start
            update = {"generation": generation, "entries": {**entries, name: entry}, "seconds": seconds}
            self._publish(self._manifest.model_copy(update=update))
        except StorageError:
            path.unlink(missing_ok=True)  # nothing refers to it
            raise

    @property
    def _manifest(self) -> Manifest:
        return self._manifests[-1]

    def _forget(self, names: Sequence[str]) -> None:
        entries = {key: value for key, value in self._manifest.entries.items() if key not in names}
        self._manifests[-1] = self._manifest.model_copy(update={"entries": entries})

    def _publish(self, manifest: Manifest) -> None:
        path = manifest.write(self.folder)
        try:
            read_manifest(path)
        except (OSError, ValueError) as error:
            raise StorageError(None, f"{path} was written and reads otherwise ({error}); check the disk") from error
        self._manifests = [*self._manifests, manifest][-KEPT:]
        self._tidy()

    def _check(self, path: Path, entry: Entry) -> None:
        try:
            _verified(path, entry)
        except (OSError, ValueError) as error:
            raise StorageError(None, f"{path} was written and reads otherwise ({error}); check the disk") from error

    def _tidy(self) -> None:
        """Remove what no kept generation refers to.  That it cannot be removed is no harm."""
        files = {entry.file for manifest in self._manifests for entry in manifest.entries.values()}
        kept = {manifest.generation for manifest in self._manifests}
        for path in self.folder.iterdir():
            is_old = payload_generation(path) is not None and path.name not in files
            generation = generation_of(path)
            if is_old or (generation is not None and generation not in kept) or path.name.startswith(".manifest-"):
                with contextlib.suppress(OSError):
                    path.unlink()


def has_state(folder: Path) -> bool:
    """Whether a run left a state in the folder."""
    return folder.is_dir() and any(generation_of(path) is not None for path in folder.iterdir())


def newest_manifest(folder: Path) -> Manifest:
    """The newest manifest that is whole.

    Raises:
        ResumeError: there is none.

    Warns:
        DamagedStateWarning: a manifest is damaged or missing.
    """
    found = _whole_manifests(folder)
    return found[max(found)]


def _whole_manifests(folder: Path) -> dict[int, Manifest]:
    """The manifests that are whole, by generation; see ``newest_manifest``."""
    found, problems = dict[int, Manifest](), list[str]()
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        if generation_of(path) is not None:
            try:
                manifest = read_manifest(path)
                found[manifest.generation] = manifest
            except (OSError, ValueError) as error:
                problems.append(f"{path} is damaged: {error}")
    if not found:
        told = "; ".join(problems) or f"{folder} holds no saved state"
        raise ResumeError(f"{told}; begin anew")
    for problem in [*problems, *_missing(folder, found)]:
        message = f"{problem}; generation {max(found)} of the state is taken"
        warnings.warn(message, DamagedStateWarning, stacklevel=4)
    return found


def _missing(folder: Path, found: Mapping[int, Manifest]) -> list[str]:
    """Manifests that must have been there: that of a newer file, or else the one before the newest."""
    newest = max(found)
    saved = [number for path in folder.iterdir() for number in (payload_generation(path), generation_of(path))]
    newer = {number for number in saved if number is not None and number > newest}
    wanted = newer or {newest - 1} - {-1}  # with a newer one, the one before was tidied away
    paths = [manifest_path(folder, number) for number in sorted(wanted) if number not in found]
    return [f"{path} is missing, as after an end within a save" for path in paths if not path.exists()]


def discard(folder: Path) -> None:
    """Remove a folder that holds nothing but states, in one moment, however many files it has."""
    finished = folder.with_name(f"{_FINISHED}-{folder.name}")
    shutil.rmtree(finished, ignore_errors=True)
    if folder.exists():
        folder.rename(finished)
    shutil.rmtree(finished, ignore_errors=True)


def _check_older(folder: Path, found: Mapping[int, Manifest]) -> None:
    """Tell what is damaged of files that only an older generation refers to; nothing is lost by it.

    Those of the newest are checked when they are read.
    """
    newest = found[max(found)]
    for manifest in found.values():
        for name, entry in manifest.entries.items():
            if newest.entries.get(name) != entry:
                try:
                    _verified(folder / entry.file, entry)
                except (OSError, ValueError) as error:
                    is_missing = isinstance(error, FileNotFoundError)
                    if is_missing and manifest.generation < newest.generation - 1:
                        continue  # an end within the tidying: the file has gone, and not yet its manifest
                    told = "it is missing" if is_missing else error
                    message = f"{folder / entry.file} is damaged: {told}; it is of an older generation, and not needed"
                    warnings.warn(message, DamagedStateWarning, stacklevel=3)


def _verified(path: Path, entry: Entry) -> bytes:
    """The content of a file.

    Raises:
        ValueError: its size or its sha256 is another one.
    """
    size = path.stat().st_size
    if size != entry.size:
        raise ValueError(f"it has {size:,} bytes, and {entry.size:,} were written")
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != entry.sha256:
        raise ValueError("its sha256 is not that of what was written")
    return content


def _differences(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """Every field of the identity that is not what it was."""
    fields = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    return [f"{name} was {before.get(name, 'not there')}, and is {now.get(name, 'not there')}" for name in fields]
