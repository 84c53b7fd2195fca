"""What the tables about a runtime say, and that they fit a terminal."""

from __future__ import annotations

import pytest
from rich.console import Console

from clcalib.export.runtimes import LayerReport
from clcalib.export.runtimes.bench import Bench, Size, Timing
from clcalib.report.runtime_tables import float_table, kernels_text, size_table, speed_table

LAYERS = (
    LayerReport("pad", "Pad", "Pad", False, False, "there is no integer kernel for Pad"),
    *(LayerReport(f"layer{place}.conv", "Conv", "Conv", False, True, "output is not quantized") for place in range(5)),
    LayerReport("relu", "Relu", "", False, False),
    LayerReport("fc[0]", "Gemm", "QGemm", True, True),
)


def result(peak: int | None = 70_000_000) -> Bench:
    return Bench(
        runtime="onnxruntime",
        version="1.32.0",
        machine="x86_64, 2 cores",
        float_model="float.onnx",
        quantized_model="quantized.onnx",
        input_shape=(3, 224, 224),
        rounds=11,
        timings=(Timing(1, 1, 2.1456, 1.02, 2.0934, 1.4, 12.65, 2.02), Timing(64, 2, 11234.0, 5490, 2.1, 1.9, 2.3, 2)),
        float_size=Size(1_090_000, peak, None if peak is None else 50_000_000),
        quantized_size=Size(330_000, peak, None if peak is None else 60_000_000),
        layers=LAYERS,
    )


@pytest.fixture
def console() -> Console:
    return Console(width=80, record=True, color_system=None)


def rows(console: Console) -> list[list[str]]:
    lines = console.export_text().splitlines()
    assert max(len(line) for line in lines) <= 80
    return [[cell.strip() for cell in line.split("│")] for line in lines]


def test_speed_tells_ratios_with_their_range(console: Console) -> None:
    console.print(speed_table(result()))
    found = rows(console)
    assert found[0] == ["Milliseconds of a call with images 3x224x224: medians of 11 rounds"]
    assert ["1", "1", "2.15", "1.02", "2.09x", "1.40 to 12.65", "2.02x"] in found
    assert ["64", "2", "11,234", "5,490", "2.10x", "1.90 to 2.30", "2.00x"] in found


def test_size_tells_what_the_model_itself_takes(console: Console) -> None:
    console.print(size_table(result()))
    found = rows(console)
    assert ["file", "1.09MB", "330kB", "3.30x"] in found
    assert ["peak memory of a process", "70.0MB", "70.0MB", "1.00x"] in found
    assert ["of it, the model", "20.0MB", "10.0MB", "2.00x"] in found


def test_a_peak_that_is_not_told_is_a_dash(console: Console) -> None:
    console.print(size_table(result(peak=None)))
    found = rows(console)
    assert ["peak memory of a process", "-", "-", "-"] in found
    assert not any("of it" in row[0] for row in found)


def test_equal_reasons_share_a_line_and_layers_with_weights_come_first(console: Console) -> None:
    console.print(float_table(LAYERS))
    found = rows(console)
    places = [row[0] for row in found if row[0] in ("Conv (5)", "Pad")]
    assert places == ["Conv (5)", "Pad"]
    text = " ".join(cell for row in found for cell in row)
    assert "layer0.conv, layer1.conv" in text
    assert "and 2 more" in text
    assert "relu" not in text


def test_a_line_counts_kernels(console: Console) -> None:
    console.print(kernels_text(LAYERS, "onnxruntime", "1.32.0"))
    text = " ".join(console.export_text().split())
    assert text == ("ONNX Runtime 1.32.0 computes 1 of 6 layers with weights in integers, and 0 of 1 other operations.")
