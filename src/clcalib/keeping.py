"""A run's saved state around its job: opened under a lock, for this very run, on a disk that has room for it."""

from __future__ import annotations

import contextlib
import errno
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from torch import Tensor

from clcalib.calibrate.curves import MOST_POINTS
from clcalib.calibrate.recipe import Recipe
from clcalib.capture.graph import weight_path
from clcalib.durable.lock import folder_lock
from clcalib.durable.state import RunState, has_state
from clcalib.errors import ArgumentError, OutputExistsError, StorageError
from clcalib.identity import identity_of
from clcalib.job import Job
from clcalib.quant.policy import LayerPolicy
from clcalib.quant.spec import PerChannel
from clcalib.team.parts import FollowerParts, LeaderParts, Parts

Size = tuple[int, int]  # codes and scales of a layer's weight

_TENSOR = 110  # bytes of a tensor's line in a safetensors header, about
_VALUES = 600  # bytes of what is saved with a unit, about
_ROW = 1000  # bytes of a unit in run.json, about
_PAGE, _PAGE_LAYER = 700_000, 12_000  # bytes of the page and report.json, and of a layer in both, about
_STEP, _LOSS = 8, 16  # bytes of a step's number, and of a term's loss at it, in a table of losses
_FIELD = 160  # bytes of a field of the identity in a manifest, about
_MANIFESTS = 3  # at a time: two generations, and the one that is being written


@contextlib.contextmanager
def opened_state(job: Job, folder: str | Path | None, *, is_resumed: bool) -> Iterator[Parts | None]:
    """The saved state of a run, in a folder that is locked meanwhile; None where there is to be none.

    Of several workers the first has the folder, and tells the others what is in it.

    Raises:
        ArgumentError, OutputExistsError, FolderInUseError, ResumeError, StorageError: see ``pipeline.quantize``.
    """
    if job.team.rank > 0:
        yield FollowerParts(job.team.exchange)
        return
    with _opened(job, folder, is_resumed=is_resumed) as state:
        yield state if job.team.workers == 1 else LeaderParts(state, job.team.exchange)


@contextlib.contextmanager
def _opened(job: Job, folder: str | Path | None, *, is_resumed: bool) -> Iterator[RunState | None]:
    if folder is None:
        if is_resumed:
            raise ArgumentError("state_folder", "the folder of an interrupted run, with is_resumed=True", "None")
        yield None
        return
    folder = Path(folder)
    with folder_lock(folder):
        identity = identity_of(job)
        if has_state(folder) and not is_resumed:
            raise OutputExistsError(f"{folder} holds the state of a run; go on with it, or delete it to begin anew")
        if not is_resumed:
            check_room(job, folder, len(identity))
            state = RunState.begin(folder, identity)
        else:
            state = RunState.resume(folder, identity)
        yield state


def check_room(job: Job, folder: Path, fields: int) -> None:
    """Raise where the disk has not the room that the state and the saved model need.

    Raises:
        StorageError: it has not.
    """
    needed, free = needed_bytes(job, fields), shutil.disk_usage(folder).free
    if needed > free:
        raise StorageError(
            errno.ENOSPC,
            f"{folder}: a run of this network needs up to {needed:,} bytes there, and {free:,} are free; make room, or "
            "name a folder on another disk",
        )


def needed_bytes(job: Job, fields: int | None = None, *, has_page: bool = False) -> int:
    """The most bytes that a run has in its output folder at a time.

    These are the codes, scales and zero points of nearest rounding, of the finished units and in the end of the saved
    model, a byte for each code; while a unit's steps are saved, its parameters with both means of Adam (12 bytes for
    each weight), three times, for two generations stay while a third is written; what is left in float; the losses;
    and manifests.

    Args:
        job: of the run.
        fields: of its identity; None for about as many as there are.
        has_page: whether a page is made at the end, without the room for which a run ends well, too.
    """
    state = job.chain.module.state_dict()
    sizes = _sizes(job.policy, state)
    units = [[sizes.get(layer, (0, 0)) for layer in unit.layers] for unit in job.chain.units]
    finished = sum(_unit_bytes(layers) for layers in units)
    steps = [_step_bytes(layers) for layers in units] if job.recipe.phases else []
    if job.recipe.last_phase is not None:
        steps.append(sum(_step_bytes(layers) for layers in units))
    quantized = {weight_path(layer, state) for unit in job.chain.units for layer in unit.layers}
    floats = sum(tensor.nbytes + _TENSOR for name, tensor in state.items() if name not in quantized)
    count = len(units)
    fields = fields if fields is not None else len(job.policy) + 60
    manifests = _MANIFESTS * (fields * _FIELD + count * 2 * _TENSOR)
    page = _PAGE + len(job.policy) * _PAGE_LAYER if has_page else 0
    # At the largest unit, when the model is written beside the last steps, or when the page is written.
    last = max(3 * max(steps, default=0), finished + max(steps, default=0), finished + page)
    curves = (2 * count + 3) * _curve_bytes(job.recipe)  # of all units in the state and in trace.json
    return int(2 * finished + last + floats + manifests + curves + count * (_VALUES + _ROW))


def _unit_bytes(layers: Sequence[Size]) -> int:
    """Of a unit's finished quantizers."""
    return sum(count + 8 * channels + 5 * _TENSOR + 8 for count, channels in layers)


def _step_bytes(layers: Sequence[Size]) -> int:
    """Of a unit's steps: what is finished, and the parameters under training with two means."""
    return _unit_bytes(layers) + sum(12 * (count + 1) + 6 * _TENSOR for count, _ in layers)


def _curve_bytes(recipe: Recipe) -> int:
    """Of the losses of a unit."""
    phases = (*recipe.phases, *([] if recipe.last_phase is None else [recipe.last_phase]))
    terms = sum(len(phase.terms) for phase in phases)
    return min(MOST_POINTS, sum(phase.steps for phase in phases)) * (_STEP + terms * _LOSS)


def _sizes(policy: Sequence[LayerPolicy], state: Mapping[str, Tensor]) -> dict[str, Size]:
    """Of each layer whose weight is quantized."""
    found = dict[str, Size]()
    for row in policy:
        weight = state.get(weight_path(row.layer, state))
        if row.weight is not None and weight is not None:
            axis = row.weight.granularity.axis if isinstance(row.weight.granularity, PerChannel) else None
            found[row.layer] = weight.numel(), 1 if axis is None else weight.shape[axis]
    return found
