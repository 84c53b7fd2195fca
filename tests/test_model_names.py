"""Networks by name: what is built, with which weights, and how their images are made ready."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from clcalib import named_models
from clcalib.config import build
from clcalib.config_sections import EvaluationConfig, ModelSection, RunConfig
from clcalib.config_sources import over_saved, with_absolute_paths
from clcalib.data.transform import Transform
from clcalib.errors import (
    ArgumentError,
    ConfigError,
    MissingPackageError,
    OtherTransformWarning,
    UntrainedNetworkWarning,
    UnusableFileError,
)
from clcalib.model_source import load_model, load_trained_model
from clcalib.named_models import LIBRARIES, own_transform, problem
from clcalib.named_models.library import from_steps

torchvision = pytest.importorskip("torchvision")
timm = pytest.importorskip("timm")

SMALL = "torchvision:shufflenet_v2_x0_5"


def image(width: int, height: int) -> Image.Image:
    pixels = np.random.default_rng(width).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.fixture
def no_downloads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every address that anything would download from."""
    asked: list[str] = []

    def download(url: str, *args: Any, **kwargs: Any) -> None:
        asked.append(url)
        raise OSError("the network is not to be used")

    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    return asked


def test_a_name_builds_the_network_of_its_library(no_downloads: list[str]) -> None:
    model = load_model(ModelSection(entry="torchvision:resnet18", arguments={"num_classes": 7}))
    assert type(model) is torchvision.models.ResNet
    assert model.fc.out_features == 7
    assert not model.training
    assert load_model(ModelSection(entry="timm:resnet10t", arguments={"num_classes": 3})).num_classes == 3
    # By default this builder downloads the weights of its backbone.
    load_model(ModelSection(entry="torchvision:lraspp_mobilenet_v3_large"))
    assert no_downloads == []


@pytest.mark.parametrize(
    ("entry", "nearest"),
    [
        ("torchvision:resnet81", "resnet18"),
        ("timm:deit_tiny", "deit_tiny_patch16_224"),
        ("timm:resnet50.a1_in2k", "resnet50.a1_in1k"),
        ("torchvision:resnet50.IMAGENET1K_V3", "resnet50.IMAGENET1K_V2"),
    ],
)
def test_an_unknown_name_tells_the_nearest(entry: str, nearest: str) -> None:
    with pytest.raises(ArgumentError, match=rf"the nearest are .*{nearest}"):
        load_model(ModelSection(entry=entry))
    with pytest.raises(ConfigError, match=nearest):
        build(EvaluationConfig, {"model": {"entry": entry}}, "command line")


@pytest.mark.parametrize(
    ("entry", "argument"),
    [("torchvision:resnet18", "weights"), ("torchvision:fcn_resnet50", "weights_backbone"),
     ("timm:resnet18", "pretrained"), ("timm:resnet18", "checkpoint_path")],
)  # fmt: skip
def test_arguments_load_no_weights(entry: str, argument: str, no_downloads: list[str]) -> None:
    with pytest.raises(ArgumentError, match=rf"model.arguments.{argument}: .*--pretrained"):
        load_model(ModelSection(entry=entry, arguments={argument: "DEFAULT"}))
    assert no_downloads == []


def test_wrong_arguments_are_one_error() -> None:
    with pytest.raises(ArgumentError, match="unexpected keyword argument 'deepness'"):
        load_model(ModelSection(entry="torchvision:resnet18", arguments={"deepness": 3}))


@pytest.mark.parametrize("library", ["torchvision", "timm"])
def test_a_missing_package_tells_how_to_get_it(library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(MissingPackageError, match=r"pip install .*clcalib\[vision\]"):
        load_model(ModelSection(entry=f"{library}:resnet18"))


def test_random_weights_are_told(no_downloads: list[str]) -> None:
    with pytest.warns(UntrainedNetworkWarning, match=f"{SMALL} has random weights.*--pretrained"):
        load_trained_model(ModelSection(entry=SMALL))


def test_random_weights_of_a_function_are_told_and_loaded_ones_are_not(tmp_path: Path) -> None:
    path = tmp_path / "net.py"
    path.write_text(
        "import torch\nfrom torch import nn\n"
        "def fresh():\n    return nn.Linear(3, 2)\n"
        "def trained():\n    layer = nn.Linear(3, 2)\n"
        "    layer.load_state_dict({'weight': torch.ones(2, 3), 'bias': torch.ones(2)})\n    return layer\n"
    )
    before = torch.get_rng_state()
    with pytest.warns(UntrainedNetworkWarning, match="fresh has random weights"):
        load_trained_model(ModelSection(entry=f"{path}:fresh"))
    load_trained_model(ModelSection(entry=f"{path}:trained"))  # a warning is an error here
    assert torch.equal(torch.get_rng_state(), before)


def test_weights_from_a_local_file(tmp_path: Path) -> None:
    source = torchvision.models.shufflenet_v2_x0_5(weights=None)
    save_file(source.state_dict(), tmp_path / "net.safetensors")
    model = load_trained_model(ModelSection(entry=SMALL, weights=tmp_path / "net.safetensors"))
    assert torch.equal(model.fc.weight, source.fc.weight)


def checkpoint_of(name: str, folder: Path) -> Path:
    """Where torchvision looks for the default weights of a network before it downloads them."""
    url = torchvision.models.get_model_weights(name).DEFAULT.url
    (folder / "hub" / "checkpoints").mkdir(parents=True, exist_ok=True)
    return folder / "hub" / "checkpoints" / url.rpartition("/")[2]


def test_published_weights_of_torchvision_are_taken_from_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_downloads: list[str]
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    source = torchvision.models.shufflenet_v2_x0_5(weights=None)
    torch.save(source.state_dict(), checkpoint_of("shufflenet_v2_x0_5", tmp_path))
    model = load_trained_model(ModelSection(entry=SMALL, weights=Path("pretrained")))
    assert torch.equal(model.fc.weight, source.fc.weight)
    assert no_downloads == []


def test_published_weights_that_hold_code_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    torch.save({"fc.weight": nn.Linear(1, 1)}, checkpoint_of("shufflenet_v2_x0_5", tmp_path))
    with pytest.raises(UnusableFileError, match="not loaded"):
        load_model(ModelSection(entry=SMALL, weights=Path("pretrained")))


def test_an_unreachable_hub_is_one_error_with_another_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_downloads: list[str]
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(ArgumentError, match=r"bring shufflenetv2_x0.5-\w+.pth from another machine into .*--weights"):
        load_model(ModelSection(entry=SMALL, weights=Path("pretrained")))
    assert len(no_downloads) == 1

    def fail(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("no route to the hub\nsecond line")

    monkeypatch.setattr(timm, "create_model", fail)
    with pytest.raises(ArgumentError, match=r"--pretrained.*RuntimeError: no route to the hub; .*--weights FILE$"):
        load_model(ModelSection(entry="timm:resnet18", weights=Path("pretrained")))


def test_published_weights_of_timm_come_from_the_file_that_its_configuration_names(tmp_path: Path) -> None:
    source = timm.create_model("resnet10t")
    save_file(source.state_dict(), tmp_path / "model.safetensors")
    arguments = {"pretrained_cfg_overlay": {"file": str(tmp_path / "model.safetensors")}}
    model = load_trained_model(ModelSection(entry="timm:resnet10t", arguments=arguments, weights=Path("pretrained")))
    assert torch.equal(model.fc.weight, source.fc.weight)


def test_published_weights_are_of_named_networks_only() -> None:
    table = {"model": {"entry": "torch.nn:Flatten", "weights": "pretrained"}}
    with pytest.raises(ConfigError, match="only networks by name"):
        build(EvaluationConfig, table, "command line")
    assert with_absolute_paths(table, Path("/some/where")) == table


@pytest.mark.parametrize("name", ["resnet18", "deit_tiny_patch16_224", "vit_base_patch16_siglip_256"])
@pytest.mark.parametrize("size", [(300, 400), (517, 333), (64, 64)])
def test_the_transform_is_that_of_timm(name: str, size: tuple[int, int]) -> None:
    config = timm.data.resolve_data_config({}, pretrained_cfg=timm.get_pretrained_cfg(name).to_dict())
    expected = timm.data.create_transform(**config, is_training=False)(image(*size))
    own = own_transform(f"timm:{name}", {}, None).transform
    assert own is not None
    assert torch.allclose(own.image(image(*size)), expected, atol=1e-6)


@pytest.mark.parametrize("name", ["resnet18", "resnet50.IMAGENET1K_V2", "efficientnet_b1", "fcn_resnet50"])
def test_the_transform_is_that_of_torchvision(name: str) -> None:
    short, _, tag = name.partition(".")
    weights = torchvision.models.get_model_weights(short)
    expected = (weights[tag] if tag else weights.DEFAULT).transforms()(image(517, 333))
    own = own_transform(f"torchvision:{name}", {}, None).transform
    assert own is not None
    # torchvision resizes tensors where these presets resize tensors, and images where they are images; both round once.
    assert torch.allclose(own.image(image(517, 333)), expected, atol=1e-6)


def test_the_transform_follows_the_file_of_weights_and_the_size_that_is_asked_for() -> None:
    weights = torchvision.models.ResNet50_Weights
    sizes = [
        own_transform("torchvision:resnet50", {}, each.url.rpartition("/")[2]).transform.resize  # type: ignore[union-attr]
        for each in (weights.IMAGENET1K_V1, weights.IMAGENET1K_V2)
    ]
    assert sizes == [256, 232]
    assert own_transform("timm:vit_tiny_patch16_224", {"img_size": 64}, None).transform.crop == 64  # type: ignore[union-attr]


def test_steps_that_have_no_word_of_ours_are_not_guessed() -> None:
    transforms = torchvision.transforms
    last = [transforms.ToTensor(), transforms.Normalize((0.5,) * 3, (0.5,) * 3)]
    assert from_steps([transforms.Resize(32), transforms.CenterCrop(24), *last]) == Transform(
        32, 24, (0.5,) * 3, (0.5,) * 3
    )
    assert from_steps([transforms.Resize((32, 32)), *last]) == Transform(32, None, (0.5,) * 3, (0.5,) * 3, squash=True)
    nearest = transforms.InterpolationMode.NEAREST
    for odd in (
        transforms.Pad(2),
        transforms.Resize((32, 48)),
        transforms.Resize(32, max_size=64),
        transforms.Resize(32, nearest),
        transforms.CenterCrop((24, 32)),
    ):
        assert from_steps([odd, *last]) is None


def test_most_networks_have_a_transform_that_can_be_written() -> None:
    names = timm.list_pretrained()[::40]
    assert sum(own_transform(f"timm:{name}", {}, None).transform is None for name in names) <= 1


def run_table(entry: str, **data: object) -> dict[str, Any]:
    return {"model": {"entry": entry}, "data": {"calibration": ".", **data}, "run": {"out": "out"}}


def test_a_configuration_takes_over_what_it_does_not_say() -> None:
    data = build(RunConfig, run_table("timm:deit_tiny_patch16_224"), "command line").data
    assert data.transform() == own_transform("timm:deit_tiny_patch16_224", {}, None).transform


def test_what_is_given_wins_and_the_difference_is_told() -> None:
    with pytest.warns(OtherTransformWarning, match="resize none and not 248, crop 32 and not 224$"):
        data = build(RunConfig, run_table("timm:deit_tiny_patch16_224", crop=32), "command line").data
    assert (data.resize, data.crop, data.interpolation) == (None, 32, "bicubic")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        build(RunConfig, run_table("timm:deit_tiny_patch16_224", resize=248, crop=224), "command line")


def test_a_transform_without_words_has_to_be_given() -> None:
    with pytest.raises(ConfigError, match="expected mean, standard_deviation, resize and crop"):
        build(RunConfig, run_table("torchvision:r3d_18"), "command line")
    assert build(RunConfig, run_table("torchvision:r3d_18", crop=112), "command line").data.crop == 112


def test_a_folder_of_results_does_not_ask_for_downloads(tmp_path: Path) -> None:
    saved = {"model": {"entry": "timm:resnet18", "weights": "pretrained"}, "data": {"evaluation": "hf:name/of"}}
    with pytest.raises(ConfigError, match="2 problems") as caught:
        over_saved(saved, tmp_path)
    assert "--pretrained" in str(caught.value)
    assert "--evaluation" in str(caught.value)
    given = {"model": {"weights": "pretrained"}, "data": {"evaluation": "images"}}
    assert over_saved(saved, tmp_path, given)["data"]["evaluation"] == "images"
    assert over_saved(saved, tmp_path, may_download=True) == saved


def test_every_library_tells_its_names() -> None:
    for place, library in LIBRARIES.items():
        names = library.names()
        assert len(names) > 50
        assert all(problem(f"{place}:{name}") is None for name in names[:5])
        assert not any(name.startswith("quantized_") for name in names)
    assert not named_models.is_named("package.module:function")
    assert not named_models.is_named("net.py:build")
