"""The ImageNet benchmark: its networks on tiny inputs and, where they are, with their weights; summary and page."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

FOLDER = Path(__file__).parent.parent / "benchmarks"
pytestmark = pytest.mark.skipif(not FOLDER.exists(), reason="the benchmarks are not part of this copy")
NETWORKS = ("mobilenet_v2", "efficientnet_lite0", "efficientnet_lite1", "efficientnet_lite2", "resnet50_v1")


@pytest.fixture(autouse=True)
def _benchmarks_on_the_path(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))


@pytest.fixture
def networks():
    import imagenet.networks

    return imagenet.networks


@pytest.fixture
def one():
    return pytest.importorskip("imagenet.one", exc_type=ImportError)  # fcntl: not on Windows


@pytest.mark.parametrize("size", [7, 8, 15, 224])
@pytest.mark.parametrize("kernel", [1, 3, 5])
@pytest.mark.parametrize("stride", [1, 2])
def test_same_padding_gives_the_sizes_of_tensorflow(networks, size, kernel, stride):
    before, behind = networks.same_padding(size, kernel, stride)
    assert (size + before + behind - kernel) // stride + 1 == -(-size // stride) or kernel < stride
    assert 0 <= behind - before <= 1


@pytest.mark.parametrize(("size", "before"), [(8, 0), (9, 1)])
def test_a_padded_convolution_by_hand(networks, size, before):
    """TensorFlow's window of the first output begins at -before."""
    layer = networks.Convolution((1, 1, 3), size, 2, has_norm=False, is_linear=True).eval()
    image = torch.randn(1, 1, size, size, generator=torch.Generator().manual_seed(0))
    weight, bias = (tensor.detach().numpy() for tensor in (layer.conv.weight[0, 0], layer.conv.bias))
    padded = np.pad(image[0, 0].numpy(), ((before, 1), (before, 1)))
    count = -(-size // 2)
    wanted = [
        [(padded[2 * row : 2 * row + 3, 2 * column : 2 * column + 3] * weight).sum() for column in range(count)]
        for row in range(count)
    ]
    np.testing.assert_allclose(layer(image)[0, 0].detach().numpy(), np.array(wanted) + bias, rtol=1e-4, atol=1e-5)


def test_stages_are_scaled_as_in_the_lite_variants(networks):
    first, second = (networks.scaled(networks.EFFICIENTNET, *size) for size in ((1.0, 1.1), (1.1, 1.2)))
    assert [stage.blocks for stage in first] == [1, 3, 3, 4, 4, 5, 1]
    assert [stage.channels for stage in second] == [16, 24, 48, 88, 120, 208, 352]


@pytest.mark.parametrize("has_norm", [False, True])
@pytest.mark.parametrize("size", [30, 33])
def test_a_tiny_network_has_a_logit_for_each_class(networks, size, has_norm):
    stages = (networks.Stage(1, 8, 1, 1), networks.Stage(2, 8, 2, 2, 5))
    model = networks.InvertedResidualNetwork(stages, size, has_norm).eval()
    assert [block.is_residual for block in model.blocks] == [False, False, True]
    assert model(torch.zeros(2, 3, size, size)).shape == (2, networks.CLASSES)


def test_weights_are_taken_by_their_order_and_must_fit(networks):
    model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Linear(3, 1))
    given = {f"layer{place}": tensor + 1 for place, tensor in enumerate(model.state_dict().values())}
    taken = networks.renamed(given, model)
    assert list(taken) == list(model.state_dict())
    assert torch.equal(taken["1.weight"], given["layer2"])
    with pytest.raises(ValueError, match=r"1\.weight: \(1, 3\) wanted, \(3, 1\) given"):
        networks.renamed(given | {"layer2": torch.zeros(3, 1)}, model)
    with pytest.raises(ValueError, match="shorter"):
        networks.renamed({name: given[name] for name in ("layer0", "layer1", "layer2")}, model)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_with_its_weights_knows_images_by_their_colours(networks, one, name):
    """Most of the first eight are right, and the labels are less likely with red and blue exchanged."""
    why = one.reason(name)
    if why is not None:
        pytest.skip(f"{name}: {why}")
    if name == "resnet50_v1":
        pytest.importorskip("torchvision")
    own = networks.NETWORKS[name]
    model = own.load()
    images, labels = one.labelled("evaluation", own.evaluation_transform, 8)
    assert images.shape == (8, 3, own.transform.crop, own.transform.crop)
    with torch.no_grad():
        outputs = model(images)
        swapped = model(images.flip(1))
    assert outputs.shape == (8, networks.CLASSES)
    assert int((outputs.argmax(1) == labels).sum()) >= 6
    loss = torch.nn.functional.cross_entropy
    assert loss(outputs, labels) < loss(swapped, labels)
    if name == "resnet50_v1":
        assert (model.layer2[0].conv1.stride, model.layer2[0].conv2.stride) == ((2, 2), (1, 1))


@pytest.mark.parametrize("count", [1, 8, 13, 1000])
def test_bits_come_back(one, count):
    flags = torch.rand(count, generator=torch.Generator().manual_seed(count)) > 0.5
    assert one.unpacked(one.packed(flags), count).tolist() == flags.int().tolist()


def test_cells_have_one_key_each_and_decisive_rates():
    from imagenet.grid import cell, cells

    own = cells("mobilenet_v2", 100, 256)
    assert len({one.key for one in own}) == len(own)
    assert {one.steps for one in own if one.host == "nearest"} == {0}
    rates = {steps: cell("mobilenet_v2", (2, 4), "qdrop", steps=steps).make().phases[0] for steps in (100, 200)}
    assert rates[100].rounding_rate == 2 * rates[200].rounding_rate
    assert cell("mobilenet_v2", (2, 4), "pd_quant").make() != cell("resnet50_v1", (2, 4), "pd_quant").make()


def row_of(one, cell, seed, right):
    """A run in which the float network is right everywhere."""
    flags = torch.tensor(right, dtype=torch.bool)
    share = one.percent(flags)
    numbers = {"top1": share, "agreement": share, "float_top1": 100.0}
    numbers |= {"calibration_agreement": 90.0, "held_out_agreement": 50.0 + seed}
    bits = {"right": one.packed(flags), "agrees": one.packed(flags), "evaluation_images": len(flags)}
    fields = ("network", "host", "weights", "activations", "steps", "calibration_images")
    more = {"seed": seed, "cpu_seconds": 10.0, "peak_memory_bytes": 1, "precision": "float32", "commit": "abc"}
    return {"key": cell.key, **{name: getattr(cell, name) for name in fields}, **numbers, **bits, **more}


def test_summary_and_page_of_made_up_runs(one, tmp_path):
    """The term repairs one of ten images at each seed, at seed 2 a second one."""
    from imagenet.grid import cell
    from imagenet.page import page
    from imagenet.summary import read_runs, summarise
    from run_files import path_of

    right = np.ones((3, 10), dtype=int)
    right[:, :4] = 0
    repaired = right.copy()
    repaired[:, 0] = repaired[2, 1] = 1
    for is_contrastive, values in ((False, right), (True, repaired)):
        own = cell("mobilenet_v2", (2, 4), "qdrop", is_contrastive=is_contrastive)
        for seed in range(3):
            path = path_of(own.key, seed, tmp_path)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(row_of(one, own, seed, values[seed])))
    result = summarise(read_runs(tmp_path))
    (pair,) = result["pairs"]
    assert result["cells"][pair["plain"]]["drop"] == {"mean": 40.0, "deviation": 0.0, "n": 3}
    assert pair["top1"]["values"] == [10.0, 10.0, 20.0]
    low, high = pair["top1"]["seeds_and_images"]
    assert low == 0.0  # the repaired image is left out in one resample of three
    assert 30.0 <= high <= 50.0
    text = page(result)
    assert "| W2A4 | qdrop | 40.00 ± 0.00 (3) | 26.67 ± 5.77 (3) | +13.33 t [" in text
    assert "| 51.00 ± 1.00 (3), 51.00 ± 1.00 (3), +0.00 t [+0.00, +0.00] (3) |" in text
    assert "Float: 100.0 % of 10 images." in text


def test_the_page_is_that_of_the_result():
    script = [sys.executable, str(FOLDER / "imagenet" / "page.py"), "--check"]
    done = subprocess.run(script, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


NETWORK = """
from torch import nn

def build():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)).eval()
"""


def test_a_saved_run_is_validated_batch_by_batch(tmp_path):
    """The numbers are those that the run itself has told of the same images."""
    import torch.nn as nn
    from safetensors.torch import save_file

    from clcalib.calibrate.observer import SilentObserver
    from clcalib.config import RunConfig, build
    from clcalib.run import run
    from imagenet.validate import validate

    random = np.random.default_rng(0)
    for label in ("cat", "dog"):
        (tmp_path / "val" / label).mkdir(parents=True)
        for number in range(5):
            pixels = random.integers(0, 256, (10, 12, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "val" / label / f"{number}.png")
    (tmp_path / "net.py").write_text(NETWORK)
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    save_file(layers.state_dict(), tmp_path / "net.safetensors")
    images = str(tmp_path / "val")
    data = {"calibration": images, "evaluation": images, "resize": 9, "crop": 8, "held_out_count": 0}
    table = {
        "model": {"entry": f"{tmp_path / 'net.py'}:build", "weights": str(tmp_path / "net.safetensors")},
        "data": data,
        "quantization": {"weights": 2, "activations": 2},
        "recipe": {"name": "nearest"},
        "run": {"out": str(tmp_path / "out")},
    }
    record = run(build(RunConfig, table, "test"), SilentObserver())
    told = validate(tmp_path / "out", tmp_path / "val", "cpu", batch=3)
    assert told["images"] == 10
    assert told["float_top1"] == pytest.approx(100 * record.float_top1)
    assert told["quantized_top1"] == pytest.approx(100 * record.quantized_top1)
    assert told["agreement"] == pytest.approx(100 * record.agreement)
