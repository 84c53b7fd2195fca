"""Compiles ``kernels.cpp`` for this very processor, once, and loads it; where that cannot be done, says so once.

The library lies in ``$CLCALIB_CACHE``, else ``$XDG_CACHE_HOME/clcalib``, else ``~/.cache/clcalib``, under the digest of
source, compiler, flags, processor and C library.  ``CLCALIB_NATIVE=0`` switches it off.
"""

from __future__ import annotations

import atexit
import ctypes
import functools
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

from clcalib.errors import SlowPathWarning
from clcalib.processor import description

SOURCE = Path(__file__).with_name("kernels.cpp")
INCLUDED = ("vectors.hpp", "weight_gradient.hpp", "info_nce.hpp")
PARTS = tuple(SOURCE.with_name(name) for name in INCLUDED)
COMPILERS = ("c++", "g++", "clang++")
# Not -ffast-math: NaN must stay NaN, and rounding must be what it says.  fp-contract only fuses products into sums.
FLAGS = ("-O3", "-std=c++17", "-fPIC", "-shared", "-fvisibility=hidden", "-fno-math-errno", "-fno-trapping-math")
NATIVE = ("-mcpu=native",) if platform.machine() in ("arm64", "aarch64") else ("-march=native",)
TIMEOUT_SECONDS = 300


@functools.cache
def library() -> ctypes.CDLL | None:
    """The compiled kernels, or None where there is no compiler or they are switched off; decided once per process.

    Warns:
        SlowPathWarning: the kernels cannot be built here, so calibration takes the plain path.
    """
    if os.environ.get("CLCALIB_NATIVE") == "0":
        return None
    try:
        return _load()
    except _CannotBuildError as problem:
        warnings.warn(
            f"calibration runs without its fused CPU kernels, several times slower: {problem}; install a C++ compiler "
            "(g++ or clang++), or set CLCALIB_NATIVE=0 to take the plain path without this notice",
            SlowPathWarning,
            stacklevel=2,
        )
        return None


class _CannotBuildError(Exception):
    pass


def _load() -> ctypes.CDLL:
    compiler = os.environ.get("CXX") or next(filter(None, map(shutil.which, COMPILERS)), None)
    if compiler is None:
        raise _CannotBuildError(f"none of {', '.join(COMPILERS)} is on the PATH")
    problem = ""
    # Threads need the OpenMP runtime that PyTorch has loaded: a second one would fight it for the cores.
    for threads in (("-fopenmp",), ("-fopenmp-simd",), ()) if _share_openmp() else (("-fopenmp-simd",), ()):
        for flags in ((*NATIVE, *threads), threads):
            try:
                return ctypes.CDLL(str(_built(compiler, flags)))
            except (OSError, subprocess.SubprocessError) as error:
                problem = (str(getattr(error, "stderr", "") or "").strip() or str(error)).splitlines()[-1]
    raise _CannotBuildError(f"{compiler} cannot build them: {problem}")


def _built(compiler: str, flags: tuple[str, ...]) -> Path:
    command = [*shlex.split(compiler), *FLAGS, *flags, str(SOURCE)]
    sources = (path.read_text() for path in (SOURCE, *PARTS))
    text = "\n".join((*command[:-1], *sources, _processor(), sys.platform, *platform.libc_ver()))
    name = f"kernels-{hashlib.sha256(text.encode()).hexdigest()[:24]}.so"
    path = _cache() / name
    if not _is_own(path):
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:  # so that the rename stays on one disk
            made = Path(folder) / name
            link = ["-undefined", "dynamic_lookup"] if sys.platform == "darwin" else []
            subprocess.run(
                [*command, *link, "-o", str(made)], check=True, capture_output=True, text=True, timeout=TIMEOUT_SECONDS
            )
            made.chmod(0o700)  # whatever the umask: a file that others may write to is not run
            made.replace(path)
    return path


def cache_folder() -> Path:
    """Where compiled kernels are kept; where that is no folder of the user's own, one for this process is taken."""
    base = os.environ.get("CLCALIB_CACHE")
    return Path(base) if base else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "clcalib"


def _cache() -> Path:
    """A folder of the user's own: what lies there is run."""
    folder = cache_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        if os.access(folder, os.W_OK) and _is_own(folder):
            return folder
    except (OSError, RuntimeError):
        pass
    return _own_folder()


def _is_own(path: Path) -> bool:
    """Whether it is there, belongs to the user, and nobody else can write to it."""
    if not path.exists():
        return False
    facts = path.stat()
    return not hasattr(os, "getuid") or (facts.st_uid == os.getuid() and not facts.st_mode & 0o022)


@functools.cache
def _own_folder() -> Path:
    folder = tempfile.mkdtemp(prefix="clcalib-kernels-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)


def _processor() -> str:
    told = {line for line in description() if line.startswith(("model name", "flags", "Features"))}
    return "\n".join(sorted(told)) or platform.processor()


def _share_openmp() -> bool:
    """Make the symbols of the OpenMP runtime inside this process visible to libraries that are loaded later."""
    try:
        lines = Path("/proc/self/maps").read_text().splitlines()
    except OSError:
        return False
    paths = {line.split(maxsplit=5)[-1] for line in lines if "/" in line}
    for path in sorted(paths):
        if Path(path).name.startswith(("libgomp", "libiomp5")):
            try:
                ctypes.CDLL(path, mode=ctypes.RTLD_GLOBAL)
            except OSError:
                continue
            return True
    return False
