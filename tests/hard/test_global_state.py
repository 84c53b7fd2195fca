"""Whatever happens in a public function, the caller's random state, flags and model are as they were, to the bit."""

from __future__ import annotations

import contextlib
import copy
import logging
import os
import random
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor, nn

import clcalib
from clcalib.deployment import deploy
from clcalib.evaluate.accuracy import logits
from clcalib.evaluate.units import unit_metrics
from clcalib.files import write_atomically
from tests.hard.figures import record, size
from tests.tiny import images, tiny

SOURCE = str(Path(clcalib.__file__).parent) + os.sep
CALIBRATION = clcalib.CalibrationSet.from_tensor(images(40))
EVALUATION = clcalib.EvaluationSet.from_tensor(images(24, seed=7), torch.arange(24) % 4)
BITS = clcalib.Bits(4, 4)
Work = Callable[[nn.Module, Path], object]


def recipe() -> clcalib.Recipe:
    host = clcalib.recipes.pd_quant(steps=2, correction_steps=1)
    return clcalib.with_last_phase(clcalib.with_contrastive(host, interval=1), steps=2)


def quantized(model: nn.Module, folder: Path, **settings: Any) -> clcalib.QuantizationResult:
    chosen = {"recipe": recipe(), "bits": BITS, "precision": "float32", "measured_images": 8} | settings
    return clcalib.quantize(model, CALIBRATION, **chosen)


def saved(folder: Path) -> Path:
    """A finished result, made outside of what is watched."""
    if not (folder / "saved").exists():
        quantized(tiny(), folder, recipe=clcalib.recipes.nearest()).save(folder / "saved")
    return folder / "saved"


def deployed(model: nn.Module, folder: Path) -> object:
    result = quantized(model, folder, recipe=clcalib.recipes.nearest(), bits=clcalib.Bits(8, 8), target="onnxruntime")
    return deploy(result, folder / "model.onnx", EVALUATION, count=4)


def measured(model: nn.Module, folder: Path) -> object:
    chain = clcalib.capture(model, images(2))
    return clcalib.describe(chain), unit_metrics(chain, chain, images(4)), logits(model, images(4))


def targeted(model: nn.Module, folder: Path) -> object:
    return clcalib.quantize_to_target(
        model, CALIBRATION, max_drop=90.0, deciding=EVALUATION, recipe=clcalib.recipes.nearest(), bits=BITS
    )


def budgeted(model: nn.Module, folder: Path) -> object:
    nearest, budget = clcalib.recipes.nearest(), clcalib.Budget(size=1200)
    return clcalib.quantize_to_budget(model, CALIBRATION, budget=budget, recipe=nearest, bits=BITS)


ENTRIES: dict[str, Work] = {
    "quantize": quantized,
    "quantize within a memory budget": lambda m, f: quantized(m, f, memory_budget=4096, spill_folder=f),
    "quantize a submodule": lambda m, f: quantized(m, f, submodule="block", recipe=clcalib.recipes.fast(steps=2)),
    "estimate": lambda m, f: clcalib.estimate(m, CALIBRATION, recipe=recipe(), bits=BITS, evaluation=EVALUATION),
    "load": lambda m, f: clcalib.load(f / "saved", m),
    "save": lambda m, f: quantized(m, f, recipe=clcalib.recipes.gptq()).save(f / "again", overwrite=True),
    "deploy": deployed,
    "quantize_to_target": targeted,
    "quantize_to_budget": budgeted,
    "capture, describe and measures": measured,
    "float_state_dict": lambda m, f: quantized(m, f, recipe=clcalib.recipes.nearest()).float_state_dict(m),
    "data": lambda m, f: (clcalib.augmented(CALIBRATION, ("flip",), copies=1, seed=1), clcalib.halves(EVALUATION)),
}
FEW = ("quantize", "load")


def global_state() -> dict[str, Any]:
    """Everything that a library could leave changed in its process."""
    return {
        "torch's random numbers": torch.get_rng_state().tolist(),
        "numpy's random numbers": str(numpy.random.get_state()),
        "Python's random numbers": random.getstate(),
        "threads": (torch.get_num_threads(), torch.get_num_interop_threads()),
        "deterministic algorithms": (
            torch.are_deterministic_algorithms_enabled(),
            torch.is_deterministic_algorithms_warn_only_enabled(),
        ),
        "default dtype": torch.get_default_dtype(),
        "default device": torch.get_default_device(),
        "grad mode": (torch.is_grad_enabled(), torch.is_inference_mode_enabled()),
        "cudnn": (
            torch.backends.cudnn.deterministic,
            torch.backends.cudnn.benchmark,
            torch.backends.cudnn.enabled,
            torch.backends.cudnn.allow_tf32,
        ),
        "matmul": (torch.get_float32_matmul_precision(), torch.backends.mkldnn.enabled),
        "attention": torch.backends.mha.get_fastpath_enabled(),
        "denormals": float(torch.tensor(1e-38) / 100) != 0,
        "autocast": (torch.is_autocast_enabled("cpu"), torch.is_autocast_cache_enabled()),
        "warnings": (list(warnings.filters), warnings.showwarning),
        "environment": dict(os.environ),
        "folder": os.getcwd(),
        "streams": (sys.stdout, sys.stderr),
        "loggers": logging.getLogger("torch.fx.experimental.symbolic_shapes").disabled,
        "module hooks": len(nn.modules.module._global_forward_hooks),
    }


def model_state(model: nn.Module) -> list[Any]:
    """Bits, places, modes and hooks of a model."""
    tensors = [
        (name, tensor.data_ptr(), tensor.detach().view(torch.uint8).tolist() if tensor.ndim else tensor.item())
        for name, tensor in (*model.named_parameters(), *model.named_buffers())
    ]
    modes = [
        (name, type(module), module.training, sorted(module.__dict__), len(module._forward_hooks))
        for name, module in model.named_modules()
    ]
    return [tensors, modes, [(p.requires_grad, p.grad is None) for p in model.parameters()]]


@contextmanager
def stopped_at(call: int, error: type[BaseException]) -> Iterator[list[int]]:
    """Raise at the n-th call of a function of the package in here; yields the number of calls so far."""
    calls, here = [0], threading.get_ident()

    def watch(frame: FrameType, event: str, argument: object) -> None:
        if event != "call" or not frame.f_code.co_filename.startswith(SOURCE) or threading.get_ident() != here:
            return
        calls[0] += 1
        if calls[0] == call:
            sys.setprofile(None)
            raise error("stopped by the test")

    sys.setprofile(watch)
    try:
        yield calls
    finally:
        sys.setprofile(None)


def check(work: Work, folder: Path, call: int, error: type[BaseException]) -> int:
    """Run some work and stop it at a call; return how many calls it made."""
    model = tiny()
    model.block.bn1.requires_grad_(False)
    torch.manual_seed(5)
    before, own, rows = global_state(), model_state(model), copy.deepcopy(CALIBRATION.images)
    caught: BaseException | None = None
    with stopped_at(call, error) as calls:
        try:
            work(model, folder)
        except BaseException as own_error:
            caught = own_error
    if caught is not None:
        chain = [caught, caught.__cause__, caught.__context__]
        assert any(call > 0 and "stopped by the test" in str(one) for one in chain), repr(caught)
    after = global_state()
    for name, value in before.items():
        assert after[name] == value, f"{name} changed, stopped at call {call}"
    assert model_state(model) == own, f"the model changed, stopped at call {call}"
    assert torch.equal(rows, CALIBRATION.images)
    return calls[0]


@pytest.mark.filterwarnings("ignore::clcalib.errors.ClcalibWarning")
@pytest.mark.filterwarnings("ignore:.*:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.*:UserWarning")
@pytest.mark.parametrize("name", ENTRIES if size(0, 1) else FEW)
def test_the_caller_finds_everything_as_it_was(name: str, tmp_path: Path) -> None:
    saved(tmp_path)
    calls = check(ENTRIES[name], tmp_path, 0, RuntimeError)
    places = random.Random(name)
    for _ in range(size(1, 12)):
        for error in (RuntimeError, KeyboardInterrupt):
            check(ENTRIES[name], tmp_path, places.randint(1, calls), error)
    record("global state", entry=name, calls=calls, stopped=2 * size(1, 12), changed=0)


def test_an_interrupted_file_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model.json"
    write_atomically(path, b"old")
    for name in ("replace", "fsync"):
        with monkeypatch.context() as patch:
            patch.setattr(os, name, lambda *arguments: (_ for _ in ()).throw(KeyboardInterrupt))
            with pytest.raises(KeyboardInterrupt):
                write_atomically(path, b"new")
        assert path.read_bytes() == b"old"
        assert [child.name for child in tmp_path.iterdir()] == ["model.json"]


@pytest.mark.filterwarnings("ignore::clcalib.errors.ClcalibWarning")
@pytest.mark.parametrize("mode", ["autocast", "another default device"])
def test_the_result_depends_neither_on_autocast_nor_on_the_default_device(mode: str, tmp_path: Path) -> None:
    def result() -> list[Tensor]:
        found = quantized(tiny(), tmp_path, recipe=clcalib.recipes.fast(steps=2))
        return list(found.model.state_dict().values())

    expected, models = result(), tiny()
    with torch.autocast("cpu", torch.bfloat16) if mode == "autocast" else contextlib.nullcontext():
        if mode != "autocast":
            torch.set_default_device("meta")
        try:
            found = quantized(models, tmp_path, recipe=clcalib.recipes.fast(steps=2))
            assert torch.is_autocast_enabled("cpu") is (mode == "autocast")
            assert torch.get_default_device().type == ("cpu" if mode == "autocast" else "meta")
        finally:
            torch.set_default_device(None)
    got = list(found.model.state_dict().values())
    assert all(own.dtype == one.dtype and torch.equal(own, one) for own, one in zip(got, expected, strict=True))


@pytest.mark.filterwarnings("ignore::clcalib.errors.ClcalibWarning")
@pytest.mark.parametrize("mode", ["autocast", "another default device"])
@pytest.mark.parametrize("search", [budgeted, targeted])
def test_nor_do_widths_that_are_chosen(mode: str, search: Work, tmp_path: Path) -> None:
    models = tiny(), tiny()
    expected = search(models[0], tmp_path)
    with torch.autocast("cpu", torch.bfloat16) if mode == "autocast" else contextlib.nullcontext():
        if mode != "autocast":
            torch.set_default_device("meta")
        try:
            found = search(models[1], tmp_path)
        finally:
            torch.set_default_device(None)
    states = [list(result.model.state_dict().values()) for result in (expected, found)]
    assert all(torch.equal(*pair) for pair in zip(*states, strict=True))
    name = "budget" if search is budgeted else "target"
    assert getattr(expected.record, name) == getattr(found.record, name)


@pytest.mark.filterwarnings("ignore::clcalib.errors.ClcalibWarning")
@pytest.mark.parametrize("mode", ["float64 by default", "no_grad", "inference mode"])
def test_the_result_does_not_depend_on_the_callers_modes(mode: str, tmp_path: Path) -> None:
    models = tiny(), tiny()

    def result(model: nn.Module) -> list[Tensor]:
        found = quantized(model, tmp_path, recipe=clcalib.recipes.fast(steps=2))
        return list(found.model.state_dict().values())

    expected = result(models[0])
    if mode == "float64 by default":
        torch.set_default_dtype(torch.float64)
    try:
        with torch.no_grad() if mode == "no_grad" else torch.inference_mode(mode == "inference mode"):
            got = result(models[1])
            assert torch.is_grad_enabled() is (mode == "float64 by default")
            assert torch.is_inference_mode_enabled() is (mode == "inference mode")
    finally:
        torch.set_default_dtype(torch.float32)
    assert all(own.dtype == one.dtype and torch.equal(own, one) for own, one in zip(got, expected, strict=True))
