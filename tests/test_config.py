"""A configuration is what the TOML, the assignments and the flags say, or one error that tells every problem."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from clcalib.calibrate.recipes import ADDITIONS
from clcalib.config import build, make_recipe
from clcalib.config_sections import EvaluationConfig, ModelConfig, RunConfig
from clcalib.config_sources import merge, parse_assignment, read_toml, with_absolute_paths
from clcalib.errors import ConfigError


@pytest.fixture
def table(tmp_path: Path) -> dict[str, Any]:
    """The smallest table that is a RunConfig."""
    (tmp_path / "images").mkdir()
    return {
        "model": {"entry": "package.module:build"},
        "data": {"calibration": str(tmp_path / "images")},
        "run": {"out": str(tmp_path / "out")},
    }


def problems(table: dict[str, Any]) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as caught:
        build(RunConfig, table, "run.toml")
    return caught.value.problems


def test_defaults_are_the_default_recipe_without_the_contrastive_term(table: dict[str, Any]) -> None:
    config = build(RunConfig, table, "run.toml")
    assert config.recipe.name == "fast"
    assert config.contrastive is None
    assert config.data.count is None
    assert make_recipe(config.recipe, {"contrastive": config.contrastive}).name == "fast"


def test_every_key_arrives(table: dict[str, Any]) -> None:
    more = {
        "model": {"arguments": {"width": 8}},
        "data": {"mean": [0.5], "standard_deviation": [0.25], "resize": 40, "crop": 32, "evaluation_count": 10},
        "quantization": {"weights": 2, "activations": 32, "overrides": {"stem*": {"weights": 8}}},
        "recipe": {"name": "brecq", "steps": 7, "activation_steps": 3},
        "contrastive": {"weight": 2, "read": "logits"},
        "biases": {"rate": 0.01},
        "last_phase": {"steps": 9, "start_share": 0.5},
        "run": {"seed": 5, "threads": 1, "overwrite": True, "cache_precision": "bfloat16"},
    }
    config = build(RunConfig, merge(table, more), "run.toml")
    recipe = make_recipe(config.recipe, {name: getattr(config, name) for name in ADDITIONS})
    assert recipe.last_phase is not None
    assert (recipe.last_phase.steps, recipe.last_phase.start_share) == (9, 0.5)
    assert recipe.name == "brecq+biases+last_phase+contrastive"
    assert {phase.bias_rate for phase in recipe.phases} == {0.01}
    assert config.data.transform().crop == 32
    assert config.data.transform().mean == (0.5,)
    assert config.quantization.overrides["stem*"].weights == 8
    assert config.quantization.activations == 32
    assert recipe.steps_per_unit == 10
    assert recipe.contrastive is not None
    assert recipe.contrastive["weight"] == 2
    assert config.run.seed == 5
    assert config.run.cache_precision == "bfloat16"


@pytest.mark.parametrize(
    ("size", "expected"),
    [(1000, 1000), ("1000", 1000), ("2GB", 2 * 10**9), ("512 mb", 512 * 10**6), ("1.5GiB", 3 * 2**29), ("8k", 8000)],
)
def test_a_memory_budget_becomes_bytes(table: dict[str, Any], size: object, expected: int) -> None:
    assert build(RunConfig, merge(table, {"run": {"memory_budget": size}}), "run.toml").run.memory_budget == expected


def test_all_problems_are_told_at_once(table: dict[str, Any], tmp_path: Path) -> None:
    wrong = {
        "model": {"entry": "no-colon", "weigths": "a.safetensors"},
        "data": {"evaluation": str(tmp_path / "nowhere"), "count": 0},
        "quantisation": {},
        "quantization": {"weights": 9, "setting": "qdrob"},
        "recipe": {"name": "qdrp"},
        "contrastive": {"tempature": 0.1},
        "run": {"device": "tpu"},
    }
    told = "\n".join(problems(merge(table, wrong)))
    assert "model.entry: expected" in told
    assert "model.weigths: unknown key; did you mean 'weights'?" in told
    assert f"data.evaluation: there is no file or folder {tmp_path / 'nowhere'}" in told
    assert "data.count: expected a whole number of calibration images, at least 1, got 0" in told
    assert "quantisation: unknown key; did you mean 'quantization'?" in told
    assert "quantization.weights: expected a whole number from 2 to 8, or 32 for float, got 9" in told
    assert "did you mean 'qdrop'?" in told
    names = (
        "adaround, brecq, cl_calib, fast, genie_m, glf_q, gptq, nearest, pd_quant, qdrop, scale_only, straight_through"
    )
    assert f"recipe.name: expected one of {names}, got 'qdrp'; did you mean 'qdrop'?" in told
    assert "contrastive.tempature: unknown key; did you mean 'temperature'?" in told
    assert "run.device: expected" in told
    assert len(told.splitlines()) == 10


@pytest.mark.parametrize(
    ("section", "key", "value", "message"),
    [
        ("quantization", "weights", 1, "quantization.weights: expected a whole number from 2 to 8"),
        ("quantization", "activations", 2.5, "quantization.activations: expected a whole number from 2 to 8"),
        ("quantization", "weights", "4", "quantization.weights: expected a whole number from 2 to 8"),
        ("quantization", "weight_range", "mse", "did you mean 'mse_grid'?"),
        (
            "quantization",
            "overrides",
            {"a*": {"weight": 4}},
            "overrides.a*.weight: unknown key; did you mean 'weights'?",
        ),
        ("data", "seed", 1, "data.seed: unknown key; it belongs to [run]"),
        ("data", "mean", [0.1, 0.2], "data.mean: expected 1 or 3 finite values"),
        ("data", "mean", float("nan"), "data.mean: expected a list of one mean per channel"),
        ("data", "interpolation", "cubic", "data.interpolation: expected one of bilinear, bicubic"),
        ("recipe", "steps", 0, "recipe: steps: expected a whole number above 0"),
        ("recipe", "steps", "many", "recipe.steps: expected a whole number, got 'many'"),
        ("recipe", "stepz", 3, "recipe.stepz: unknown key; did you mean 'steps'?"),
        ("recipe", "rounding_rate", -1.0, "recipe: rounding_rate: expected"),
        ("contrastive", "loss", "info", "contrastive: loss: expected one of"),
        ("contrastive", "recipe", "qdrop", "contrastive.recipe: unknown key"),
        ("run", "seed", -1, "run.seed: expected a whole number, at least 0, got -1"),
        ("run", "threads", 0, "run.threads: expected a whole number of threads"),
        ("run", "overwrite", 1, "run.overwrite: expected true or false, got 1"),
        ("run", "memory_budget", 0, "run.memory_budget: expected a number of bytes above 0"),
        ("run", "memory_budget", -2, "run.memory_budget: expected a number of bytes above 0"),
        ("run", "memory_budget", "12 parsecs", "run.memory_budget: expected a number of bytes above 0"),
        ("run", "memory_budget", True, "run.memory_budget: expected a number of bytes above 0"),
        ("run", "spill_folder", "/no/where", "run.spill_folder: there is no folder /no/where"),
    ],
)
def test_one_wrong_value_is_one_line(
    table: dict[str, Any], section: str, key: str, value: object, message: str
) -> None:
    (told,) = problems(merge(table, {section: {key: value}}))
    assert message in told


def test_a_section_that_is_no_table_is_told(table: dict[str, Any]) -> None:
    assert problems({**table, "model": 3}) == ("model: expected a table, got 3",)


def test_missing_keys_say_what_to_give() -> None:
    told = problems({"model": {}, "data": {}, "run": {}})
    assert [line.split(":")[0] for line in told] == ["model.entry", "data.calibration", "run.out"]
    assert "--out" in told[2]


@pytest.mark.parametrize(
    ("name", "kind"), [("net.pkl", "pickle"), ("net.pickle", "pickle"), ("net.pt2", "program"), ("net.ts", "program")]
)
def test_a_pickle_or_a_program_is_refused_and_never_opened(
    table: dict[str, Any], tmp_path: Path, name: str, kind: str
) -> None:
    (tmp_path / name).write_bytes(b"not even that")
    (told,) = problems(merge(table, {"model": {"weights": str(tmp_path / name)}}))
    assert f"{name} is a {kind}" in told
    assert "torch.save(model.state_dict()" in told
    (told,) = problems(merge(table, {"model": {"weights": str(tmp_path / "net.npz")}}))
    assert ".safetensors, .pt, .pth" in told


def test_a_device_that_is_not_there_is_told(table: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    (told,) = problems(merge(table, {"run": {"device": "cuda:1"}}))
    assert "no CUDA device" in told
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    (told,) = problems(merge(table, {"run": {"device": "cuda:1"}}))
    assert "from 0 to 0" in told
    assert build(RunConfig, merge(table, {"run": {"device": "cuda:0"}}), "x").run.device == "cuda:0"


def test_every_key_of_the_tuning_arrives(table: dict[str, Any]) -> None:
    more = {"recipe": {"name": "nearest"}, "tuning": {"steps": 9, "augmentation": ["flip"], "bias_rate": 0.01}}
    config = build(RunConfig, merge(table, more), "run.toml")
    phase = make_recipe(config.recipe, {name: getattr(config, name) for name in ADDITIONS}).last_phase
    assert phase is not None
    assert (phase.steps, phase.augmentation, phase.bias_rate) == (9, ("flip",), 0.01)
    (unknown,) = problems(merge(table, {"tuning": {"augmentation": ["flop"]}}))
    assert unknown.startswith("tuning: augmentation: expected a list of names among flip, crop, mixup, cutmix")
    (twice,) = problems(merge(table, {"tuning": {}, "last_phase": {}}))
    assert twice.startswith("tuning: recipe: expected one without a phase over the whole network")


def test_what_is_wrong_with_augmentation_and_last_phase_is_told(table: dict[str, Any]) -> None:
    data = {"augment": ["flipp", "crop", "crop"], "augment_copies": 0}
    told = problems(merge(table, {"data": data, "last_phase": {"step": 3}}))
    assert any(line.startswith("data.augment: expected one of crop, cutmix, flip, mixup, got 'flipp'") for line in told)
    assert any(line.startswith("data.augment: expected each name once") for line in told)
    assert any(line.startswith("data.augment_copies: expected a whole number") for line in told)
    assert any(line.startswith("last_phase.step: unknown key; did you mean 'steps'?") for line in told)
    (alone,) = problems(merge(table, {"data": {"augment_copies": 3}}))
    assert alone.startswith("data.augment_copies: expected names in data.augment too (--augment")
    (refused,) = problems(merge(table, {"last_phase": {"steps": 0}}))
    assert refused.startswith("last_phase: steps: expected a whole number above 0")


def test_nearest_rounding_takes_no_contrastive_term(table: dict[str, Any]) -> None:
    (told,) = problems({**table, "recipe": {"name": "nearest"}, "contrastive": {}})
    assert told.startswith("contrastive: recipe: expected one that optimises something")


def test_smaller_commands_read_the_same_toml(table: dict[str, Any]) -> None:
    full = merge(table, {"recipe": {"name": "unknown"}, "data": {"calibration": "/nowhere", "crop": 8}})
    config = build(EvaluationConfig, full, "run.toml")
    assert config.data.crop == 8
    assert build(ModelConfig, {"model": full["model"]}, "run.toml").data is None
    with pytest.raises(ConfigError, match=r"data\.corp: unknown key; did you mean 'crop'"):
        build(EvaluationConfig, merge(full, {"data": {"corp": 8}}), "run.toml")


def test_relative_paths_are_taken_from_the_folder_of_the_toml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "deep"
    folder.mkdir()
    (folder / "run.toml").write_text(
        '[model]\nentry = "net.py:build"\nweights = "net.safetensors"\n'
        '[data]\ncalibration = "../images"\nevaluation = "/absolute"\n[run]\nout = "runs/a"\n'
    )
    monkeypatch.chdir(tmp_path)
    table = read_toml(Path("deep/run.toml"))
    assert table["model"] == {"entry": f"{folder}/net.py:build", "weights": str(folder / "net.safetensors")}
    assert table["data"] == {"calibration": str(folder / "../images"), "evaluation": "/absolute"}
    assert table["run"] == {"out": str(folder / "runs/a")}
    assert with_absolute_paths({"model": {"entry": "package.module:build"}}, folder) == {
        "model": {"entry": "package.module:build"}
    }


def test_a_toml_that_cannot_be_read_is_one_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        read_toml(tmp_path / "nowhere.toml")
    path = tmp_path / "broken.toml"
    path.write_text("[model\n")
    with pytest.raises(ConfigError, match=r"not valid TOML.*line 1"):
        read_toml(path)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="not valid TOML"):
        read_toml(path)


@pytest.mark.parametrize(
    ("assignment", "table"),
    [
        ("run.seed=3", {"run": {"seed": 3}}),
        ("recipe.name=brecq", {"recipe": {"name": "brecq"}}),
        ('recipe.name="brecq"', {"recipe": {"name": "brecq"}}),
        ("recipe.rounding_rate=1e-3", {"recipe": {"rounding_rate": 0.001}}),
        ("data.mean=[0.5, 0.25]", {"data": {"mean": [0.5, 0.25]}}),
        ("run.overwrite=true", {"run": {"overwrite": True}}),
        ("data.calibration=a b/c=d.png", {"data": {"calibration": "a b/c=d.png"}}),
        ('quantization.overrides."l.0".weights=4', {"quantization": {"overrides": {"l.0": {"weights": 4}}}}),
    ],
)
def test_an_assignment_is_a_table(assignment: str, table: dict[str, Any]) -> None:
    assert parse_assignment(assignment) == table


@pytest.mark.parametrize("assignment", ["seed=3", "run.seed", "data.mean=[0.5", "a..b=1", "run.seed=1\nrun.out=2"])
def test_a_broken_assignment_is_one_error(assignment: str) -> None:
    with pytest.raises(ConfigError, match="--set"):
        parse_assignment(assignment)


def test_the_later_table_wins_key_by_key() -> None:
    first = {"run": {"seed": 1, "device": "cpu"}, "contrastive": {}}
    assert merge(first, {"run": {"seed": 2}}) == {"run": {"seed": 2, "device": "cpu"}, "contrastive": {}}
    assert first["run"]["seed"] == 1
