"""ONNX Runtime: static quantization in QDQ format, at the inputs of convolutions and of the classifier only.

The method ``default`` is what its documentation begins with, 8 bits at all operators that it knows.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import onnx
import torch
from onnxruntime import InferenceSession, SessionOptions
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

from peers.adapter import Job, Predict, Tensor, batches, main, nn

LAYERS = ["Conv", "Gemm"]
WEIGHTS = {8: QuantType.QInt8, 4: QuantType.QInt4}
ACTIVATIONS = {8: QuantType.QUInt8, 4: QuantType.QUInt4}
METHODS = {
    "default": CalibrationMethod.MinMax, "minmax": CalibrationMethod.MinMax, "entropy": CalibrationMethod.Entropy
}  # fmt: skip


class Reader(CalibrationDataReader):
    def __init__(self, images: Tensor) -> None:
        self.batches = batches(images)

    def get_next(self) -> dict | None:
        batch = next(self.batches, None)
        return None if batch is None else {"image": batch.numpy()}


def edges(path: Path) -> dict[str, list[dict]]:
    """8 bits for the weights of the first and the last layer and for what these read."""
    nodes = [node for node in onnx.load(path).graph.node if node.op_type in LAYERS]
    found = {node.input[0]: [{"quant_type": QuantType.QUInt8}] for node in (nodes[0], nodes[-1])}
    return found | {node.input[1]: [{"quant_type": QuantType.QInt8}] for node in (nodes[0], nodes[-1])}


def quantize(model: nn.Module, calibration: Tensor, job: Job) -> Predict:
    options = SessionOptions()
    options.intra_op_num_threads = 1
    with tempfile.TemporaryDirectory() as folder:
        plain, prepared, result = (Path(folder) / f"{name}.onnx" for name in ("plain", "prepared", "result"))
        batch = torch.export.Dim("batch")
        torch.onnx.export(
            model,
            (calibration[:2],),
            plain,
            input_names=["image"],
            dynamic_shapes=({0: batch},),
            opset_version=21,
            external_data=False,
            verbose=False,
        )
        quant_pre_process(plain, prepared, skip_symbolic_shape=True)
        layers_only = {
            "op_types_to_quantize": LAYERS,
            "extra_options": {
                "OpTypesToExcludeOutputQuantization": LAYERS,
                "TensorQuantOverrides": edges(prepared),
                "QuantizeBias": False,
            },
        }
        quantize_static(
            prepared,
            result,
            Reader(calibration),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            weight_type=WEIGHTS[job.weights],
            activation_type=ACTIVATIONS[job.activations],
            calibrate_method=METHODS[job.method],
            **({} if job.method == "default" else layers_only),
        )
        if job.keep:
            shutil.copyfile(result, job.keep)
        session = InferenceSession(result.read_bytes(), options, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(None, {"image": images.numpy()})[0])


if __name__ == "__main__":
    main(quantize, ("onnxruntime", "onnx"))
