"""Tables say what the records say, on 80 columns."""

from __future__ import annotations

import dataclasses
import io
from typing import Any

import pytest
from rich.console import Console
from rich.table import Table

from clcalib.quant.policy import Bits, build_policy
from clcalib.report.formats import duration, percent
from clcalib.report.record import (
    BeforeAfter,
    BudgetRecord,
    LayerRecord,
    OnImages,
    RunRecord,
    SignalToNoise,
    UnitRecord,
    UnitWidths,
)
from clcalib.report.tables import accuracy_table, bits_name, policy_table, summary_table, unit_table


def record(**changes: Any) -> RunRecord:
    values: dict[str, Any] = {
        "float_top1": 0.925,
        "nearest_top1": 0.1,
        "quantized_top1": 0.75,
        "agreement": 0.8,
        "weight_bits": 2,
        "activation_bits": 2,
        "setting": "qdrop",
        "recipe": "qdrop",
        "seed": 0,
        "steps_per_unit": 500,
        "seconds": 75.0,
        "peak_memory_bytes": 1,
        "calibration_images": 8,
        "device": "cpu",
        "threads": 1,
        "model_digest": "",
        "calibration_digest": "",
    }
    return RunRecord(**{**values, **changes})


def unit(name: str) -> UnitRecord:
    pair = BeforeAfter(before=1234.5678, after=0.00012345)
    return UnitRecord(
        name=name,
        kind="block",
        reconstruction_error=OnImages(calibration=pair, held_out=pair),
        mutual_information_bound=OnImages(calibration=BeforeAfter(before=-0.5, after=4.75)),
    )


def shown(table: Table, width: int = 80) -> str:
    console = Console(file=io.StringIO(), width=width, color_system=None)
    console.print(table)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert max(len(line) for line in text.splitlines()) <= width
    return str(text)


def test_the_summary_has_float_once_and_nearest_once_a_width() -> None:
    contrastive = record(recipe="qdrop+contrastive", contrastive={"weight": 1.0}, quantized_top1=0.77)
    text = shown(summary_table([record(), contrastive, record(weight_bits=4, activation_bits=4, nearest_top1=0.88)]))
    lines = [line.split() for line in text.splitlines()]
    assert [line[0] for line in lines].count("float") == 1
    assert [line[:2] for line in lines if line[:1] == ["nearest"]] == [["nearest", "│"]] * 2
    assert "qdrop + CL" in text
    assert "77.00" in text
    assert "88.00" in text
    assert "1 min 15 s" in text


def test_the_summary_says_how_many_layers_have_other_widths() -> None:
    def layer(name: str, weight: int | None, read: int | None, reason: str = "") -> LayerRecord:
        return LayerRecord(name=name, kind="conv2d", weight_bits=weight, input_bits=read, reason=reason)

    policy = (
        layer("a", 8, None, "first layer"),
        layer("b", 2, 2),
        layer("c", 2, 2, "override *"),
        layer("d", 4, 8, "override d"),
    )
    assert bits_name(record(policy=policy)) == "W2A2, 1 layer otherwise"
    more = (*policy, layer("e", None, None, "override e"), layer("f", 4, 4, "raised for accuracy"))
    assert bits_name(record(policy=more)) == "W2A2, 3 layers otherwise"
    text = shown(summary_table([record(policy=more), record()]))
    assert " ".join(text.split()).count("otherwise") == 2  # nearest rounding, and the method
    assert bits_name(record(policy=policy[:3])) == "W2A2"


def test_the_widths_that_a_budget_chose_are_a_mean_and_a_range() -> None:
    def chosen(*pairs: str | None) -> str:
        units = tuple(
            UnitWidths(name=f"unit{at}", layers=(), widths=pair, bytes=1, sensitivities={pair or "W8A6": 0.0})
            for at, pair in enumerate(pairs)
        )
        found = BudgetRecord(
            size_budget=None, cost_budget=0.5, size=1, cost=0.5, smallest_size=1, smallest_cost=0.1,
            mean_weight_bits=3.21, per="unit", measure="divergence", images=8, sensitivity=0.0, is_optimal=True,
            gap=0.0, units=units,
        )  # fmt: skip
        return bits_name(record(activation_bits=6, budget=found))

    assert chosen("W3A6", None, "W4A6") == "W3.2A6"
    assert chosen("W3A8", None, "W4A2", "W2A4") == "W3.2A2-8"
    assert chosen(None) == "W3.2A6"


def test_the_summary_of_nearest_alone_does_not_show_it_twice() -> None:
    text = shown(summary_table([record(recipe="nearest", steps_per_unit=0, quantized_top1=0.1)]))
    assert text.count("nearest") == 1


def test_the_summary_without_labels_has_dashes() -> None:
    text = shown(summary_table([record(float_top1=None, nearest_top1=None, quantized_top1=None, agreement=None)]))
    assert "None" not in text
    assert "float" not in text
    assert "qdrop" in text


def test_no_number_of_the_unit_table_is_cut_on_80_columns() -> None:
    long_name = "features.stage3.blocks.12.inverted_residual"
    text = shown(unit_table(record(units=(unit("layer1.0"), unit(long_name)))))
    assert (text.count("1.23e+03"), text.count("0.000123"), text.count("-0.50")) == (4, 4, 2)
    assert "…" not in text


def test_names_and_pairs_of_a_usual_run_stay_in_one_piece_on_80_columns() -> None:
    own = OnImages(calibration=BeforeAfter(before=0.188, after=0.155), held_out=BeforeAfter(before=0.179, after=0.145))
    bound = OnImages(calibration=BeforeAfter(before=0.7, after=0.7))
    whole = unit("layer1.0").model_copy(
        update={
            "reconstruction_error": own, "mutual_information_bound": bound, "mutual_information_gap":
            BeforeAfter(before=0.17, after=0.17), "sqnr_db": SignalToNoise(calibration=22.4),
        }
    )  # fmt: skip
    (line,) = (line for line in shown(unit_table(record(units=(whole,)))).splitlines() if "layer1.0" in line)
    assert [cell.strip() for cell in line.split("│")] == [
        "layer1.0", "0.188 -> 0.155", "0.179 -> 0.145", "0.70 -> 0.70", "+0.17", "22.4",
    ]  # fmt: skip


def test_a_name_that_looks_like_markup_is_shown_as_it_is() -> None:
    assert "[red]x" in shown(unit_table(record(units=(unit("[red]x"),))), 120)


def test_the_policy_table_shows_every_layer() -> None:
    rows = build_policy(["conv1", "layer1.0.conv1", "fc"], Bits(weights=2, activations=4))
    lines = shown(policy_table(rows)).splitlines()
    assert [line.split()[0] for line in lines[3:]] == ["conv1", "layer1.0.conv1", "fc"]
    assert lines[3].split("│")[1:3] == lines[3].split("│")[1:3]
    assert [cell.strip() for cell in lines[4].split("│")[1:3]] == ["2", "4"]
    assert [cell.strip() for cell in lines[5].split("│")[1:3]] == ["8", "8"]
    assert "float" in lines[3]


def test_the_policy_table_shows_both_factors_of_a_product_and_their_grids() -> None:
    *_, row = build_policy(["conv"], Bits(2, 4), products=["attn.matmul2"])
    assert row.input is not None
    shares = dataclasses.replace(row, input=row.input.on("log2"))
    lines = shown(policy_table([row, shares])).splitlines()
    assert [[cell.strip() for cell in line.split("│")[1:4]] for line in lines[3:]] == [
        ["product", "float", "4, 4"],
        ["product", "float", "4 log2, 4"],
    ]


def test_the_accuracy_table_shows_what_is_known() -> None:
    text = shown(accuracy_table([("float", 0.9, None), ("quantized", None, 0.5)], 2000))
    assert "2,000 evaluation images" in text
    assert "90.00" in text
    assert "50.00" in text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.04, "0.0 s"),
        (9.94, "9.9 s"),
        (9.96, "10 s"),
        (59.6, "1 min 00 s"),
        (185.4, "3 min 05 s"),
        (7620, "2 h 07 min"),
    ],
)
def test_durations_read_like_a_person_writes_them(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_percentages() -> None:
    assert (percent(0.91234), percent(1.0), percent(None)) == ("91.23", "100.00", "-")
