"""Make the venvs of peers, each with its own pinned versions: ``python benchmarks/peers/make_venv.py brevitas nncf``.

Needs Python 3.11; a CPU build of torch is enough.  A venv that is there already is left as it is.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import venv
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from peers.grid import PEERS, VENVS


def python_of(folder: Path) -> Path:
    return folder / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")


def make(folder: Path, requirements: tuple[str, ...]) -> None:
    """Pip writes the mark last, so a venv that was left half made is made again."""
    mark = folder / "made"
    if mark.exists():
        return
    venv.create(folder, with_pip=True, clear=True)
    subprocess.run([python_of(folder), "-m", "pip", "install", "--quiet", *requirements], check=True)
    mark.write_text("\n".join(requirements) + "\n")


def main() -> None:
    names = [name for name, peer in PEERS.items() if peer.requirements]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("peers", nargs="*", default=names, help=f"by default all: {', '.join(names)}")
    parser.add_argument("--venvs", type=Path, default=VENVS, help="where the venvs are")
    arguments = parser.parse_args()
    for name in arguments.peers:
        if name not in names:
            parser.error(f"{name} is none of {', '.join(names)}")
        make(arguments.venvs / name, PEERS[name].requirements)
        print(f"{name}: {python_of(arguments.venvs / name)}", flush=True)


if __name__ == "__main__":
    main()
