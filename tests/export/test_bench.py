"""The comparison of a float and a quantized model: what it measures, and what it refuses."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from pathlib import Path

import pytest
from tests.qdq_models import QdqBuilder, residual_network

from clcalib.errors import ArgumentError
from clcalib.export.runtimes import RUNTIMES, LayerCounts, bench, peak_memory
from clcalib.export.runtimes.session import Array, Session


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """The two forms of a network, and rounds that are short."""
    monkeypatch.setattr(bench, "LEAST_SECONDS", 0.001)
    paths = tmp_path / "float.onnx", tmp_path / "quantized.onnx"
    for path, is_quantized in zip(paths, (False, True), strict=True):
        path.write_bytes(residual_network(is_quantized=is_quantized))
    return paths


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_all_is_measured_and_can_be_written(runtime: str, models: tuple[Path, Path]) -> None:
    told: list[tuple[int, int, str]] = []
    result = bench.bench(
        *models, runtime, batches=(1, 3), threads=(1, 2), rounds=3, progress=lambda *place: told.append(place)
    )
    assert [(row.batch, row.threads) for row in result.timings] == [(1, 1), (3, 1), (1, 2), (3, 2)]
    for row in result.timings:
        assert 0 < row.lower <= row.speedup <= row.upper
        assert row.float_ms > 0
        assert row.quantized_ms > 0
        assert row.cpu_speedup > 0
    assert (result.input_shape, result.version) == ((3, 8, 8), RUNTIMES[runtime].version())
    assert result.float_size.file == models[0].stat().st_size
    assert LayerCounts.of(result.layers).integer_layers == 3
    assert told[0] == (0, 6, "batch 1, 1 thread")
    assert told[-1] == (6, 6, "done")
    assert json.loads(json.dumps(dataclasses.asdict(result)))["timings"][1]["batch"] == 3


def test_a_slower_model_has_the_ratio_of_its_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(bench.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(bench.time, "process_time", lambda: 2 * now[0])

    class Engine:
        def session(self, seconds: float, threads: int, shape: tuple[int, ...]) -> Session:
            assert shape == (5, 3)

            def execute(batch: Array) -> list[Array]:
                now[0] += seconds
                return [batch]

            return Session(None, ("y",), execute)  # type: ignore[arg-type]

    row = bench._time(Engine(), (0.030, 0.010), (5, 3), 1, 4)  # type: ignore[arg-type]
    assert (row.batch, row.threads) == (5, 1)
    for value, expected in ((row.speedup, 3), (row.cpu_speedup, 3), (row.float_ms, 30), (row.quantized_ms, 10)):
        assert value == pytest.approx(expected)


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="only Linux tells the peak of a process")
@pytest.mark.parametrize("runtime", RUNTIMES)
def test_peak_memory_is_that_of_a_process_with_the_model_alone(runtime: str, models: tuple[Path, Path]) -> None:
    small, large = (peak_memory.measure(runtime, models[0], (batch, 3, 8, 8)) for batch in (1, 20_000))
    assert small is not None
    assert large is not None
    assert 1e6 < small[0] <= small[1] < 1e9
    assert large[1] - small[1] > 20_000 * 8 * 8 * 8 * 4  # an activation of 8 channels, at the least


def test_where_a_process_fails_there_is_no_peak(tmp_path: Path) -> None:
    assert peak_memory.measure("onnxruntime", tmp_path / "nothing.onnx", (1, 3, 8, 8)) is None


def test_the_process_of_the_peak_imports_nothing_of_the_package(
    models: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    peak_memory.main(["onnxruntime", str(models[0]), "1", "3", "8", "8"])
    alone, peak = json.loads(capsys.readouterr().out)
    assert peak >= alone
    source = Path(peak_memory.__file__).read_text()
    assert "import torch" not in source
    assert "from clcalib" not in source
    assert peak_memory.__file__ != sys.argv[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batches": (0,)}, "batches: expected whole numbers above 0"),
        ({"threads": ()}, "threads: expected whole numbers above 0"),
        ({"rounds": 0}, "rounds: expected whole numbers above 0"),
        ({"shape": (3, 4, 4)}, "shape: expected images of shape 3 x 8 x 8, got 3 x 4 x 4"),
        ({"runtime": "tflite"}, "runtime: expected one of"),
    ],
)
def test_wrong_arguments_are_refused(arguments: dict[str, object], message: str, models: tuple[Path, Path]) -> None:
    with pytest.raises(ArgumentError, match=message):
        bench.bench(*models, **arguments)  # type: ignore[arg-type]


def test_models_of_other_inputs_are_refused(models: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "other.onnx").write_bytes(residual_network(size=4))
    with pytest.raises(ArgumentError, match="quantized_model: expected an input of 3 x 8 x 8, as .*, got 3 x 4 x 4"):
        bench.bench(models[0], tmp_path / "other.onnx")
    make = QdqBuilder((64,), batch=2)
    (tmp_path / "fixed.onnx").write_bytes(make.bytes(make.gemm(make.image())))
    with pytest.raises(
        ArgumentError, match="batches: expected images of shape 64 in a batch of 2, got 64 in a batch of 1"
    ):
        bench.bench(tmp_path / "fixed.onnx", tmp_path / "fixed.onnx")
    make = QdqBuilder((3, "height", "width"))  # type: ignore[arg-type]
    (tmp_path / "free.onnx").write_bytes(make.bytes(make.conv(make.image(), channels=3)))
    with pytest.raises(ArgumentError, match="shape: expected the shape of one image.*the model takes 3 x any x any"):
        bench.bench(tmp_path / "free.onnx", tmp_path / "free.onnx")
