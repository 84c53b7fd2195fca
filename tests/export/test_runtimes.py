"""Sessions: what a runtime gives for a model, and how a model that cannot be used is refused."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from tests.qdq_models import INPUT, WIDE, QdqBuilder, residual_network

from clcalib.errors import ArgumentError, CheckpointError, MissingPackageError
from clcalib.evaluate.accuracy import logits
from clcalib.export.runtimes import RUNTIMES, integer_report, read_model, session
from clcalib.export.runtimes.model_file import written

IMAGES = np.random.default_rng(0).standard_normal((4, 3, 8, 8), np.float32)
ALL = pytest.mark.parametrize("runtime", RUNTIMES)


def model(operation: str = "Relu", inputs: int = 1, opset: int = 17, kind: int = TensorProto.FLOAT) -> bytes:
    values = [helper.make_tensor_value_info(f"x{place}", kind, ["N", 3, 4, 4]) for place in range(inputs)]
    node = helper.make_node(operation, [value.name for value in values], ["y"])
    output = helper.make_tensor_value_info("y", kind, ["N", 3, 4, 4])
    graph = helper.make_graph([node], "graph", values, [output])
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)
    return bytes(made.SerializeToString())


@ALL
def test_a_batch_gives_the_outputs_by_name_and_the_same_ones_again(runtime: str, tmp_path: Path) -> None:
    (tmp_path / "net.onnx").write_bytes(residual_network())
    loaded = session(tmp_path / "net.onnx", runtime, threads=1)
    first = loaded(IMAGES)
    assert (loaded.input.name, loaded.input.shape) == (INPUT, (None, 3, 8, 8))
    assert list(first) == list(loaded.outputs)
    assert first[loaded.outputs[0]].shape == (4, 10)
    second = session(residual_network(), runtime, threads=1)(IMAGES)
    assert np.array_equal(first[loaded.outputs[0]], second[loaded.outputs[0]])


def test_both_runtimes_give_the_values_that_the_graph_stands_for() -> None:
    make = QdqBuilder((3, 2, 2))
    name = make.bytes(make.quantized(INPUT, WIDE))
    images = np.linspace(-20, 20, 24, dtype=np.float32).reshape(2, 3, 2, 2)
    expected = np.clip(np.rint(images / np.float32(WIDE)), -128, 127) * np.float32(WIDE)
    for runtime in RUNTIMES:
        outputs = next(iter(session(name, runtime)(images).values()))
        np.testing.assert_allclose(outputs, expected, atol=1e-5, err_msg=runtime)


@ALL
def test_a_wrong_batch_is_refused(runtime: str) -> None:
    loaded = session(residual_network(), runtime)
    with pytest.raises(
        ArgumentError, match="batch: expected images of shape 3 x 8 x 8 in a batch of any, got 3 x 9 x 9"
    ):
        loaded(np.zeros((2, 3, 9, 9), np.float32))
    with pytest.raises(ArgumentError, match="batch: expected an array of float32, got float64"):
        loaded(np.zeros((2, 3, 8, 8)))


@ALL
def test_a_shape_that_is_known_changes_no_output_and_is_the_only_one_then(runtime: str) -> None:
    fixed, free = (session(residual_network(), runtime, threads=1, shape=shape) for shape in ((4, 3, 8, 8), None))
    assert fixed.input.shape == (4, 3, 8, 8)
    for name, value in free(IMAGES).items():
        np.testing.assert_allclose(fixed(IMAGES)[name], value, rtol=1e-6, atol=1e-6)
    with pytest.raises(ArgumentError, match="in a batch of 4"):
        fixed(IMAGES[:2])
    with pytest.raises(ArgumentError, match="shape: expected images of shape 3 x 8 x 8"):
        session(residual_network(), runtime, shape=(4, 3, 9, 9))


@ALL
def test_a_fixed_batch_takes_any_number_of_images_as_a_network(runtime: str) -> None:
    make = QdqBuilder((64,), batch=3)
    fixed = make.bytes(make.gemm(make.image()))
    make = QdqBuilder((64,))
    free = make.bytes(make.gemm(make.image()))
    images = torch.randn(7, 64)
    outputs = logits(session(fixed, runtime).network(), images)
    assert outputs.shape == (7, 10)
    assert torch.equal(outputs, logits(session(free, runtime).network(), images, batch_size=2))
    with pytest.raises(ArgumentError, match="in a batch of 3"):
        session(fixed, runtime)(np.zeros((2, 64), np.float32))


@ALL
def test_a_network_has_one_output_and_takes_fitting_images(runtime: str) -> None:
    make = QdqBuilder((64,))
    image = make.image()
    with pytest.raises(ArgumentError, match=r"model: expected one output \(N, classes\), got outputs"):
        session(make.bytes(make.gemm(image), make.matmul(image)), runtime).network()
    network = session(residual_network(), runtime).network()
    with pytest.raises(ArgumentError, match="evaluation: expected images of shape 3 x 8 x 8, got 3 x 4 x 4"):
        network(torch.zeros(2, 3, 4, 4))


@ALL
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"hello", "model: not an ONNX file, or a damaged one"),
        (b"", "holds no graph"),
        (model()[:-20], "not an ONNX file, or a damaged one"),
        (model("Frobnicate"), "cannot load it .*Frobnicate"),
    ],
)
def test_a_damaged_or_unknown_model_is_refused(content: bytes, message: str, runtime: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        session(content, runtime)


@ALL
def test_only_one_input_of_floats_is_taken(runtime: str) -> None:
    with pytest.raises(ArgumentError, match="one input, a batch of images, got inputs x0, x1"):
        session(model("Add", inputs=2), runtime)
    with pytest.raises(ArgumentError, match="an input of float32, as images are, got double in 'x0'"):
        session(model(kind=TensorProto.DOUBLE), runtime)


def test_an_opset_that_the_runtime_lacks_is_told() -> None:
    with pytest.raises(
        CheckpointError, match="needs opset 99 .* which ONNX Runtime .* does not have; export it for a lower"
    ):
        session(model(opset=99), "onnxruntime")


def test_a_missing_file_and_an_unknown_runtime_are_told(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="model: expected the path of an ONNX file, .*there is no such file"):
        session(tmp_path / "net.onnx")
    with pytest.raises(ArgumentError, match="runtime: expected one of onnxruntime, openvino, got 'onyx'; nearest: "):
        integer_report(residual_network(), "onyx")


@pytest.mark.parametrize(("missing", "runtime"), [("onnx", "openvino"), *((name, name) for name in RUNTIMES)])
def test_a_missing_package_is_told_with_its_command(
    missing: str, runtime: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, missing, None)  # what makes an import fail
    extra = "onnxruntime" if missing == "onnx" else missing
    with pytest.raises(MissingPackageError, match=rf'{missing} is not installed.* pip install "clcalib\[{extra}\]"'):
        session(model(), runtime)


def test_external_tensors_count_for_the_size(tmp_path: Path) -> None:
    make = QdqBuilder((64,))
    proto = onnx.load_model_from_string(make.bytes(make.gemm(make.image(), out=100)))
    plain, apart = tmp_path / "plain.onnx", tmp_path / "apart.onnx"
    onnx.save(proto, plain)
    onnx.save(proto, apart, save_as_external_data=True, location="weights.bin", size_threshold=1000)
    assert (tmp_path / "weights.bin").stat().st_size >= 6400
    assert read_model(apart).size == apart.stat().st_size + (tmp_path / "weights.bin").stat().st_size
    images = np.random.default_rng(0).standard_normal((2, 64), np.float32)
    one, other = (next(iter(session(path)(images).values())) for path in (plain, apart))
    assert np.array_equal(one, other)
    assert [row.is_integer for row in integer_report(apart)] == [True]


def test_shapes_are_written_for_people() -> None:
    assert (written((None, 3)), written(())) == ("any x 3", "()")
