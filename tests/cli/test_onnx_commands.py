"""``bench``, and ``evaluate`` of ONNX files, end to end on tiny models: what they print, and what they refuse."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tests.qdq_models import STEP, QdqBuilder, residual_network

from clcalib.cli import main
from clcalib.config_sections import ModelSection
from clcalib.evaluate.accuracy import agreement, logits, top1
from clcalib.export.runtimes import bench, peak_memory, session
from clcalib.model_source import load_model

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def models(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The workplace with a float and a quantized ONNX model, and rounds that are short."""
    monkeypatch.setattr(bench, "LEAST_SECONDS", 0.001)
    (workplace / "float.onnx").write_bytes(residual_network(is_quantized=False))
    (workplace / "quantized.onnx").write_bytes(residual_network())
    return workplace


def cells(printed: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.split("│")] for line in printed.splitlines()]


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_bench_prints_ratios_sizes_and_kernels(runtime: str, models: Path, capsys: Capture) -> None:
    arguments = ["bench", "float.onnx", "quantized.onnx", "--runtime", runtime, "--batch", "2", "--threads", "1"]
    assert main([*arguments, "--rounds", "3"]) == 0
    printed = capsys.readouterr()
    found = cells(printed.out)
    row = next(row for row in found if row[:2] == ["2", "1"])
    assert row[4].endswith("x")
    assert float(row[4][:-1]) > 0
    assert [row[0] for row in found if row[0].startswith("file")] == ["file"]
    text = " ".join(printed.out.split())
    assert "computes 3 of 3 layers with weights in integers" in text
    assert "In float, and why" not in printed.out
    assert max(len(line) for line in printed.out.splitlines()) <= 80
    assert printed.err == ""


def test_bench_tells_what_stayed_in_float(models: Path, capsys: Capture) -> None:
    make = QdqBuilder((3, 8, 8))
    output = make.add("HardSwish", make.conv(make.quantized("image", STEP), channels=3))
    (models / "slow.onnx").write_bytes(make.bytes(output))
    assert main(["bench", "float.onnx", "slow.onnx", "--batch", "1", "--threads", "1", "--rounds", "1"]) == 0
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "0 of 1 layers with weights in integers" in text
    assert "quantize in front" in text


def test_bench_as_json_has_everything(models: Path, capsys: Capture) -> None:
    assert main(["bench", "float.onnx", "quantized.onnx", "--batch", "1", "--threads", "1", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["rounds"] == bench.ROUNDS
    assert result["counts"] == {
        "integer_layers": 3, "float_layers": 0, "integer_operations": 5, "float_operations": 0
    }  # fmt: skip
    assert [row["kernel"] for row in result["layers"] if row["has_weights"]] == ["QLinearConv", "QLinearConv", "QGemm"]
    assert result["timings"][0]["lower"] <= result["timings"][0]["speedup"]
    for name in ("float", "quantized"):
        size, path = result[f"{name}_size"], models / f"{name}.onnx"
        assert (result[f"{name}_model"], size["file"]) == (f"{name}.onnx", path.stat().st_size)
        if size["peak"] is not None:  # told on Linux
            assert 0 < size["runtime"] <= size["peak"]
        assert all(timing[f"{name}_ms"] > 0 for timing in result["timings"])


def test_bench_measures_batches_of_1_and_64_on_1_and_2_threads_where_nothing_is_said(
    models: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peak_memory, "measure", lambda *arguments: None)
    assert main(["bench", "float.onnx", "quantized.onnx", "--rounds", "1", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert {(row["batch"], row["threads"]) for row in result["timings"]} == {(1, 1), (64, 1), (1, 2), (64, 2)}
    assert len(result["timings"]) == 4


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_evaluate_takes_an_onnx_file(runtime: str, models: Path, capsys: Capture) -> None:
    arguments = ["evaluate", "quantized.onnx", "--evaluation", "evaluation.safetensors", "--runtime", runtime]
    assert main([*arguments, "--threads", "1"]) == 0
    content = load_file("evaluation.safetensors")
    outputs = next(iter(session("quantized.onnx", runtime, threads=1)(content["images"].numpy()).values()))
    expected = top1(torch.from_numpy(np.array(outputs)), content["labels"])
    printed = capsys.readouterr().out
    assert ["quantized.onnx", f"{100 * expected:.2f}", "-"] in cells(printed)
    assert "20 evaluation images" in printed
    assert "quantized.onnx ran in " in printed


def test_evaluate_compares_an_onnx_file_with_the_float_network(models: Path, capsys: Capture) -> None:
    arguments = ["evaluate", "quantized.onnx", "--evaluation", "evaluation.safetensors"]
    assert main([*arguments, "--model", "net.py:build", "--weights", "net.safetensors"]) == 0
    found = cells(capsys.readouterr().out)
    content = load_file("evaluation.safetensors")
    model = _network(models)
    outputs = logits(session("quantized.onnx").network(), content["images"])
    floats = logits(model, content["images"])
    assert ["float", f"{100 * top1(floats, content['labels']):.2f}", "-"] in found
    accuracy, same = top1(outputs, content["labels"]), agreement(outputs, floats)
    assert ["quantized.onnx", f"{100 * accuracy:.2f}", f"{100 * same:.2f}"] in found


def _network(folder: Path) -> torch.nn.Module:
    return load_model(ModelSection(entry=f"{folder}/net.py:build", weights=folder / "net.safetensors"))


def test_evaluate_reads_the_configuration_of_the_run_beside_the_file(models: Path, capsys: Capture) -> None:
    assert main(["quantize", "run.toml", "--recipe", "nearest", "--out", "out", "--quiet"]) == 0
    (models / "quantized.onnx").rename(models / "out" / "quantized.onnx")
    capsys.readouterr()
    assert main(["evaluate", "out/quantized.onnx"]) == 0
    names = [row[0] for row in cells(capsys.readouterr().out)]
    assert names.index("float") < names.index("quantized.onnx")


def test_a_configuration_of_another_program_beside_the_file_is_not_read(models: Path, capsys: Capture) -> None:
    (models / "config.json").write_text('{"architectures": ["ResNet"]}')
    assert main(["evaluate", "quantized.onnx", "--evaluation", "evaluation.safetensors"]) == 0
    assert "quantized.onnx" in capsys.readouterr().out


def test_a_run_and_files_of_anyone_share_one_table(models: Path, capsys: Capture) -> None:
    arguments = ["quantize", "run.toml", "--recipe", "nearest", "--bits", "W8A8", "--target", "onnxruntime"]
    assert main([*arguments, "--out", "out", "--quiet"]) == 0
    capsys.readouterr()
    together = ["evaluate", "quantized.onnx", "out", "out/model.onnx", "--threads", "1"]
    assert main(together) == 0
    printed = capsys.readouterr().out
    assert "20 evaluation images; agreement with float" in printed
    assert max(len(line) for line in printed.splitlines()) <= 80
    assert main([*together, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["model"] for row in rows] == ["float", "quantized.onnx", "out", "out/model.onnx"]
    content = load_file("evaluation.safetensors")
    floats, labels = logits(_network(models), content["images"]), content["labels"]
    theirs = logits(session("quantized.onnx").network(), content["images"])
    assert (rows[0]["top1"], rows[0]["agreement"]) == (top1(floats, labels), None)
    assert (rows[1]["top1"], rows[1]["agreement"]) == (top1(theirs, labels), agreement(theirs, floats))
    assert (rows[2]["top1"], rows[2]["agreement"]) == (rows[3]["top1"], rows[3]["agreement"])
    assert rows[2]["computed_by"].startswith("simulation")
    assert rows[3]["computed_by"].startswith("ONNX Runtime")
    assert [(row["integer_layers"], row["float_layers"]) for row in rows] == [
        (None, None),
        (3, 0),
        (None, None),
        (3, 0),
    ]
    assert rows[3]["file_bytes"] == Path("out/model.onnx").stat().st_size
    assert {row["images"] for row in rows} == {20}


def test_without_a_float_network_the_first_model_is_the_reference(models: Path, capsys: Capture) -> None:
    arguments = ["evaluate", "float.onnx", "quantized.onnx", "--evaluation", "evaluation.safetensors", "--json"]
    assert main(arguments) == 0
    first, second = json.loads(capsys.readouterr().out)
    images = load_file("evaluation.safetensors")["images"]
    outputs = [logits(session(name).network(), images) for name in ("float.onnx", "quantized.onnx")]
    assert (first["agreement"], second["agreement"]) == (None, agreement(outputs[1], outputs[0]))
    assert (first["integer_layers"], first["float_layers"]) == (0, 3)


def test_one_file_as_json_has_the_row_of_the_table(models: Path, capsys: Capture) -> None:
    assert main(["evaluate", "quantized.onnx", "--evaluation", "evaluation.safetensors", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    content = load_file("evaluation.safetensors")
    outputs = logits(session("quantized.onnx").network(), content["images"])
    assert (row["model"], row["images"], row["top1"]) == ("quantized.onnx", 20, top1(outputs, content["labels"]))
    assert (row["integer_layers"], row["float_layers"]) == (3, 0)
    assert row["file_bytes"] == Path("quantized.onnx").stat().st_size


def test_models_of_runs_on_different_images_need_images_for_all(models: Path, capsys: Capture) -> None:
    assert main(["quantize", "run.toml", "--recipe", "nearest", "--quiet", "--out", "a"]) == 0
    shutil.copytree("a", "b")
    config = json.loads(Path("b/config.json").read_text())
    config["data"]["evaluation_count"] = 10
    Path("b/config.json").write_text(json.dumps(config))
    capsys.readouterr()
    assert main(["evaluate", "a", "b"]) == 2
    assert "data.evaluation_count: expected the same images for all models" in capsys.readouterr().err
    assert main(["evaluate", "a", "b", "--set", "data.evaluation_count=10", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [(row["model"], row["images"]) for row in rows] == [("float", 10), ("a", 10), ("b", 10)]
    assert rows[1]["agreement"] == rows[2]["agreement"]


def write_others(folder: Path) -> None:
    """ONNX files that are wrong in some way."""
    (folder / "text.onnx").write_text("hello")
    (folder / "half.onnx").write_bytes((folder / "float.onnx").read_bytes()[:-20])
    make = QdqBuilder((3, 4, 4))
    (folder / "small.onnx").write_bytes(make.bytes(make.conv(make.image(), channels=3)))
    make = QdqBuilder((3, 8, 8))
    (folder / "maps.onnx").write_bytes(make.bytes(make.conv(make.image(), channels=3)))


EVALUATION = ("--evaluation", "evaluation.safetensors")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["evaluate", "text.onnx", *EVALUATION], "text.onnx: not an ONNX file, or a damaged one"),
        (["evaluate", "half.onnx", *EVALUATION], "half.onnx: not an ONNX file, or a damaged one"),
        (["evaluate", "net.py", *EVALUATION], "net.py: not an ONNX file"),
        (["evaluate", "nowhere.onnx", *EVALUATION], "there is no such file"),
        (["evaluate", "small.onnx", *EVALUATION], "expected images of shape 3 x 4 x 4, got 3 x 8 x 8"),
        (["evaluate", "maps.onnx", *EVALUATION], "expected a network with output (N, classes)"),
        (["evaluate", "float.onnx"], "--evaluation: expected the path"),
        (["evaluate", "float.onnx", *EVALUATION, "--runtime", "onyx"], "--runtime: expected one of onnxruntime"),
        (["evaluate", "float.onnx", *EVALUATION, "--weights", "net.safetensors"], "model.entry: missing"),
        (["evaluate", ".", "--runtime", "openvino"], "--runtime: expected an ONNX file"),
        (["evaluate"], "Missing argument"),
        (["evaluate", "float.onnx", "half.onnx", *EVALUATION], "half.onnx: not an ONNX file, or a damaged one"),
        (["evaluate", "float.onnx", "small.onnx", *EVALUATION], "expected images of shape 3 x 4 x 4, got 3 x 8 x 8"),
        (["evaluate", "float.onnx", "quantized.onnx"], "--evaluation: expected the path"),
        (["evaluate", "float.onnx", "nowhere"], "expected the output folder of a run"),
        (["bench", "float.onnx", "nowhere.onnx"], "there is no such file"),
        (["bench", "float.onnx", "half.onnx"], "half.onnx: not an ONNX file, or a damaged one"),
        (["bench", "float.onnx", "small.onnx"], "quantized_model: expected an input of 3 x 8 x 8"),
        (["bench", "float.onnx", "quantized.onnx", "--batch", "0"], "batches: expected whole numbers above 0"),
        (["bench", "float.onnx", "quantized.onnx", "--shape", "x"], "--shape: expected the shape of one image"),
        (["bench", "float.onnx", "quantized.onnx", "--runtime", "ort"], "runtime: expected one of"),
        (["bench", "float.onnx"], "Missing argument"),
    ],
)
def test_bad_input_is_one_message(arguments: list[str], message: str, models: Path, capsys: Capture) -> None:
    write_others(models)
    assert main(arguments) == 2
    printed = capsys.readouterr()
    assert message in printed.err
    assert printed.err.count("error: ") == 1
    assert "Traceback" not in printed.err
    assert printed.out == ""


@pytest.mark.parametrize("missing", ["onnxruntime", "openvino"])
@pytest.mark.parametrize(
    "command", [["evaluate", "float.onnx", *EVALUATION], ["bench", "float.onnx", "quantized.onnx"]]
)
def test_a_missing_runtime_is_told_with_the_command_that_brings_it(
    command: list[str], missing: str, models: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    assert main([*command, "--runtime", missing]) == 2
    assert f'pip install "clcalib[{missing}]"' in capsys.readouterr().err


def test_help_of_bench_teaches(capsys: Capture) -> None:
    assert main(["bench", "--help"]) == 0
    printed = capsys.readouterr().out
    assert "Usage: clcalib bench" in printed
    assert "Examples" in printed
