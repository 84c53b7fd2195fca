"""``clcalib report`` and ``clcalib compare``: from a run on the command line to pages and tables."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import clcalib
from clcalib.cli.app import main
from clcalib.report.evidence import read_evidence

Capture = pytest.CaptureFixture[str]


def quantize(out: str, *more: str) -> Path:
    assert main(["quantize", "run.toml", "--out", out, "--quiet", *more]) == 0
    return Path(out)


def test_a_run_leaves_a_page_with_everything(workplace: Path, capsys: Capture) -> None:
    out = quantize("out")
    page = (out / "report.html").read_text()
    assert "build" in page
    assert "report.json, which this folder lacks" not in page
    found = read_evidence(out / "report.json")
    record = json.loads((out / "run.json").read_text())
    assert found.predictions.digest == record["evaluation_digest"]
    assert [layer.name for layer in found.layers] == ["0", "3", "7"]
    assert (out / "report.html").stat().st_size < 5_000_000


def test_report_writes_the_page_again_and_elsewhere(workplace: Path, capsys: Capture) -> None:
    out = quantize("out")
    before = (out / "report.html").read_bytes()
    (out / "report.html").unlink()
    capsys.readouterr()
    assert main(["report", "out"]) == 0
    assert (out / "report.html").read_bytes() == before
    assert main(["report", "out", "--out", "pages/mine.html"]) == 0
    assert Path("pages/mine.html").read_bytes() == before
    assert capsys.readouterr().out.split()[::2] == ["out/report.html", "pages/mine.html"]


def test_what_is_gathered_later_is_what_the_run_gathered(workplace: Path) -> None:
    out = quantize("out")
    before = read_evidence(out / "report.json")
    (out / "report.json").unlink()
    assert main(["report", "out"]) == 0
    assert "report.json, which this folder lacks" in (out / "report.html").read_text()
    assert main(["report", "out", "--gather"]) == 0
    after = read_evidence(out / "report.json")
    assert after.predictions == before.predictions.model_copy(update={"nearest": None})
    assert (after.layers, after.features, after.changed) == (before.layers, before.features, before.changed)


def test_a_result_from_python_has_a_page_too(workplace: Path) -> None:
    quantize("out")
    tensors = load_file("calibration.safetensors")
    calibration = clcalib.CalibrationSet.from_tensor(tensors["images"])
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.Flatten(), torch.nn.Linear(144, 3)).eval()
    result = clcalib.quantize(model, calibration, recipe=clcalib.recipes.nearest(), bits=clcalib.Bits(4, 4))
    result.save("python")
    page = clcalib.write_report("python").read_text()
    assert "no config.json: the result was made in Python" in page
    assert "There were no evaluation images" in page
    assert "The map of features is in report.json, which this folder lacks" in page
    page = result.write_page("python", calibration).read_text()
    assert "The penultimate features of 32 calibration images" in page


def test_a_page_that_cannot_be_made_does_not_cost_the_result(
    workplace: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("no room on the canvas")

    monkeypatch.setattr("clcalib.pipeline.gather", fail)
    out = quantize("out")
    assert "could not be made (RuntimeError: no room on the canvas); the result is saved" in capsys.readouterr().err
    assert not (out / "report.json").exists()
    assert not (out / "state").exists()
    assert main(["evaluate", "out"]) == 0


def test_gathering_changes_no_result(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = quantize("first")
    monkeypatch.setattr("clcalib.run.leave_page", lambda *_: None)
    second = quantize("second")
    for name in ("model.safetensors", "model.json", "trace.json"):
        assert (first / name).read_bytes() == (second / name).read_bytes()


def test_an_older_page_does_not_survive_a_new_result(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    quantize("out")
    monkeypatch.setattr("clcalib.run.leave_page", lambda *_: None)
    quantize("out", "--overwrite", "--seed", "1")
    assert not Path("out/report.json").exists()
    assert not Path("out/report.html").exists()


def test_names_of_classes_and_files_come_from_the_images(workplace: Path) -> None:
    tensors = load_file("evaluation.safetensors")
    from PIL import Image

    for at, (image, label) in enumerate(zip(tensors["images"], tensors["labels"].tolist(), strict=True)):
        place = Path("photos") / f"class <{label}>" / f"{at}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        pixels = (image.clamp(-2, 2) * 60 + 128).to(torch.uint8).permute(1, 2, 0).numpy()
        Image.fromarray(pixels).save(place)
    out = quantize("out", "--evaluation", "photos")
    found = read_evidence(out / "report.json")
    assert found.predictions.class_names == ("class <0>", "class <1>", "class <2>")
    assert all(image.name.endswith(".png") and image.name.startswith("class <") for image in found.changed)
    assert all(image.picture for image in found.changed)
    assert "class &lt;0&gt;" in (out / "report.html").read_text()


def test_compare_tells_what_differs_and_by_how_much(workplace: Path, capsys: Capture) -> None:
    quantize("a")
    quantize("b", "--bits", "W2A2", "--seed", "3")
    capsys.readouterr()
    assert main(["compare", "a", "b", "--out", "compare.html", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    first, second = found["runs"]
    differing = found["differing"]
    assert len(set(differing.pop("digest of the calibration images"))) == 2  # the seed chooses them
    assert differing == {"widths": ["W4A4", "W2A2"], "seed": ["0", "3"]}
    assert (first["paired"], first["doubts"], second["doubts"]) == (None, [], [])
    records = [json.loads(Path(name, "run.json").read_text()) for name in ("a", "b")]
    drop = 100 * (records[1]["quantized_top1"] - records[0]["quantized_top1"])
    assert second["paired"]["difference"] == pytest.approx(drop)
    assert second["paired"]["images"] == 20
    page = Path("compare.html").read_text()
    assert "W2A2" in page
    assert main(["compare", "a", "b"]) == 0
    shown = capsys.readouterr().out
    assert shown.index("Settings that differ") < shown.index("Runs beside a")


def test_runs_on_other_images_are_shown_and_marked(workplace: Path, capsys: Capture) -> None:
    quantize("a")
    tensors = load_file("evaluation.safetensors")
    save_file({name: tensor[:10] for name, tensor in tensors.items()}, "fewer.safetensors")
    quantize("b", "--evaluation", "fewer.safetensors")
    Path("a/report.json").unlink()
    quantize("c")
    capsys.readouterr()
    assert main(["compare", "a", "b", "c", "--out", "compare.html"]) == 0
    shown = capsys.readouterr().out
    assert "b is not comparable: other evaluation images" in shown
    assert "c is not paired: predictions were not kept; clcalib report --gather keeps them" in shown
    assert "(not comparable)" in Path("compare.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["report", "nowhere"], "OUT: expected the output folder of a finished run, got nowhere, which is no folder"),
        (["report", "out", "--model", "net.py:build"], "--gather: expected it beside them, or --evaluation"),
        (["report"], "Missing argument"),
        (["compare", "out"], "OUT: expected at least two output folders of runs, got 1"),
        (["compare", "out", "."], "OUT: expected the output folder of a finished run, got ., which has no run.json"),
    ],
)
def test_what_cannot_be_done_is_one_line(workplace: Path, capsys: Capture, arguments: list[str], message: str) -> None:
    if "out" in arguments:
        quantize("out")
    assert main(arguments) == 2
    told = capsys.readouterr().err
    assert message in told
    assert "Traceback" not in told


def test_a_page_that_cannot_be_written_is_told(workplace: Path, capsys: Capture) -> None:
    quantize("out")
    Path("file").write_text("")
    assert main(["report", "out", "--out", "file/page.html"]) == 4
    assert "could not be written" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["report", "compare"])
def test_the_help_teaches(workplace: Path, capsys: Capture, command: str) -> None:
    assert main([command, "--help"]) == 0
    shown = capsys.readouterr().out
    assert "Examples" in shown
    assert "--out" in shown
