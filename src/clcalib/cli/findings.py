"""What ``clcalib doctor`` looks at: the machine, the packages and whether clcalib does its work here.

Packages are tried in a process of their own: one that is broken, or takes the process with it, is a finding and no end.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import importlib.util
import json
import os
import platform
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch

from clcalib.calibrate.recipes import RECIPES
from clcalib.data.calibration import CalibrationSet
from clcalib.fused.build import cache_folder, library
from clcalib.pipeline import quantize
from clcalib.processor import adds_in_16_bits, description, features
from clcalib.quant.policy import Bits
from clcalib.quant.targets import TARGETS
from clcalib.report.environment import versions

Found = TypeVar("Found")

# Of a processor's features those that integer kernels and bfloat16 are fast with.
FEATURES = (
    "avx2",
    "avx512f",
    "avx512_vnni",
    "avx_vnni",
    "avx512_bf16",
    "amx_int8",
    "amx_bf16",
    "asimddp",
    "i8mm",
    "bf16",
)
# Package -> the extra of clcalib that brings it, and what it is for.
PACKAGES: dict[str, tuple[str, str]] = {
    "torchvision": ("vision", "networks by name, torchvision:NAME"),
    "timm": ("vision", "networks by name, timm:NAME"),
    "onnx": ("onnx", "writing ONNX files"),
    "onnxruntime": ("onnxruntime", "target onnxruntime, bench, evaluate"),
    "openvino": ("openvino", "target openvino, bench, evaluate"),
    "torchao": ("torchao", "target torch with integer kernels"),
    "executorch": ("executorch", "target executorch"),
    "scipy": ("mixed", "--size-budget and --cost-budget"),
    "datasets": ("datasets", "images of hf:NAME"),
    "tensorboard": ("tensorboard", "--tensorboard"),
    "mlflow": ("mlflow", "--mlflow"),
    "sqlalchemy": ("sweep", "sweep, leaderboard"),
    "alembic": ("sweep", "sweep, leaderboard"),
    "psycopg": ("postgresql", "sweeps in a PostgreSQL database"),
    "ray": ("ray", "sweep --on ray"),
}
# What each target is written and run by; all of it has to be there.
NEEDED = {
    "paper": ("onnx",),
    "onnxruntime": ("onnx", "onnxruntime"),
    "openvino": ("onnx", "openvino"),
    "tensorrt": ("onnx",),
    "torch": ("torchao",),
    "executorch": ("executorch",),
}
_SECONDS = 120
_TRY = """
import importlib, json, sys, warnings
warnings.simplefilter("ignore")
for name in sys.argv[1:]:
    print(json.dumps([name, None]), flush=True)
    try:
        importlib.import_module(name)
        said = ""
    except BaseException as error:
        lines = str(error).strip().splitlines()
        said = type(error).__name__ + (": " + lines[0][:200] if lines else "")
    print(json.dumps([name, said]), flush=True)
"""


@dataclasses.dataclass(frozen=True)
class Package:
    """One optional package.

    Attributes:
        name: of the package.
        version: None where it is not installed.
        use: what clcalib does with it.
        install: the command that brings it.
        error: why it cannot be imported, on one line; empty where it can.
    """

    name: str
    version: str | None
    use: str
    install: str
    error: str

    @property
    def is_usable(self) -> bool:
        """Whether it is there and can be imported."""
        return self.version is not None and not self.error


@dataclasses.dataclass(frozen=True)
class Check:
    """Whether something works, and what was seen."""

    is_well: bool
    text: str


def package_findings(names: Sequence[str] = tuple(PACKAGES)) -> list[Package]:
    """Look for the optional packages, and import those that are there in another process."""
    versions_of = {name: _version(name) for name in names}
    errors = try_imports([name for name in names if versions_of[name] is not None])
    return [
        Package(
            name,
            versions_of[name],
            PACKAGES[name][1],
            f"pip install 'clcalib[{PACKAGES[name][0]}]'",
            errors.get(name, ""),
        )
        for name in names
    ]


def try_imports(names: Sequence[str]) -> dict[str, str]:
    """Import packages in a process of its own; name -> what went wrong, empty where nothing did."""
    found: dict[str, str] = {}
    while waiting := [name for name in names if name not in found]:
        command = [sys.executable, "-P", "-c", _TRY, *waiting]
        end = "took longer than it may"
        try:
            process = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=False)
            output, end = process.stdout, f"ended the process with code {process.returncode}"
        except subprocess.TimeoutExpired as error:
            output = error.stdout.decode() if isinstance(error.stdout, bytes) else error.stdout or ""
        except OSError as error:
            return {name: f"could not be tried: {error}" for name in names}
        last = waiting[0]
        for line in output.splitlines():
            name, said = _said(line)
            if name in waiting and said is not None:
                found[name] = said
            elif name in waiting:
                last = name
        if last not in found:
            found[last] = f"importing it {end}"
    return found


def target_findings(packages: Sequence[Package]) -> dict[str, str]:
    """By target, what is missing for it: nothing, or the packages."""
    usable = {package.name for package in packages if package.is_usable}
    needed = {name: NEEDED[name if name in NEEDED else str(target.runtime)] for name, target in TARGETS.items()}
    return {target: ", ".join(name for name in names if name not in usable) for target, names in needed.items()}


def base_check() -> Check:
    """Quantize a tiny network, start to end."""
    try:
        generator = torch.Generator().manual_seed(0)
        layers = torch.nn.Sequential(
            torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(144, 3)
        )
        images = CalibrationSet.from_tensor(torch.randn(16, 3, 8, 8, generator=generator))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            result = quantize(layers.eval(), images, recipe=RECIPES["fast"](steps=2), bits=Bits(4, 8))
        is_well = bool(torch.isfinite(result.model(images.images)).all())
    except Exception as error:  # whatever is wrong with this machine or installation
        return Check(False, f"a tiny network cannot be quantized: {_one_line(error)}")
    return Check(is_well, "a tiny network was quantized, start to end" if is_well else "its outputs are not finite")


def kernels_check() -> Check:
    """Whether the compiled kernels build and load."""
    if os.environ.get("CLCALIB_NATIVE") == "0":
        return Check(True, "switched off by CLCALIB_NATIVE=0")
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        built = library()
    if built is not None:
        return Check(True, "built and loaded")
    return Check(False, str(told[0].message) if told else "not built")


def processor() -> dict[str, object]:
    """Name, architecture, features that matter, cores and threads."""
    model = next((line.partition(":")[2].strip() for line in description() if line.startswith("model name")), "")
    return {
        "name": model or platform.processor() or platform.machine(),
        "architecture": platform.machine(),
        "features": [name for name in FEATURES if name in features()],
        "adds_in_16_bits": adds_in_16_bits(),
        "torch_kernels": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count() or 1,
        "usable_cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        "threads": torch.get_num_threads(),
    }


def accelerators() -> list[str]:
    """The GPUs that torch can use."""
    try:
        if torch.cuda.is_available():
            known = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
            return [
                f"cuda:{index} {each.name}, {each.total_memory / 2**30:.0f} GiB" for index, each in enumerate(known)
            ]
        if torch.backends.mps.is_available():
            return ["mps"]
    except Exception as error:  # of a driver
        return [f"cannot be asked: {_one_line(error)}"]
    return []


def room() -> dict[str, int | None]:
    """Free bytes on the disk of the current folder, and in memory."""
    available = next((line.split()[1] for line in _lines("/proc/meminfo") if line.startswith("MemAvailable")), None)
    memory = int(available) * 1024 if available is not None else None
    return {"disk_free": _asked(lambda: shutil.disk_usage(Path.cwd()).free), "memory_available": memory}


def folders() -> dict[str, str]:
    """Where things are kept between runs."""
    hub = os.environ.get("HF_HUB_CACHE") or str(Path(os.environ.get("HF_HOME") or "~/.cache/huggingface") / "hub")
    return {
        "compiled kernels": str(_asked(cache_folder) or "a folder for each process"),
        "weights of torchvision": str(Path(torch.hub.get_dir()) / "checkpoints"),
        "weights of timm": str(Path(hub).expanduser()),
    }


def known_versions() -> dict[str, str]:
    """Of Python, torch, numpy, clcalib and the platform."""
    return {**versions(), "numpy": np.__version__, "platform": platform.platform()}


def compiler() -> str | None:
    """The C++ compiler that the kernels are built with."""
    return os.environ.get("CXX") or next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))), None)


def _version(name: str) -> str | None:
    try:
        if importlib.util.find_spec(name) is None:
            return None
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:  # what brings it has another name, as mlflow-skinny
        makers = importlib.metadata.packages_distributions().get(name, [])
        return importlib.metadata.version(makers[0]) if makers else "of unknown version"
    except (ImportError, ValueError, AttributeError) as error:
        return f"of unknown version ({_one_line(error)})"


def _said(line: str) -> tuple[str, str | None]:
    try:
        name, said = json.loads(line)
    except ValueError:  # what a package prints while it is imported
        return "", None
    return str(name), None if said is None else str(said)


def _lines(path: str) -> list[str]:
    return _asked(lambda: Path(path).read_text().splitlines()) or []


def _asked(ask: Callable[[], Found]) -> Found | None:
    try:
        return ask()
    except (OSError, RuntimeError):  # the second of a user without a home
        return None


def _one_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__
