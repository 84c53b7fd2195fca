"""What is compared: the peers, their versions and methods, the widths, and how each was used.  Needs no library."""

from __future__ import annotations

import dataclasses
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
VENVS = FOLDER / ".venvs"
RESULTS = FOLDER.parent / "results" / "peers"
TORCH = "torch==2.13.0"

Widths = tuple[int, int]  # weights, activations
WIDTHS: tuple[Widths, ...] = ((8, 8), (4, 8), (4, 4), (2, 4), (2, 2))
ACADEMIC = "academic"
OWN = "own"


@dataclasses.dataclass(frozen=True)
class Method:
    """One way to use a peer.

    Args:
        settings: what was chosen, for the page.
        widths: those it can do.
        otherwise: why it cannot do the others.
    """

    title: str
    settings: str
    widths: tuple[Widths, ...] = WIDTHS
    otherwise: str = ""


@dataclasses.dataclass(frozen=True)
class Peer:
    """A library; ``module`` is its adapter, ``requirements`` are empty where it runs in the harness's environment."""

    title: str
    requirements: tuple[str, ...]
    placement: str
    where: str
    methods: dict[str, Method]
    did_not_run: str = ""


PEERS: dict[str, Peer] = {
    "ours": Peer(
        "clcalib",
        (),
        ACADEMIC,
        "weights per channel, asymmetric; inputs of convolutions and of the classifier; the image stays float",
        {
            "nearest": Method("nearest", "ranges by squared error, no optimisation"),
            "fast": Method("fast", "as by default, 200 steps for each unit"),
            "qdrop": Method("qdrop", "2,000 steps for each unit"),
        },
    ),
}


def name_of(peer: str, method: str, widths: Widths, seed: int) -> str:
    return f"{peer}-{method}-w{widths[0]}a{widths[1]}-seed{seed}"


def title_of(widths: Widths) -> str:
    return f"W{widths[0]}A{widths[1]}"
