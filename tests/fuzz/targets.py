"""Every reader of files that come from anywhere, as a function of the bytes of one file.

A target writes the bytes into a folder and reads them as the package does.  It returns what came of it, or the error
of clcalib; anything else that is raised is a defect.
"""

from __future__ import annotations

import functools
import hashlib
import io
import json
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save as save_tensors
from torch import nn

import clcalib
from clcalib.config import build
from clcalib.config_sections import EvaluationConfig, RunConfig
from clcalib.config_sources import read_toml, saved_config
from clcalib.data.decode import read_image
from clcalib.data.sources import load_evaluation
from clcalib.data.transform import Transform
from clcalib.durable.manifest import read_manifest
from clcalib.durable.payload import Payload
from clcalib.durable.state import RunState
from clcalib.errors import ClcalibError
from clcalib.export.checkpoint import load_chain
from clcalib.export.runtimes import read_model
from clcalib.export.runtimes.runtime import RUNTIMES, integer_report
from clcalib.model_source import load_weights
from clcalib.report.evidence import write_evidence
from clcalib.report.page.render import write_report
from clcalib.report.record import read_record
from clcalib.report.trace import read_trace
from tests.qdq_models import QdqBuilder

TRANSFORM = Transform(resize=8, crop=8)
TOML = """
[model]
entry = "net.py:build"
weights = "net.safetensors"
arguments = {width = 4, names = ["a", "b"]}
[data]
calibration = "images"
count = 32
mean = [0.5, 0.5, 0.5]
standard_deviation = [0.25, 0.25, 0.25]
resize = 8
crop = 8
[quantization]
weights = 4
overrides = {"layer4.*" = "W4A8", "@depthwise" = {weights = 8}}
[recipe]
name = "qdrop"
steps = 12
[contrastive]
temperature = 0.1
[run]
out = "out"
memory_budget = "2 GB"
"""


@dataclass(frozen=True)
class Target:
    """One reader.

    Attributes:
        file: the name that the bytes get.
        read: reads the file at a path.
        seeds: sound files to begin with.
        folder: makes what has to lie beside the file.
    """

    file: str
    read: Callable[[Path], object]
    seeds: Callable[[], list[bytes]]
    folder: Callable[[Path], None] = lambda folder: None

    def attack(self, data: bytes, folder: Path) -> str:
        """Read the bytes in ``folder``; returns "read", or the text of the error of clcalib, which names the place.

        Raises:
            Exception: anything that is not an error of clcalib, or one without the path: a defect.
        """
        path = folder / self.file
        path.write_bytes(data)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                self.read(path)
        except ClcalibError as error:
            if str(folder) not in str(error):
                raise AssertionError(f"the error names no path: {error!r}") from error
            return str(error)
        return "read"

    def fuzz(self, data: bytes) -> None:
        """The same in a folder of its own, for a fuzzer."""
        self.attack(data, _own_folder(self))


@functools.cache
def _own_folder(target: Target) -> Path:
    folder = Path(tempfile.mkdtemp(prefix="clcalib-fuzz-"))
    target.folder(folder)
    return folder


def network() -> nn.Sequential:
    """What the weights are for, and what is quantized."""
    layers = nn.Sequential(nn.Flatten(), nn.Linear(12, 4), nn.ReLU(), nn.Linear(4, 2)).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in layers.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return layers


def torch_saved(content: object, *, is_legacy: bool = False) -> bytes:
    """The bytes of ``torch.save``."""
    stream = io.BytesIO()
    torch.save(content, stream, _use_new_zipfile_serialization=not is_legacy)
    return stream.getvalue()


def _checkpoints(is_legacy: bool) -> list[bytes]:
    state = network().state_dict()
    whole = {"epoch": 3, "state_dict": {f"module.{name}": tensor for name, tensor in state.items()}, "best": [0.5]}
    return [torch_saved(content, is_legacy=is_legacy) for content in (state, whole)]


def _images(kind: str, **options: object) -> Callable[[], list[bytes]]:
    def make() -> list[bytes]:
        generator = np.random.default_rng(0)
        contents = []
        modes = {"JPEG": ("RGB", "L", "CMYK"), "PNG": ("RGB", "RGBA", "P", "I;16"), "WEBP": ("RGB", "RGBA")}
        for mode in modes.get(kind, ("RGB", "L", "P")):
            image = Image.fromarray(generator.integers(0, 256, (12, 10, 3), dtype=np.uint8))
            image = Image.fromarray(np.arange(80, dtype=np.uint16).reshape(8, 10)) if mode == "I;16" else image
            exif = Image.Exif()
            exif[0x0112], exif[0x010F] = 6, "camera"
            stream = io.BytesIO()
            noted = {} if kind == "BMP" else {"exif": exif}
            (image if mode == "I;16" else image.convert(mode)).save(stream, kind, **noted, **options)
            contents.append(stream.getvalue())
        return contents

    return make


def _onnx_models() -> list[bytes]:
    contents = []
    for is_quantized in (False, True):
        make = QdqBuilder((3, 8, 8))
        tensor = make.quantized(make.image()) if is_quantized else make.image()
        contents.append(make.bytes(make.conv(tensor, channels=3)))
    return contents


def _run_onnx(path: Path, runtime: str = "onnxruntime") -> None:
    model = read_model(path)
    session = RUNTIMES[runtime].session(model, 1)
    shape = [size or 1 for size in session.input.shape]
    if np.prod(shape, dtype=float) < 1e6:
        session(np.zeros(shape, np.float32))
    integer_report(path, runtime)


def _read_run_config(path: Path) -> None:
    build(RunConfig, read_toml(path), str(path))


def _toml_folder(folder: Path) -> None:
    (folder / "net.py").write_text("def build():\n    raise RuntimeError('a configuration alone runs nothing')\n")
    (folder / "images").mkdir()
    (folder / "net.safetensors").write_bytes(save_tensors(network().state_dict()))


@functools.cache
def _saved_files() -> dict[str, bytes]:
    images = clcalib.CalibrationSet.from_tensor(torch.randn(64, 3, 2, 2, generator=torch.Generator().manual_seed(1)))
    recipe, bits = clcalib.recipes.nearest(), clcalib.Bits(4, 8)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = clcalib.quantize(network(), images, recipe=recipe, bits=bits)
        result.save(Path(folder))
        write_evidence(result.evidence(images), Path(folder) / "report.json")
        files = {path.name: path.read_bytes() for path in Path(folder).iterdir()}
    config = {"model": {"entry": "torch.nn:Flatten", "weights": None}, "data": {"resize": 8}, "run": {"device": "cpu"}}
    return {**files, "config.json": json.dumps(config, indent=2).encode()}


def _saved_folder(folder: Path) -> None:
    for name, content in _saved_files().items():
        (folder / name).write_bytes(content)
    (folder / "net.py").write_text("def build():\n    raise RuntimeError('a configuration alone runs nothing')\n")


def _seed_of(name: str) -> Callable[[], list[bytes]]:
    return lambda: [_saved_files()[name]]


def _load_tensors(path: Path) -> None:
    """The tensors of a saved network, with their digest in ``model.json`` made to fit, so that they are looked at."""
    description = json.loads(_saved_files()["model.json"])
    description["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
    (path.parent / "model.json").write_text(json.dumps(description))
    load_chain(path.parent, network())


def _load_config(path: Path) -> None:
    build(EvaluationConfig, saved_config(path.parent), str(path))


def _pixels() -> list[bytes]:
    labels = torch.tensor([0, 1, 1])
    return [save_tensors({"images": torch.zeros(3, 3, 8, 8, dtype=kind), "labels": labels})
            for kind in (torch.float32, torch.uint8)]  # fmt: skip


def _arrays() -> list[bytes]:
    contents = []
    for kind, save in ((np.uint8, np.savez), (np.float32, np.savez_compressed)):
        stream = io.BytesIO()
        save(stream, images=np.arange(3 * 192).reshape(3, 3, 8, 8).astype(kind), labels=np.array([0, 1, 1]))
        contents.append(stream.getvalue())
    return contents


def _lists() -> list[bytes]:
    return [b"# images\na.png, 3\nb.png\t1\n", b"a.png\r\n\r\nb.png\r\n"]


def _list_folder(folder: Path) -> None:
    for name in ("a.png", "b.png"):
        Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(folder / name)


def _sheets() -> list[bytes]:
    content = {"tile": [4, 4], "columns": 2, "count": 4, "labels": [0, 1, 2, 1], "classes": ["a", "b", "c"]}
    return [json.dumps(content).encode()]


def _sheet_folder(folder: Path) -> None:
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(folder / "sheet.png")


_IDENTITY = {"seed": "0", "recipe": "qdrop"}


def _state_folder(folder: Path) -> None:
    """A run's saved state whose manifest has no older one that could take its place."""
    state = RunState.begin(folder, _IDENTITY)
    for number in range(2):
        tensors = {"weight/scale": torch.ones(4), "weight/zero_point": torch.zeros(4)}
        state.put(f"unit-{number:05d}", Payload(tensors, {"trace": {"name": "1"}, "warnings": []}))
    for path in folder.glob("manifest-*.json"):
        if path.name != _MANIFEST:
            path.unlink()
    read_manifest(folder / _MANIFEST).model_copy(update={"seconds": 1.5}).write(folder)  # the same bytes each time


def _manifests() -> list[bytes]:
    with tempfile.TemporaryDirectory() as name:
        _state_folder(Path(name))
        return [(Path(name) / _MANIFEST).read_bytes()]


def _read_state(path: Path) -> None:
    state = RunState.resume(path.parent, _IDENTITY)
    for name in state.names:
        state.get(name)


_MANIFEST = "manifest-000002.json"
TARGETS: dict[str, Target] = {
    "manifest": Target(_MANIFEST, _read_state, _manifests, _state_folder),
    "pt_zip": Target("net.pt", lambda path: load_weights(network(), path), lambda: _checkpoints(False)),
    "pt_legacy": Target("net.pt", lambda path: load_weights(network(), path), lambda: _checkpoints(True)),
    "safetensors": Target(
        "net.safetensors", lambda path: load_weights(network(), path), lambda: [save_tensors(network().state_dict())]
    ),
    "jpg": Target("a.jpg", lambda path: read_image(path, TRANSFORM), _images("JPEG", progressive=True)),
    "png": Target("a.png", lambda path: read_image(path, TRANSFORM), _images("PNG")),
    "webp": Target("a.webp", lambda path: read_image(path, TRANSFORM), _images("WEBP")),
    "bmp": Target("a.bmp", lambda path: read_image(path, TRANSFORM), _images("BMP")),
    "onnx": Target("model.onnx", _run_onnx, _onnx_models),
    "onnx_openvino": Target("model.onnx", lambda path: _run_onnx(path, "openvino"), _onnx_models),
    "toml": Target("run.toml", _read_run_config, lambda: [TOML.encode()], _toml_folder),
    "model_json": Target(
        "model.json", lambda path: load_chain(path.parent, network()), _seed_of("model.json"), _saved_folder
    ),
    "model_tensors": Target("model.safetensors", _load_tensors, _seed_of("model.safetensors"), _saved_folder),
    "run_json": Target("run.json", read_record, _seed_of("run.json"), _saved_folder),
    "trace_json": Target("trace.json", read_trace, _seed_of("trace.json"), _saved_folder),
    "report_json": Target(
        "report.json", lambda path: write_report(path.parent), _seed_of("report.json"), _saved_folder
    ),
    "config_json": Target("config.json", _load_config, _seed_of("config.json"), _saved_folder),
    "image_tensors": Target(
        "images.safetensors", lambda path: load_evaluation(path, transform=TRANSFORM), _pixels
    ),
    "npz": Target("images.npz", lambda path: load_evaluation(path, transform=TRANSFORM), _arrays),
    "file_list": Target("list.txt", lambda path: load_evaluation(path, transform=TRANSFORM), _lists, _list_folder),
    "sheet_json": Target(
        "sheet.json", lambda path: load_evaluation(path, transform=TRANSFORM), _sheets, _sheet_folder
    ),
}  # fmt: skip
