"""What opens files that come from anywhere stands in one place each, and what can run code stands nowhere."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import clcalib

SOURCE = Path(clcalib.__file__).parent
FILES = {path.relative_to(SOURCE).as_posix(): path for path in sorted(SOURCE.rglob("*.py"))}

# Modules that carry out what a file says.
NO_IMPORT = {
    *("pickle", "_pickle", "cPickle", "cloudpickle", "dill", "joblib", "marshal", "shelve", "code", "codeop", "runpy"),
    *("yaml", "ruamel", "xml", "imp"),
}
# Calls by the end of their name, and the only files that may make them.
ONLY_IN: dict[str, set[str]] = {
    "eval": set(), "exec": set(), "compile": set(), "__import__": {"export/runtimes/peak_memory.py"},
    "os.system": set(), "os.popen": set(), "extractall": set(), "unpack_archive": set(),
    "register_custom_ops_library": set(), "add_extension": set(), "add_safe_globals": set(), "safe_globals": set(),
    "np.load": set(), "numpy.load": set(), "np.fromfile": set(), "jit.load": set(), "hub.load": set(),
    "load_library": set(), "load_state_dict_from_url": set(), "spec_from_file_location": {"model_source.py"},
    "exec_module": {"model_source.py"},
    "torch.load": {"reading/torch_file.py"},
    # A program that this very run has written, to a file or in memory; see x86.load_program.
    "export.load": {"export/program/x86.py", "export/trial.py"},
    "load_file": {"reading/state_dict.py"}, "safe_open": set(), "load_safetensors": {"reading/state_dict.py"},
    "Image.open": {"data/decode.py"},
    "onnx.load": {"export/runtimes/model_file.py"},
    "tarfile.open": {"data/fetch.py"}, "zipfile.ZipFile": {"reading/arrays.py", "reading/torch_file.py"},
    "tomllib.loads": {"config_sources.py"}, "tomllib.load": set(), "json.load": set(),
    # The state of a run has limits and digests of its own; in the last three a text is parsed that is no file.
    "json.loads": {
        "reading/content.py", "durable/lock.py", "durable/manifest.py", "durable/payload.py",
        "export/checkpoint_description.py", "export/runtimes/peak_memory.py", "cli/findings.py",
        "team/board.py", "team/messages.py", "team/parts.py", "identity.py",  # what workers of one run tell each other
    },
    "safetensors.torch.load": {"durable/payload.py", "reading/state_dict.py"},
}  # fmt: skip
# ``import_module`` with a name that is no literal; in the first file, a name inside the package.
IMPORTS_BY_NAME = {"__init__.py", "model_source.py", "export/runtimes/model_file.py"}


def dotted(node: ast.expr) -> str:
    """``torch.export.load`` for the expression that says so; ``?`` stands for what is no name."""
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else "?"


def imported(tree: ast.AST) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def mentions(tree: ast.AST) -> Iterator[tuple[int, str, ast.Call | None]]:
    """Every name that is used anywhere, called or handed on, once."""
    calls = {id(node.func): node for node in ast.walk(tree) if isinstance(node, ast.Call)}
    inner = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute | ast.Name) and id(node) not in inner:
            yield node.lineno, dotted(node), calls.get(id(node))


def ends(name: str, end: str) -> bool:
    if end in ("eval", "exec", "compile"):  # the builtins; methods of these names belong to modules and patterns
        return name == end
    return name == end or name.endswith(f".{end}")


def found(source: str, file: str) -> list[str]:
    """Everything in a source that the rules do not allow there."""
    tree = ast.parse(source)
    problems = [
        f"{file}:{line} imports {name}" for line, name in imported(tree) if NO_IMPORT & {name.split(".")[0], name}
    ]
    for line, name in imported(tree):
        names = [end for end, files in ONLY_IN.items() if name in (end, f"torch.{end}") and file not in files]
        problems += [f"{file}:{line} imports {name}" for _ in names]
    for line, name, call in mentions(tree):
        names = [end for end, files in ONLY_IN.items() if ends(name, end) and file not in files]
        problems += [f"{file}:{line} uses {name}" for _ in names]
        if call is not None:
            problems += [f"{file}:{line} {told}" for told in odd_arguments(name, call)]
            is_literal = bool(call.args) and isinstance(call.args[0], ast.Constant)
            if ends(name, "import_module") and not is_literal and file not in IMPORTS_BY_NAME:
                problems.append(f"{file}:{line} imports a module whose name is computed")
    return problems


def odd_arguments(name: str, call: ast.Call) -> Iterator[str]:
    given = {keyword.arg: keyword.value for keyword in call.keywords}

    def value(key: str) -> object:
        return given[key].value if isinstance(given.get(key), ast.Constant) else None

    if ends(name, "torch.load") and value("weights_only") is not True:
        yield "calls torch.load without weights_only=True"
    if ends(name, "Image.open") and "formats" not in given:
        yield "opens an image of any format"
    if "allow_pickle" in given or value("shell") is True or value("trust_remote_code") is True:
        yield "allows code in data"


@pytest.mark.parametrize("file", FILES)
def test_nothing_runs_code_from_files_and_every_reader_has_its_place(file: str) -> None:
    assert found(FILES[file].read_text(encoding="utf-8"), file) == []


def test_the_places_of_the_readers_are_used() -> None:
    for end, files in ONLY_IN.items():
        for file in files:
            tree = ast.parse(FILES[file].read_text(encoding="utf-8"))
            names = {name for _, name, _ in mentions(tree)} | {name for _, name in imported(tree)}
            assert any(ends(name, end) for name in names), f"{file} uses no {end}; take it off the list"


@pytest.mark.parametrize(
    "source",
    [
        "import pickle", "from pickle import loads", "import yaml", "eval('1')", "run = exec", "__import__('os')",
        "import numpy as np\nnp.load('a.npy')", "f(allow_pickle=True)", "torch.load(path)", "from torch import load",
        "torch.load(path, weights_only=False)", "torch.jit.load(path)", "torch.export.load(path)",
        "from torch.export import load", "torch.hub.load('x', 'y')", "Image.open(path)", "import dill as p",
        "from safetensors.torch import load_file\nload_file(p)", "json.load(stream)",
        "options.register_custom_ops_library(p)",
        "core.add_extension(p)", "archive.extractall(p)", "subprocess.run(text, shell=True)", "os.system('x')",
        "importlib.import_module(name)", "torch.serialization.add_safe_globals([x])", "onnx.load(path)",
    ],
)  # fmt: skip
def test_the_rules_find_what_they_are_for(source: str) -> None:
    assert found(source, "quant/spec.py"), source


@pytest.mark.parametrize(
    "source", ["model.eval()", "f(x).eval()", "re.compile('x')", "importlib.import_module('torch.ao')"]
)
def test_the_rules_let_ordinary_code_be(source: str) -> None:
    assert found(source, "quant/spec.py") == []
