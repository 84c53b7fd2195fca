"""The architecture as a test: imports go one way, the core stands alone, importing compiles nothing."""

from __future__ import annotations

import ast
import graphlib
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import clcalib

SOURCE = Path(clcalib.__file__).parent
FILES = sorted(SOURCE.rglob("*.py"))
MOST_LINES = 400

# A part may import from itself and from the parts before it.
ORDER = (
    *("errors", "deprecation", "hearing", "forking", "files", "modes", "processor", "reading", "durable", "team"),
    *("fused", "data", "capture", "quant", "objectives", "calibrate", "placed", "evaluate"),
    *("export", "report", "tracking"),
    # The Python API; what follows is the command line, which uses it.
    *("checks", "unit_records", "job", "identity", "line_job", "keeping", "judging", "pipeline", "attending", "timing"),
    *("estimate", "target_accuracy", "width_plan", "width_search"),
    *("width_checks", "mixed_precision", "deployment", "__init__"),
    *("named_models", "config_sources", "config_transform", "config_problems", "config_sections", "config", "output"),
    *("model_source", "reporting", "run"),
    *("sweep", "cli", "__main__"),
)
# Beyond the order: a leaf, and parts that must work without what made a model.
FORBIDDEN = {
    "objectives": {"data", "capture", "quant"},
    "evaluate": {"calibrate"},
    "export": {"calibrate"},
    "report": {"calibrate"},
}
# Modules that may be imported inside a function, as not every machine has them (``resource``, ``fcntl``: not Windows).
OPTIONAL = {"torchvision", "timm", "resource", "fcntl", "msvcrt"}
OPTIONAL |= {
    "onnx",
    "onnxruntime",
    "openvino",
    "scipy",
    "torchao",
    "executorch",
    "tensorboard",
    "mlflow",
    "datasets",
    "ray",
}
# Modules that need a package which not every machine has: imported inside a function, where a GPU asks for Triton, or
# where a sweep has seen that SQLAlchemy is there.
NEEDS_PACKAGE = {
    "clcalib.fused.triton_kernels",
    *(f"clcalib.sweep.{name}" for name in ("database", "engine", "migrating", "models", "migrations.env")),
    "clcalib.sweep.migrations.versions.v0001_runs_and_results",
}
# Where help, completion and the driver of a sweep do without torch, what needs it is imported when it is called.
WITHOUT_TORCH = (
    *("clcalib", "clcalib.cli.app", "clcalib.cli.actions.leaderboard", "clcalib.cli.actions.sweep"),
    *("clcalib.sweep.driver", "clcalib.sweep.elsewhere", "clcalib.sweep.processes", "clcalib.sweep.ray_nodes"),
)
NEEDS_TORCH = ("clcalib.cli.actions", "clcalib.sweep.planning", "clcalib.sweep.runs")

BLOCKED = (
    "triton",
    "torchvision",
    "timm",
    "onnx",
    "onnxruntime",
    "onnxscript",
    "openvino",
    "torchao",
    "executorch",
    "matplotlib",
    "scipy",
    "pandas",
    "tensorboard",
    "mlflow",
    "datasets",
    "sqlalchemy",
    "alembic",
    "psycopg",
    "ray",
)


def part_of(module: str) -> str:
    """``clcalib.quant.spec`` -> ``quant``."""
    names = module.split(".")
    return names[1] if len(names) > 1 else "__init__"


def module_of(path: Path) -> str:
    names = list(path.relative_to(SOURCE.parent).with_suffix("").parts)
    return ".".join(names[:-1] if names[-1] == "__init__" and len(names) > 1 else names)


MODULES = {module_of(path): path for path in FILES}


def imported(path: Path) -> set[str]:
    """Return the modules of clcalib that a file imports anywhere, as far down as the names go."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno} imports relatively"
            for alias in node.names:
                deeper = f"{node.module}.{alias.name}"
                found.add(deeper if deeper in MODULES else str(node.module))
    return {name for name in found if name.split(".")[0] == "clcalib"}


def test_every_part_has_its_place() -> None:
    assert {part_of(module) for module in MODULES} <= set(ORDER), "give the new part its place in ORDER"


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_one_way(module: str) -> None:
    own = part_of(module)
    for name in sorted(imported(MODULES[module])):
        other = part_of(name)
        assert other == own or ORDER.index(other) < ORDER.index(own), f"{module} imports {name}, which comes later"
        assert other not in FORBIDDEN.get(own, set()), f"{module} must not import {name}"


def test_no_cycle_of_modules() -> None:
    packages = {module for module, path in MODULES.items() if path.name == "__init__.py"}
    graph = {module: imported(path) - packages for module, path in MODULES.items() if module not in packages}
    order = list(graphlib.TopologicalSorter(graph).static_order())  # raises CycleError, which tells the cycle
    assert set(graph) <= set(order)


@pytest.mark.parametrize("module", MODULES)
def test_only_optional_modules_are_imported_inside_functions(module: str) -> None:
    for function in ast.walk(ast.parse(MODULES[module].read_text(encoding="utf-8"))):
        if not isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        for node in ast.walk(function):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                deeper = [f"{node.module}.{alias.name}" for alias in node.names]
                names += [name if name in MODULES else str(node.module) for name in deeper]
            inside = {name.split(".")[0] for name in names if name not in NEEDS_PACKAGE} - OPTIONAL
            if part_of(module) in ("cli", "sweep") and all(name.startswith(NEEDS_TORCH) for name in names):
                continue
            assert not inside, f"{module}.{function.name} imports {sorted(inside)} inside"


@pytest.mark.parametrize("module", MODULES)
def test_files_are_short(module: str) -> None:
    assert len(MODULES[module].read_text(encoding="utf-8").splitlines()) <= MOST_LINES


def test_every_public_name_exists_and_is_explained() -> None:
    assert len(set(clcalib.__all__)) == len(clcalib.__all__) > 0
    for name in clcalib.__all__:
        value = getattr(clcalib, name)
        if inspect.isclass(value) or inspect.isroutine(value) or inspect.ismodule(value):
            assert (value.__doc__ or "").strip(), f"clcalib.{name} has no docstring"


def test_names_are_where_type_checkers_are_told() -> None:
    """The names that are imported when they are used, and those that only a type checker imports."""
    tree = ast.parse((SOURCE / "__init__.py").read_text(encoding="utf-8"))
    (block,) = (node for node in tree.body if isinstance(node, ast.If) and not isinstance(node.test, ast.UnaryOp))
    told = {
        alias.name: str(node.module) for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names
    }
    assert sorted(told) == sorted(clcalib.__all__)
    for name, module in told.items():
        value = getattr(clcalib, name)
        inside = sys.modules.get(f"{module}.{name}")
        assert value is (inside if inspect.ismodule(value) else getattr(sys.modules[module], name)), name


def test_functions_keep_their_names_from_modules() -> None:
    finished = run_python(
        "import clcalib.capture.chain, clcalib.estimate\n"
        "import clcalib\n"
        "assert callable(clcalib.capture) and callable(clcalib.estimate)\n"
        "assert clcalib.errors.ClcalibError and 'capture' in dir(clcalib)\n"
        "assert not hasattr(clcalib, 'nonsense') and not hasattr(clcalib, '__path')\n"
    )
    assert finished.returncode == 0, finished.stderr


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "error", "-c", code]
    path = str(SOURCE.parent)
    return subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=120, env={"PYTHONPATH": path, "PATH": ""}
    )


def test_core_alone_is_enough() -> None:
    finished = run_python(
        "import importlib, sys\n"
        f"blocked = {BLOCKED!r}\n"
        "class Block:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] in blocked:\n"
        "            raise ModuleNotFoundError(f'{name} is blocked', name=name)\n"
        "sys.meta_path.insert(0, Block())\n"
        f"for module in {sorted(set(MODULES) - NEEDS_PACKAGE - {'clcalib.__main__'})!r}:\n"
        "    importlib.import_module(module)\n"
        "print('imported', len([name for name in sys.modules if name.startswith('clcalib')]))\n"
    )
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.startswith("imported ")


def test_help_and_the_driver_of_a_sweep_do_without_torch() -> None:
    finished = run_python(
        "import importlib, sys\n"
        f"for module in {WITHOUT_TORCH!r}:\n"
        "    importlib.import_module(module)\n"
        "print('torch' in sys.modules)\n"
    )
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.strip() == "False"


def test_importing_compiles_nothing() -> None:
    finished = run_python(
        "import sys, torch\n"
        "before = set(sys.modules)\n"
        "from clcalib import *\n"
        "import clcalib\n"
        "compilers = ('torch._dynamo', 'torch._inductor', 'torch.utils.cpp_extension', 'triton')\n"
        "added = sorted(n for n in set(sys.modules) - before if n.startswith(compilers))\n"
        "print('added', added, 'clcalib.errors' in sys.modules)\n"
    )
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.strip() == "added [] True"
