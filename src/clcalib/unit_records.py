"""From what happened to a unit, and what was measured on it, to its part of the run record."""

from __future__ import annotations

from collections.abc import Sequence

from clcalib.calibrate.curves import Curves
from clcalib.calibrate.network import NAME, NetworkTrace
from clcalib.calibrate.walk import UnitTrace
from clcalib.capture.chain import Chain
from clcalib.capture.coverage import float_parts
from clcalib.evaluate.units import UnitMetrics
from clcalib.quant.policy import LayerPolicy, float_reasons
from clcalib.report.record import (
    BeforeAfter,
    FloatRecord,
    LastPhaseRecord,
    LayerRecord,
    OnImages,
    SignalToNoise,
    UnitRecord,
)
from clcalib.report.trace import RunTrace, UnitCurves


def layer_records(policy: Sequence[LayerPolicy]) -> tuple[LayerRecord, ...]:
    """The table of widths as it is kept with the run."""
    return tuple(
        LayerRecord(
            name=row.layer,
            kind=row.kind,
            weight_bits=None if row.weight is None else row.weight.bits,
            input_bits=None if row.input is None else row.input.bits,
            reason=row.reason,
        )
        for row in policy
    )


def float_records(chain: Chain, policy: Sequence[LayerPolicy]) -> tuple[FloatRecord, ...]:
    """What stays in float, as it is kept with the run."""
    return tuple(
        FloatRecord(name=part.name, operator=part.operator, parameters=part.parameters, reason=part.reason)
        for part in float_parts(chain, float_reasons(policy))
    )


def unit_record(
    trace: UnitTrace,
    before: UnitMetrics | None,
    after: UnitMetrics | None,
    other_before: UnitMetrics | None,
    other_after: UnitMetrics | None,
) -> UnitRecord:
    """What is known of one unit; ``other`` are the measures on held-out images."""
    bound = None
    if before is not None and after is not None:
        held_out = None
        if other_before is not None and other_after is not None:
            held_out = _pair(other_before.mutual_information_bound, other_after.mutual_information_bound)
        own = BeforeAfter(before=before.mutual_information_bound, after=after.mutual_information_bound)
        bound = OnImages(calibration=own, held_out=held_out)
    gap = None
    if bound is not None and bound.held_out is not None:
        own, other = bound.calibration, bound.held_out
        gap = BeforeAfter(before=own.before - other.before, after=own.after - other.after)
    return UnitRecord(
        name=trace.name,
        kind=trace.kind,
        kept=trace.kept,
        reconstruction_error=OnImages(
            calibration=BeforeAfter(before=trace.error_before, after=trace.error_after),
            held_out=_pair(trace.held_out_error_before, trace.held_out_error_after),
        ),
        mutual_information_bound=bound,
        mutual_information_gap=gap,
        sqnr_db=SignalToNoise(
            calibration=None if after is None else after.sqnr_db,
            held_out=None if other_after is None else other_after.sqnr_db,
        ),
        layers=trace.layers,
    )


def last_phase_record(trace: NetworkTrace) -> LastPhaseRecord:
    """What is known of the phase over the whole network."""
    error = OnImages(
        calibration=BeforeAfter(before=trace.error_before, after=trace.error_after),
        held_out=_pair(trace.held_out_error_before, trace.held_out_error_after),
    )
    return LastPhaseRecord(steps=trace.steps, reconstruction_error=error, changed_codes=trace.changed_codes)


def run_trace(traces: Sequence[UnitTrace], network: NetworkTrace | None) -> RunTrace:
    """The losses of all units, and of the phase over the whole network."""
    units = tuple(_curves(trace.name, trace.curves) for trace in traces)
    return RunTrace(units=units, last_phase=None if network is None else _curves(NAME, network.curves))


def _curves(name: str, curves: Curves) -> UnitCurves:
    return UnitCurves(name=name, steps=curves.steps, losses=dict(curves.losses))


def _pair(before: float | None, after: float | None) -> BeforeAfter | None:
    return None if before is None or after is None else BeforeAfter(before=before, after=after)
