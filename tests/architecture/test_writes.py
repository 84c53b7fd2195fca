"""One helper writes every file that is left behind; who else opens one to write stands in a short list, with a why."""

from __future__ import annotations

import ast
from pathlib import Path

import clcalib

SOURCE = Path(clcalib.__file__).parent
# The ends of calls that write.
WRITES = {"write_text", "write_bytes", "savefig", "save_file", "mkstemp", "NamedTemporaryFile", "TemporaryFile"}
WRITES |= {"replace", "rename", "fdopen", "savez", "tofile"}
ALLOWED = {
    "files.py": {"mkstemp", "fdopen", "replace"},  # the helper
    "durable/state.py": {"rename"},  # takes a whole folder away in one moment
    "durable/lock.py": {"open"},  # the lock's own file holds nothing that is needed
    "calibrate/space.py": {"TemporaryFile"},  # nameless, gone with the process
    "data/fetch.py": {"open", "replace"},  # into a scratch folder, checked by digest and then moved
    "fused/build.py": {"replace"},  # the compiler's output, from a scratch folder beside it
    "tracking/event_files.py": {"open"},  # grows as the run goes, and is read meanwhile
    "export/program/executorch.py": {"open"},  # the null device
    "cli/actions/sweep.py": {"open"},  # the null device
}


def calls(path: Path) -> set[str]:
    """The ends of the names of all calls in a file that can write to the disk."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call):
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        owner = node.func.value if isinstance(node.func, ast.Attribute) else None
        if name in ("replace", "rename") and not is_about_files(owner, node):
            continue
        if name == "open" and not opens_to_write(node):
            continue
        if name in WRITES | {"open"}:
            found.add(name)
    return found


def is_about_files(owner: ast.expr | None, node: ast.Call) -> bool:
    """``os.replace(a, b)`` and ``path.rename(b)``, but neither texts nor dataclasses."""
    is_os = isinstance(owner, ast.Name) and owner.id in ("os", "shutil")
    return is_os or (len(node.args) == 1 and not node.keywords)


def opens_to_write(node: ast.Call) -> bool:
    """Whether a mode says so, or it is ``os.open``, or it cannot be told."""
    words = [*node.args, *(keyword.value for keyword in node.keywords)]
    texts = [word.value for word in words if isinstance(word, ast.Constant) and isinstance(word.value, str)]
    is_creating = any(getattr(part, "attr", "") == "O_CREAT" for word in words for part in ast.walk(word))
    return is_creating or any(len(text) <= 3 and set(text) & set("wax+") for text in texts)


def test_only_the_helper_writes_files():
    found = {path.relative_to(SOURCE).as_posix(): calls(path) for path in sorted(SOURCE.rglob("*.py"))}
    odd = {name: names - ALLOWED.get(name, set()) for name, names in found.items()}
    assert {name: names for name, names in odd.items() if names} == {}
    unused = {name: names - found.get(name, set()) for name, names in ALLOWED.items()}
    assert {name: names for name, names in unused.items() if names} == {}, "the list allows what nobody does"
