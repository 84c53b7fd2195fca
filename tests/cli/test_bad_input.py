"""Whatever a user gets wrong is one message on stderr and an exit code; nothing is written, no traceback is shown."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import clcalib
from clcalib.cli import main

Capture = pytest.CaptureFixture[str]


def images(*shape: int) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        save_file({"images": torch.zeros(shape)}, folder / "calibration.safetensors")

    return make


def image_with_nan(folder: Path) -> None:
    content = load_file(folder / "calibration.safetensors")["images"]
    content[5, 0, 0, 0] = torch.nan
    save_file({"images": content}, folder / "calibration.safetensors")


def weight_with_nan(folder: Path) -> None:
    content = load_file(folder / "net.safetensors")
    content["3.weight"][0, 0, 0, 0] = torch.nan
    save_file(content, folder / "net.safetensors")


def other_weights(folder: Path) -> None:
    save_file({"other": torch.zeros(2)}, folder / "net.safetensors")


def empty_folder(folder: Path) -> None:
    (folder / "images").mkdir()


def mixed_shapes(folder: Path) -> None:
    empty_folder(folder)
    for index, size in enumerate((8, 8, 9)):
        Image.new("RGB", (size, size)).save(folder / "images" / f"{index}.png")


def half_precision(folder: Path) -> None:
    content = load_file(folder / "net.safetensors")
    save_file({name: tensor.half() for name, tensor in content.items()}, folder / "net.safetensors")
    code = (folder / "net.py").read_text()
    (folder / "net.py").write_text(code.replace("    )\n", "    ).half()\n"))


def network_code(code: str) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        (folder / "net.py").write_text(code)

    return make


def toml(text: str) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        (folder / "run.toml").write_text(text)

    return make


def nothing(folder: Path) -> None:
    """Leave the folder as it is."""


TWO_INPUTS = """
from torch import nn

class Net(nn.Module):
    def forward(self, x, y):
        return x + y

build = Net
"""
DEPENDS_ON_VALUES = """
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
    def forward(self, x):
        x = self.conv(x)
        return x if x.sum() > 0 else -x

build = Net
"""
SMALLEST_SIZE = """
from torch import nn

def build():
    return nn.Sequential(nn.Conv2d(3, 4, 11), nn.Flatten(), nn.Linear(4, 3))
"""
OTHER_WEIGHTS: dict[str, dict[str, tuple[int, ...]]] = {
    "empty": {},
    "conv": {"0.weight": (4, 3, 3, 3), "0.bias": (4,)},
    "named": {"conv.weight": (4, 3, 3, 3), "conv.bias": (4,)},
    "large": {"0.weight": (4, 3, 11, 11), "0.bias": (4,), "2.weight": (3, 4), "2.bias": (3,)},
}

CASES: dict[str, tuple[Callable[[Path], None], list[str], str]] = {
    "no image": (images(0, 3, 8, 8), [], "at least one image"),
    "empty folder": (empty_folder, ["--calibration", "images"], "PNG, JPEG, WebP or BMP"),
    "one image, contrastive": (images(1, 3, 8, 8), ["--contrastive", "--set", "data.count=1"], "two different images"),
    "too few images": (nothing, ["--set", "data.count=33"], "count: expected from 1 to 32"),
    "mixed shapes": (mixed_shapes, ["--calibration", "images", "--set", "data.count=3"], "one shape"),
    "channel count": (images(32, 1, 8, 8), [], "shape"),
    "nan image": (image_with_nan, [], "NaN or infinity in 1 of 32 images"),
    "nan weight": (weight_with_nan, [], "3.weight"),
    "half precision": (half_precision, [], "got float16 in the parameter `0.weight`; convert it with model.float()"),
    "unknown submodule": (nothing, ["--submodule", "8"], "submodule: expected the path of a module in Sequential"),
    "submodule of another input": (nothing, ["--submodule", "2"], "no convolution or linear layer"),
    "evaluation of a part without classes": (
        network_code("from torch import nn\nbuild = lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())"),
        ["--submodule", "0", "--weights", "conv.safetensors"],
        "expected a network with output (N, classes)",
    ),
    "two inputs": (network_code(TWO_INPUTS), ["--weights", "empty.safetensors"], "takes x, y; only one image tensor"),
    "control flow": (
        network_code(DEPENDS_ON_VALUES),
        ["--weights", "named.safetensors"],
        "return x if x.sum() > 0 else -x): what this code does depends on the values",
    ),
    "images too small": (
        network_code(SMALLEST_SIZE),
        ["--weights", "large.safetensors"],
        "(3, 8, 8); the model says: Calculated padded input size",
    ),
    "other weights": (other_weights, [], "the file lacks 0.weight, 0.bias"),
    "pickle": (nothing, ["--weights", "net.pkl"], "pickle"),
    "missing weights": (nothing, ["--weights", "nowhere.safetensors"], "there is no file"),
    "bits out of range": (nothing, ["--bits", "W1A9"], "2 problems"),
    "bits of another form": (nothing, ["--bits", "2/2"], "such as W2A4"),
    "unknown key": (toml("[model]\nentri = 'net.py:build'\n"), [], "did you mean 'entry'?"),
    "broken toml": (toml("[model"), [], "not valid TOML"),
    "missing toml": (lambda folder: (folder / "run.toml").unlink(), [], "No such file"),
    "unknown recipe": (nothing, ["--recipe", "qdrp"], "did you mean 'qdrop'?"),
    "no steps": (nothing, ["--steps", "0"], "steps: expected a whole number above 0"),
    "unknown device": (nothing, ["--device", "tpu"], "run.device"),
    "unknown pattern": (nothing, ["--set", "quantization.overrides.x.weights=4"], "nearest layer"),
    "unknown name in the entry": (nothing, ["--model", "net.py:biuld"], "it has build"),
    "entry that fails": (network_code("def build(): raise KeyError('deep')"), [], "KeyError: 'deep'"),
    "output is a file": (nothing, ["--out", "net.py"], "run.out: expected a folder"),
    "copies without an augmentation": (nothing, ["--augment-copies", "3"], "with --augment-copies"),
    "no augmentation": (nothing, ["--augment", ""], "--augment: expected names of augmentations"),
    "usage": (nothing, ["--bogus"], "No such option"),
    "usage, not a number": (nothing, ["--steps", "many"], "--steps"),
}


@pytest.mark.parametrize("name", CASES)
def test_bad_input_is_one_message_before_any_work(name: str, workplace: Path, capsys: Capture) -> None:
    prepare, arguments, message = CASES[name]
    for file, shapes in OTHER_WEIGHTS.items():
        save_file({key: torch.zeros(shape) for key, shape in shapes.items()}, workplace / f"{file}.safetensors")
    prepare(workplace)
    arguments = arguments if "--out" in arguments else [*arguments, "--out", "out"]
    assert main(["quantize", "run.toml", *arguments]) == 2
    printed = capsys.readouterr()
    assert message in printed.err
    assert "Traceback" not in printed.err
    assert printed.err.count("error: ") == 1
    assert "unit 1 of" not in printed.err
    assert not (workplace / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["describe", "--model", "net.py:build"], "--shape"),
        (["describe", "--model", "net.py:build", "--shape", "3,0"], "--shape"),
        (["describe", "--model", "net.py:build", "--shape", "3,8,8", "--unit", "blok"], "--unit"),
        (["describe", "--shape", "3,8,8"], "model.entry: missing"),
        (["describe", "--model", "net.py:build", "--shape", "5,8,8"], "error: --shape: expected images"),
        (
            ["describe", "--model", "net.py:build", "--shape", "3,64", "--unit", "layer"],
            "error: --shape: expected images",
        ),
        (["describe", "--model", "net.py:build", "--shape", "3,8,8", "--submodule", "x"], "nearest: "),
        (["evaluate", "nowhere"], "there is no such folder"),
        (["evaluate", "."], "model.entry: missing"),
        (["evaluate", ".", "--model", "net.py:build", "--evaluation", "evaluation.safetensors"], "no such file"),
        (["data", "cifar10", "--out", "x", "--method", "ftp"], "method"),
        (["data"], "Missing command"),
        (["fly"], "No such command"),
    ],
)
def test_the_other_commands_do_the_same(arguments: list[str], message: str, workplace: Path, capsys: Capture) -> None:
    assert main(arguments) == 2
    printed = capsys.readouterr().err
    assert message in printed
    assert printed.count("error: ") == 1
    assert "Traceback" not in printed


def test_a_damaged_configuration_beside_a_model_is_one_error(workplace: Path, capsys: Capture) -> None:
    (workplace / "config.json").write_text("{")
    assert main(["evaluate", "."]) == 2
    assert "config.json: not a JSON file" in capsys.readouterr().err


CODE = "from pathlib import Path\nPath('canary').touch()\n\ndef build():\n    raise RuntimeError\n"


@pytest.mark.parametrize("entry", ["evil.py:build", "evil:build", "os:system", "{here}/evil.py:build"])
@pytest.mark.parametrize("command", ["evaluate .", "evaluate model.onnx", "export .", "quantize --resume ."])
def test_code_in_a_folder_from_elsewhere_is_not_run(
    entry: str, command: str, workplace: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = workplace / "from_elsewhere"
    folder.mkdir()
    monkeypatch.chdir(folder)
    (folder / "evil.py").write_text(CODE)
    model = {"entry": entry.format(here=folder), "arguments": {"command": "touch canary"} if "os" in entry else {}}
    data = {"calibration": str(workplace / "calibration.safetensors"), "evaluation": str(workplace)}
    (folder / "config.json").write_text(json.dumps({"model": model, "data": data, "run": {"out": str(folder)}}))
    (folder / "model.onnx").write_bytes(b"")
    (folder / "model.json").write_text("{}")
    assert main(command.split()) == 2
    printed = capsys.readouterr().err
    assert "Traceback" not in printed
    assert not (folder / "canary").exists()
    if command.startswith("evaluate") and "evil" in entry:
        assert "is code in the folder of a result; read it, and give it by --model to run it" in printed


def test_an_internal_failure_has_its_own_code_and_shows_its_place_on_request(
    workplace: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object, **named: object) -> None:
        raise RuntimeError("a defect")

    monkeypatch.setattr("clcalib.cli.actions.quantize.run", fail)
    assert main(["quantize", "run.toml", "--out", "out"]) == 1
    printed = capsys.readouterr().err
    assert "internal failure: RuntimeError: a defect" in printed
    assert "Traceback" not in printed
    assert main(["quantize", "run.toml", "--out", "out", "--debug"]) == 1
    assert "Traceback" in capsys.readouterr().err
    monkeypatch.setenv("CLCALIB_DEBUG", "1")
    assert main(["quantize", "run.toml", "--out", "out"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_an_interrupt_has_its_own_code(workplace: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*arguments: object, **named: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("clcalib.cli.actions.quantize.run", interrupt)
    assert main(["quantize", "run.toml", "--out", "out"]) == 130
    printed = capsys.readouterr().err
    assert "interrupted" in printed
    assert "Traceback" not in printed


def test_the_process_itself_returns_the_code_and_one_line(workplace: Path) -> None:
    command = [sys.executable, "-m", "clcalib", "quantize", "run.toml", "--recipe", "qdrp", "--out", "out"]
    environment = {**os.environ, "PYTHONPATH": str(Path(clcalib.__file__).parents[1])}
    finished = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert finished.returncode == 2
    assert finished.stdout == ""
    assert finished.stderr == (
        "error: run.toml: recipe.name: expected one of adaround, brecq, cl_calib, fast, genie_m, glf_q, gptq, nearest, "
        "pd_quant, qdrop, scale_only, straight_through, got 'qdrp'; did you mean 'qdrop'?\n"
    )
