"""Folders of runs that never were: every kind of content that a page may have to show, small or large."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

from PIL import Image

from clcalib.report.deployment import DeploymentRecord, FloatOperationRecord, TensorRecord
from clcalib.report.evidence import (
    ChangedImage,
    Evidence,
    FeatureMap,
    HistogramRecord,
    LayerEvidence,
    PredictionRecord,
    write_evidence,
)
from clcalib.report.record import (
    BeforeAfter,
    BudgetRecord,
    FloatRecord,
    LayerRecord,
    OnImages,
    RunRecord,
    SignalToNoise,
    TargetRecord,
    TargetRound,
    UnitRecord,
    UnitWidths,
    write_record,
)
from clcalib.report.trace import RunTrace, UnitCurves, write_trace

HOSTILE = (
    "</script><script>window.hit=1</script>", "<script>window.hit=1</script>", "</title><script>window.hit=1</script>",
    "</style><script>window.hit=1</script>", "</svg><script>window.hit=1</script>", "</table><img src=x onerror=hit=1>",
    '"><img src=x onerror="window.hit=1">', "'><img src=x onerror='window.hit=1'>", "<svg onload=window.hit=1>",
    "<svg><title><img src=x onerror=window.hit=1></title></svg>", "<iframe src=javascript:parent.hit=1></iframe>",
    "javascript:window.hit=1", "<a href=javascript:hit=1>a</a>", "<style>*{display:none}</style>",
    "<link rel=stylesheet href=http://example.invalid/a.css>", "<img src=http://example.invalid/a.png>",
    "<base href=http://example.invalid/>", "<meta http-equiv=refresh content='0;url=http://example.invalid'>",
    "<form action=http://example.invalid><input name=a></form>", "<object data=http://example.invalid/></object>",
    "<!-- a comment", "-->", "<![CDATA[ x", "]]>", "<?php echo 1 ?>", "&lt;b&gt;", "&amp;amp;", "&#x3c;script&#x3e;",
    "&", "<", ">", '"', "'", "`${window.hit=1}`", "{{7*7}}", "{% for x in y %}", "{# a #}", "${7*7}", "#{7*7}", "%s%n",
    "\u202eevil\u202c", "\u2067right to left\u2069", "שם של שכבה", "اسم الطبقة", "层名称", "🧨👩‍👩‍👧 conv",
    "a\tb\nc", "bell\x07 escape\x1b[31m", "return\rline", "very long " + "n" * 2000, "A\u0301\u0302\u0303\u0304" * 20,
    "../../etc/passwd", "C:\\windows\\system32", "' OR 1=1 --", "  leading and trailing  ", "null", "\u2028\u2029",
)  # fmt: skip

SECTIONS = (
    "headline", "run", "classes", "widths", "units", "losses", "histograms", "features", "coverage", "deployment",
    "load",
)  # fmt: skip


def picture(side: int = 32) -> str:
    stream = io.BytesIO()
    Image.new("RGB", (side, side), (90, 140, 60)).save(stream, "png")
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()


def both(before: float, after: float) -> OnImages:
    pair = BeforeAfter(before=before, after=after)
    return OnImages(calibration=pair, held_out=pair)


def record(names: tuple[str, ...] = ("stem", "block", "head"), **changes: Any) -> RunRecord:
    units = tuple(
        UnitRecord(
            name=name, kind="block", layers=(name,), reconstruction_error=both(2.0 + at, 1.0 + at / 2),
            mutual_information_bound=both(2.5, 3.0), mutual_information_gap=BeforeAfter(before=0.1, after=0.2),
            sqnr_db=SignalToNoise(calibration=20.0 - at % 7, held_out=19.0), kept="nearest" if at == 1 else "learned",
        )
        for at, name in enumerate(names)
    )  # fmt: skip
    values: dict[str, Any] = {
        "float_top1": 0.75, "nearest_top1": 0.25, "quantized_top1": 0.5, "agreement": 0.75, "nearest_agreement": 0.5,
        "weight_bits": 4, "activation_bits": 4, "setting": "qdrop", "recipe": "fast", "seed": 0, "steps_per_unit": 50,
        "seconds": 12.5, "seconds_per_stage": {"capture": 1.0, "reconstruction": 10.0, "evaluation": 1.5},
        "peak_memory_bytes": 10**9, "units": units, "calibration_images": 64, "evaluation_images": 4, "device": "cpu",
        "policy": tuple(
            LayerRecord(name=name, kind="convolution", weight_bits=4, input_bits=4, reason="") for name in names
        ),
        "float_parts": (FloatRecord(name=names[0], operator="prelu", parameters=3, reason="no kernel"),),
        "threads": 1, "versions": {"clcalib": "0.1.0", "torch": "2"}, "model_digest": "a" * 64,
        "calibration_digest": "b" * 64, "evaluation_digest": "c" * 64, "warnings": (f"unit {names[-1]} got worse",),
        "guard_tolerance": 0.0,
    }  # fmt: skip
    return RunRecord(**{**values, **changes})


def deployment(name: str = "conv", **changes: Any) -> DeploymentRecord:
    values: dict[str, Any] = {
        "target": "onnxruntime", "file": "model.onnx", "file_bytes": 12345, "runtime": "ONNX Runtime 1.0", "images": 4,
        "top1_simulated": 0.5, "top1_runtime": 0.5, "agreement": 1.0, "largest_output_difference": 0.01,
        "max_code_difference": 1, "parting": name, "integer_layers": 3, "float_layers": 1, "integer_operations": 5,
        "float_operations": 1, "in_float": (FloatOperationRecord(name=name, operation="Softmax", reason=f"of {name}"),),
        "tensors": (TensorRecord(name=name, own=1, own_share=0.01, whole=2, whole_share=0.1),),
    }  # fmt: skip
    return DeploymentRecord(**{**values, **changes})


def budget(names: tuple[str, ...] = ("stem", "block")) -> BudgetRecord:
    units = tuple(
        UnitWidths(
            name=name, layers=(name,), widths=None if at == 1 else "W3A8", bytes=100,
            sensitivities={"W2A8": 0.5, "W3A8": 0.05, "W4A8": 0.001},
        )
        for at, name in enumerate(names)
    )  # fmt: skip
    return BudgetRecord(
        size_budget=1000, cost_budget=None, size=900, cost=0.4, smallest_size=500, smallest_cost=0.2,
        mean_weight_bits=3.1, per="unit", measure="divergence", images=64, sensitivity=0.2, is_optimal=True, gap=0.0,
        units=units,
    )  # fmt: skip


def target(names: tuple[str, ...] = ("stem", "block")) -> TargetRecord:
    rounds = tuple(
        TargetRound(drop=drop, mean_weight_bits=bits, widths={}, sensitivities={}, raised=raised)
        for drop, bits, raised in ((3.0, 2.0, names), (0.5, 3.0, ()))
    )
    return TargetRecord(max_drop=1.0, measure="top1", images=100, is_met=True, rounds=rounds)


def histogram(axis: str = "codes", bits: int = 4) -> HistogramRecord:
    return HistogramRecord.model_validate(
        {
            "axis": axis, "low": -1.5, "high": 2**bits + 0.5, "counts": tuple(range(96)), "above": 3, "clipped": 0.01,
            "bits": bits, "levels": tuple(float(code) for code in range(2**bits)),
        }
    )  # fmt: skip


def evidence(
    names: tuple[str, ...] = ("stem", "block", "head"), classes: tuple[str, ...] = ("cat", "dog", "owl"), **changes: Any
) -> Evidence:
    """Four images, or as many as there are classes: half of them keep their class, half get the next one."""
    count = max(4, len(classes))
    labels = tuple(at % len(classes) for at in range(count))
    own = tuple((label + at % 2) % len(classes) for at, label in enumerate(labels))
    changed = [at for at in range(count) if own[at] != labels[at]][:48]
    values: dict[str, Any] = {
        "float_bytes": 4000, "images": 4,
        "predictions": PredictionRecord(
            digest="c" * 64, labels=labels, floating=labels, nearest=own, quantized=own, class_names=classes
        ),
        "changed": tuple(
            ChangedImage(
                place=at, name=names[at % len(names)], float_confidence=0.9, quantized_confidence=0.4,
                picture=picture() if at % 4 else None,
            )
            for at in changed
        ),
        "layers": tuple(
            LayerEvidence(
                name=name, weights=100, flipped=0.2, weight=histogram(),
                activation=histogram("values", 8 if at % 2 else 4),
            )
            for at, name in enumerate(names)
        ),
        "features": FeatureMap(
            node="flatten", images="evaluation", explained=(0.5, 0.25), classes=labels,
            floating=tuple((float(at), at * 0.5) for at in range(count)),
            quantized=tuple((at + 0.1, at * 0.4) for at in range(count)),
        ),
    }  # fmt: skip
    return Evidence(**{**values, **changes})


def trace(names: tuple[str, ...] = ("stem", "block", "head"), terms: tuple[str, ...] = ("Reconstruction",)) -> RunTrace:
    steps = tuple(range(0, 400, 2))
    losses = {term: tuple(None if step < 4 else 100.0 / (step + 1) for step in steps) for term in terms}
    units = tuple(UnitCurves(name=name, steps=steps, losses=losses) for name in names)
    return RunTrace(units=units, last_phase=units[0].model_copy(update={"name": "whole network"}))


def config(**model: Any) -> dict[str, Any]:
    return {
        "model": {"entry": "somewhere/nets.py:build", "weights": "net.safetensors", **model},
        "data": {"calibration": "images", "evaluation": None},
        "run": {"out": "out", "seed": 0},
    }


def folder(path: Path, **parts: Any) -> Path:
    """Write a run's folder; a part that is None is left out."""
    path.mkdir(parents=True)
    (path / "model.safetensors").write_bytes(b"0" * 1000)
    write_record(parts.get("record", record()), path / "run.json")
    if parts.get("trace", trace()) is not None:
        write_trace(parts.get("trace", trace()), path / "trace.json")
    if parts.get("evidence", evidence()) is not None:
        write_evidence(parts.get("evidence", evidence()), path / "report.json")
    if parts.get("config", config()) is not None:
        (path / "config.json").write_text(json.dumps(parts.get("config", config())))
    return path


def hostile_folder(path: Path) -> Path:
    """Every name is hostile: layers, units, classes, files, the model, its folder, targets, reasons and losses."""
    names = HOSTILE
    own = record(
        names, deployment=deployment(names[0]), budget=budget(names), target=target(names), submodule=names[1],
        recipe=names[2], setting=names[3], device=names[4], versions={names[5]: names[6]}, warnings=names,
        float_parts=tuple(FloatRecord(name=n, operator=n, parameters=1, reason=n) for n in names),
        seconds_per_stage=dict.fromkeys(names[:10], 1.0), contrastive={names[7]: names[8]}, kernels=names[9],
    )  # fmt: skip
    parts = {
        "record": own,
        "evidence": evidence(names, names),
        "trace": trace(names, names[:6]),
        "config": config(entry=f"{names[0]}:{names[6]}", arguments={names[7]: names[8]}) | {names[9]: {names[10]: "x"}},
    }
    return folder(path, **parts)
