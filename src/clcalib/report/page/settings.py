"""What was run and with what; what stayed in float; what the runtime made of the file; how to load the result."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence

from markupsafe import Markup

from clcalib.quant.targets import TARGETS
from clcalib.report.charts.rows import Mark, Panel, row_chart
from clcalib.report.deployment import DeploymentRecord
from clcalib.report.formats import MISSING, duration, percent
from clcalib.report.page.numbers import size_text
from clcalib.report.page.sources import RunFolder
from clcalib.report.record import RunRecord

_SHOWN_STAGES = 12
_LIBRARIES = ("torchvision", "timm")  # whose networks go by name, and which have no function of that name
_LOADERS = {
    "onnxruntime": (
        "import onnxruntime",
        "session = onnxruntime.InferenceSession({file})",
        "outputs = session.run(None, {{session.get_inputs()[0].name: images}})",
    ),
    "openvino": ("import openvino", "network = openvino.compile_model({file})", "outputs = network(images)[0]"),
}


@dataclasses.dataclass(frozen=True)
class SettingsView:
    """Titled lists of (key, value), and a chart of where the time went."""

    groups: tuple[tuple[str, tuple[tuple[str, str], ...]], ...]
    chart: Markup | None


@dataclasses.dataclass(frozen=True)
class ProofView:
    """What the runtime made of the file: lines of (key, value), tensors, and what is in float by reason."""

    facts: tuple[tuple[str, str], ...]
    reasons: tuple[tuple[str, str, str], ...]
    tensors: tuple[tuple[str, str, str, str, str], ...]
    tensor_count: int
    is_run: bool
    is_sound: bool


def settings_view(run: RunFolder) -> SettingsView:
    """What was run and with what."""
    record = run.record
    data = [
        ("calibration images", f"{record.calibration_images:,}"),
        ("evaluation images", f"{record.evaluation_images:,}"),
        ("digest of the weights", record.model_digest),
        ("digest of the calibration images", record.calibration_digest),
        ("digest of the evaluation images", record.evaluation_digest or MISSING),
    ]
    how = [
        ("recipe", record.recipe),
        ("steps for each unit", f"{record.steps_per_unit:,}"),
        ("widths", f"W{record.weight_bits}A{record.activation_bits}, edge layers as in {record.setting}"),
        ("seed", str(record.seed)),
        ("target", record.runtime_target or "none"),
        ("guard", _guard(record)),
    ]
    machine = [
        *record.versions.items(),
        ("device", record.device),
        ("threads", str(record.threads)),
        ("precision of convolutions", record.precision),
        ("precision of stored values", record.cache_precision),
        ("kernels", record.kernels),
        ("peak memory", size_text(record.peak_memory_bytes)),
        (
            "stored activations",
            f"{size_text(record.stored_bytes)} in memory, {size_text(record.spilled_bytes)} in files",
        ),
        (
            "time",
            duration(record.seconds) + (f", gone on with {record.resumptions} times" if record.resumptions else ""),
        ),
    ]
    groups = [("Method", tuple(how)), ("Images and weights", tuple(data)), ("Machine", tuple(machine))]
    configured = tuple(_flat(run.config))
    if configured:
        groups.append(("Configuration (config.json)", configured))
    return SettingsView(tuple(groups), _stages(record.seconds_per_stage))


def proof_view(record: DeploymentRecord | None, most_tensors: int = 200) -> ProofView | None:
    """The deployment proof, or None where nothing was written."""
    if record is None:
        return None
    facts = [("file", f"{record.file}, {size_text(record.file_bytes)}"), ("target", record.target)]
    facts.append(("runtime", record.runtime or "not installed where this ran, so that nothing is proved"))
    if record.top1_runtime is not None:
        facts.append((f"top-1 of the runtime, {record.images:,} images", f"{percent(record.top1_runtime)} %"))
        facts.append(("top-1 of the simulation, the same images", f"{percent(record.top1_simulated)} %"))
    if record.agreement is not None:
        facts.append(("same class", f"{percent(record.agreement)} % of {record.images:,} images"))
    if record.max_code_difference is not None:
        where = "" if record.parting is None else f", first at {record.parting}"
        facts.append(("largest difference in codes that a kernel makes", f"{record.max_code_difference}{where}"))
    if record.largest_output_difference is not None:
        facts.append(("largest difference of an output", f"{record.largest_output_difference:.3g}"))
    facts += [
        (name, f"{integer} of {integer + floating} in integers")
        for name, integer, floating in (
            ("layers with weights", record.integer_layers, record.float_layers),
            ("all operations", record.integer_operations, record.float_operations),
        )
        if integer is not None and floating is not None
    ]
    worst = sorted(record.tensors, key=lambda row: (-row.own, -row.own_share, -row.whole))[:most_tensors]
    return ProofView(
        facts=tuple(facts),
        reasons=tuple((row.name, row.operation, row.reason) for row in record.in_float),
        tensors=tuple(
            (row.name, str(row.own), f"{100 * row.own_share:.2g}", str(row.whole), f"{100 * row.whole_share:.2g}")
            for row in worst
        ),
        tensor_count=len(record.tensors),
        is_run=record.runtime is not None,
        is_sound=record.max_code_difference is not None and record.max_code_difference <= 1,
    )


def loading_lines(run: RunFolder) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """(what for, the lines) of every way in which the result is loaded."""
    found: list[tuple[str, tuple[str, ...]]] = [
        (
            "In Python, from the folder above this page; the float network's weights are not needed",
            ("import clcalib", *_float_lines(run)),
        )
    ]
    deployed = run.record.deployment
    target = None if deployed is None else TARGETS.get(deployed.target)
    if deployed is not None and target is not None and target.runtime in _LOADERS:
        lines = tuple(line.format(file=repr(deployed.file)) for line in _LOADERS[target.runtime])
        found.append((f"The deployed file, in {target.runtime}", lines))
    return tuple(found)


def _float_lines(run: RunFolder) -> tuple[str, str]:
    """The line that imports what builds the float network, and the one that loads the result into it."""
    entry = str(run.setting("model", "entry") or "")
    place, _, builder = entry.rpartition(":")
    if place in _LIBRARIES and all(letter.isalnum() or letter in "._-" for letter in builder):
        line = "from clcalib.named_models import build"
        call = f"build({entry!r}, {_arguments(run)!r}, is_pretrained=False)"
    else:
        module = place.replace("\\", "/").rpartition("/")[2].removesuffix(".py")
        if not all(_is_plain(name) for name in (module, builder)):  # what is copied from a page should not surprise
            module, builder = "your_network", "build"
        given = f"**{_arguments(run)!r}" if _arguments(run) else ""
        line, call = f"from {module} import {builder.partition('.')[0]}", f"{builder}({given})"
    return line, f"model = clcalib.load({run.name!r}, {call})"


def _arguments(run: RunFolder) -> dict[str, object]:
    arguments = run.setting("model", "arguments")
    return dict(arguments) if isinstance(arguments, Mapping) else {}


def _is_plain(dotted: str) -> bool:
    """Whether it is a name of Python, or several with dots between them."""
    return all(part.isascii() and part.isidentifier() for part in dotted.split("."))


def _stages(seconds: Mapping[str, float]) -> Markup | None:
    longest = sorted(seconds.items(), key=lambda row: -row[1])[:_SHOWN_STAGES]
    shown = [(name, value) for name, value in seconds.items() if (name, value) in longest]
    if not shown:
        return None
    marks: list[Sequence[Mark]] = [[Mark(value, "s-own", "bar", duration(value))] for _, value in shown]
    return row_chart(
        [name for name, _ in shown],
        [Panel("seconds", marks)],
        title="Time of each stage",
        description=", ".join(f"{name} {duration(value)}" for name, value in shown),
    )


def _guard(record: RunRecord) -> str:
    if record.guard_tolerance is None:
        return "off"
    larger = (
        f"more than {100 * record.guard_tolerance:g} % larger" if record.guard_tolerance else "larger with the result"
    )
    return f"units go back to nearest rounding where their error is {larger}"


def _flat(config: Mapping[str, Mapping[str, object]]) -> list[tuple[str, str]]:
    """``section.key`` and its value as JSON writes it; what holds nothing is left out."""
    return [
        (f"{section}.{key}", value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))
        for section, table in config.items()
        for key, value in table.items()
        if value not in (None, {}, [])
    ]
