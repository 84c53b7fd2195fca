"""Tables for the terminal; each is readable on 80 columns and uses more where there is more."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from clcalib.capture.coverage import FloatPart
from clcalib.capture.describe import Shape, UnitRow
from clcalib.quant.policy import FLOAT_BITS, OVERRIDE, RAISED, TENSOR, LayerPolicy
from clcalib.quant.spec import QuantSpec
from clcalib.report.formats import MISSING, duration, new_table, percent, short
from clcalib.report.record import BudgetRecord, FloatRecord, LayerRecord, OnImages, RunRecord, TargetRecord


def policy_table(rows: Sequence[LayerPolicy]) -> Table:
    """Which layer gets how many bits for its weight and for the tensor that it reads (a product reads two), and why.

    A tensor that a target's kernels need quantized for themselves has a line of its own.
    """
    table = new_table("Policy: bits of weights and inputs")
    has_kind = any(row.kind for row in rows)
    table.add_column("layer", overflow="fold", style="bold")
    if has_kind:
        table.add_column("type", no_wrap=True)
    table.add_column("weight", justify="right", no_wrap=True)
    table.add_column("input", justify="right", no_wrap=True)
    table.add_column("why")
    for row in rows:
        kind = [Text(row.kind)] if has_kind else []
        read = _bits(row.input) if row.right is None else f"{_bits(row.input)}, {_bits(row.right)}"
        weight = MISSING if row.kind == TENSOR else _bits(row.weight)
        table.add_row(Text(row.layer), *kind, weight, read, Text(row.reason))
    return table


def float_table(parts: Sequence[FloatPart] | Sequence[FloatRecord]) -> Table:
    """What has weights, or multiplies matrices, and computes in float all the same, and why."""
    table = new_table("Left in float")
    table.add_column("layer", overflow="fold", style="bold")
    table.add_column("operator", no_wrap=True)
    table.add_column("params", justify="right", no_wrap=True)
    table.add_column("why")
    for part in parts:
        table.add_row(Text(part.name), part.operator, short(part.parameters), Text(part.reason))
    return table


def description_table(rows: Sequence[UnitRow]) -> Table:
    """The units that a network is cut into, with the shapes for one image and the totals."""
    table = new_table("Units")
    table.show_footer = True
    table.add_column("#", justify="right", no_wrap=True)
    table.add_column("unit", overflow="fold", style="bold", footer="total")
    table.add_column("kind", no_wrap=True)
    table.add_column("input -> output", overflow="fold")
    table.add_column("layers", justify="right", no_wrap=True, footer=str(sum(len(row.layers) for row in rows)))
    products = sum(len(row.products) for row in rows)
    if products:
        table.add_column("products", justify="right", no_wrap=True, footer=str(products))
    table.add_column("params", justify="right", no_wrap=True, footer=short(sum(row.parameters for row in rows)))
    table.add_column("MACs", justify="right", no_wrap=True, footer=short(sum(row.macs for row in rows)))
    for row in rows:
        shapes = f"{_shapes(row.input_shapes)} -> {_shapes(row.output_shapes)}"
        counts = (str(len(row.layers)), str(len(row.products))) if products else (str(len(row.layers)),)
        numbers = (*counts, short(row.parameters), short(row.macs))
        table.add_row(str(row.index), Text(row.name), row.kind, shapes, *numbers)
    return table


def unit_table(record: RunRecord) -> Table:
    """Reconstruction error and mutual-information bound per unit, with nearest rounding and after optimisation.

    Where it is too wide, pairs of numbers take two lines before a name is folded.
    """
    has_bound = any(unit.mutual_information_bound is not None for unit in record.units)
    has_gap = any(unit.mutual_information_gap is not None for unit in record.units)
    has_held_out = any(unit.reconstruction_error.held_out is not None for unit in record.units)
    table = new_table("Units: before (nearest rounding) and after")
    table.add_column("unit", overflow="fold", style="bold")
    table.add_column("error", justify="right")
    if has_held_out:
        table.add_column("held-out error", justify="right")
    if has_bound:
        table.add_column(Text("MI bound [nat]"), justify="right")
    if has_gap:
        table.add_column("gap", justify="right", no_wrap=True)
    table.add_column(Text("SQNR [dB]"), justify="right", no_wrap=True)
    for unit in record.units:
        cells: list[Text | str] = [Text(unit.name), _change(unit.reconstruction_error)]
        if has_held_out:
            cells.append(_change(unit.reconstruction_error, is_held_out=True))
        if has_bound:
            cells.append(_change(unit.mutual_information_bound, digits=2))
        if has_gap:
            gap = unit.mutual_information_gap
            cells.append(MISSING if gap is None else f"{gap.after:+.2f}")
        ratio = unit.sqnr_db.calibration
        table.add_row(*cells, MISSING if ratio is None else f"{ratio:.1f}")
    return table


def summary_table(records: Sequence[RunRecord], *, title: str = "Summary") -> Table:
    """Float, nearest rounding and each record's method, one line each; one block for each pair of widths.

    The float line stands once, at the top; the nearest line once for each pair of widths.
    """
    table = new_table(title)
    table.add_column("method", style="bold", overflow="fold")
    table.add_column("bits")
    for heading in ("top-1 [%]", "agreement [%]", "steps", "time"):
        table.add_column(Text(heading), justify="right", no_wrap=True)
    float_values = [record.float_top1 for record in records if record.float_top1 is not None]
    if float_values:
        table.add_row("float", "W32A32", percent(float_values[0]), MISSING, MISSING, MISSING)
    for bits in dict.fromkeys(bits_name(record) for record in records):
        table.add_section()
        group = [record for record in records if bits_name(record) == bits]
        nearest = [record.nearest_top1 for record in group if record.nearest_top1 is not None]
        if nearest and any(record.recipe != "nearest" for record in group):
            table.add_row("nearest", bits, percent(nearest[0]), MISSING, MISSING, MISSING)
        for record in group:
            table.add_row(
                Text(method_name(record)), bits, percent(record.quantized_top1), percent(record.agreement),
                str(record.steps_per_unit), duration(record.seconds),
            )  # fmt: skip
    return table


def target_table(target: TargetRecord) -> Table:
    """The runs on the way to an accuracy: what each lost, and which units got more bits for the next."""
    measure = "top-1" if target.measure == "top1" else "agreement"
    table = new_table(
        f"Rounds: at most {target.max_drop:g} points of {measure} lost on {target.images:,} deciding images"
    )
    table.add_column("#", justify="right", no_wrap=True)
    table.add_column("points lost", justify="right", no_wrap=True)
    table.add_column("mean weight bits", justify="right", no_wrap=True)
    table.add_column("raised for the next", overflow="fold")
    for number, row in enumerate(target.rounds, 1):
        is_kept = row.drop <= target.max_drop
        units = ", ".join(row.raised) or ("none: kept" if is_kept else MISSING)
        table.add_row(str(number), f"{row.drop:.2f}", f"{row.mean_weight_bits:.2f}", Text(units))
    return table


def budget_table(budget: BudgetRecord) -> Table:
    """The widths that were chosen for each unit or layer, their bytes, and what each would do alone."""
    asked = [] if budget.size_budget is None else [f"at most {budget.size_budget:,} bytes"]
    asked += [] if budget.cost_budget is None else [f"at most {budget.cost_budget:.4g} of the bit operations of W8A8"]
    table = new_table(f"Widths: {' and '.join(asked)}")
    table.show_footer = True
    table.add_column(budget.per, overflow="fold", style="bold", footer=f"all, {budget.cost:.4g} of W8A8's operations")
    table.add_column("widths", no_wrap=True, footer=f"W{budget.mean_weight_bits:.2f}")
    table.add_column("bytes", justify="right", no_wrap=True, footer=f"{budget.size:,}")
    name = "divergence" if budget.measure == "divergence" else "share changed"
    table.add_column(name, justify="right", no_wrap=True, footer=f"{budget.sensitivity:.3g}")
    for unit in budget.units:
        (first, *_) = unit.sensitivities
        value = unit.sensitivities[unit.widths or first]
        table.add_row(Text(unit.name), unit.widths or "settled", f"{unit.bytes:,}", f"{value:.3g}")
    return table


def accuracy_table(rows: Sequence[tuple[str, float | None, float | None]], images: int) -> Table:
    """Top-1 and agreement with the float network of each model, over this many images."""
    table = new_table(f"{images:,} evaluation images")
    table.add_column("model", style="bold", overflow="fold")
    for heading in ("top-1 [%]", "agreement [%]"):
        table.add_column(Text(heading), justify="right", no_wrap=True)
    for name, accuracy, same in rows:
        table.add_row(Text(name), percent(accuracy), percent(same))
    return table


def detection_table(rows: Sequence[tuple[str, float | None, float | None]], count: int, threshold: float) -> Table:
    """(name, share of the float detector's detections that are found, their mean overlap) of each model."""
    table = new_table(f"{count:,} float detections, scores from {threshold:g} on")
    table.add_column("model", style="bold", overflow="fold")
    for heading in ("found too [%]", "mean overlap [%]"):
        table.add_column(Text(heading), justify="right", no_wrap=True)
    for name, matched, overlap in rows:
        table.add_row(Text(name), percent(matched), percent(overlap))
    return table


def method_name(record: RunRecord) -> str:
    """The recipe's name, with what was added to it: ``qdrop + CL``, ``qdrop + biases``, ``qdrop + tuning``."""
    host = record.recipe.replace("+contrastive", "").replace("+last_phase", " + last phase")
    host = host.replace("+biases", " + biases").replace("+tuning", " + tuning")
    return f"{host} + CL" if "+contrastive" in record.recipe else host


def bits_name(record: RunRecord) -> str:
    """The two widths in the usual form, and how many layers have others by a pattern: ``W2A4, 3 layers otherwise``.

    The first and last layer's own widths are part of the setting and not counted.  Of weights whose widths were chosen
    one by one, the mean is told, and of such activations the least and the largest width: ``W3.2A4``, ``W3.2A4-8``.
    """
    if record.budget is not None:
        chosen = sorted({unit.widths.partition("A")[2] for unit in record.budget.units if unit.widths is not None})
        activations = "-".join(dict.fromkeys((chosen[0], chosen[-1]))) if chosen else record.activation_bits
        return f"W{record.budget.mean_weight_bits:.1f}A{activations}"
    name = f"W{record.weight_bits}A{record.activation_bits}"
    count = sum(_is_changed(row, record) for row in record.policy)
    return name if count == 0 else f"{name}, {count} layer{'s' if count > 1 else ''} otherwise"


def _is_changed(row: LayerRecord, record: RunRecord) -> bool:
    """Whether a pattern gave a layer, or a search for an accuracy, widths that are not those of the run."""
    own = (row.weight_bits or FLOAT_BITS, row.input_bits or FLOAT_BITS)
    return row.reason.startswith((OVERRIDE, RAISED)) and own != (record.weight_bits, record.activation_bits)


def _bits(spec: QuantSpec | None) -> str:
    if spec is None:
        return "float"
    return str(spec.bits) if spec.grid == "uniform" else f"{spec.bits} {spec.grid}"


def _change(measured: OnImages | None, *, is_held_out: bool = False, digits: int | None = None) -> str:
    pair = None if measured is None else (measured.held_out if is_held_out else measured.calibration)
    if pair is None:
        return MISSING
    if digits is not None:
        return f"{pair.before:.{digits}f} -> {pair.after:.{digits}f}"
    return f"{pair.before:.3g} -> {pair.after:.3g}"


def _shapes(shapes: Sequence[Shape]) -> str:
    """Shapes for one image: ``3x32x32``; the batch is shown only where it is not simply the first size."""
    return ", ".join("x".join(str(size) for size in (shape[1:] if shape[:1] == ("N",) else shape)) for shape in shapes)
