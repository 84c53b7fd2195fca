from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from clcalib.data.transform import Transform
from clcalib.errors import ArgumentError, DataError


def picture(height: int, width: int, channels: int = 3) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, channels), dtype=np.uint8)
    return Image.fromarray(pixels if channels > 1 else pixels[:, :, 0])


def test_normalises_each_channel() -> None:
    transform = Transform(mean=(0.1, 0.2, 0.3), standard_deviation=(0.5, 0.25, 2.0))
    image = picture(5, 7)
    got = transform.image(image)
    assert got.shape == (3, 5, 7)
    assert got.dtype == torch.float32
    assert got.is_contiguous()
    pixels = np.asarray(image, dtype=np.float64)
    for channel, (mean, deviation) in enumerate(zip((0.1, 0.2, 0.3), (0.5, 0.25, 2.0), strict=True)):
        expected = (pixels[:, :, channel] / 255 - mean) / deviation
        np.testing.assert_allclose(got[channel].numpy(), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "1", "LA"])
def test_any_colour_mode_of_8_bits_is_taken(mode: str) -> None:
    image = picture(6, 6).convert(mode)
    assert torch.equal(Transform().image(image), Transform().image(image.convert("RGB")))


def test_one_mean_makes_grey_images() -> None:
    assert Transform(mean=(0.5,), standard_deviation=(0.5,)).image(picture(6, 6)).shape == (1, 6, 6)


def test_deep_images_are_refused_rather_than_clipped() -> None:
    with pytest.raises(DataError, match="8 or 16 bits for each channel, got mode I"):
        Transform().image(Image.fromarray(np.full((4, 4), 40_000, dtype=np.int32)))


@pytest.mark.parametrize("name", [">u2", "<u2"])
def test_of_16_bits_the_upper_8_are_taken(name: str) -> None:
    plain = Transform(mean=(0.0,), standard_deviation=(1.0,))
    values = np.array([[0, 255, 256, 65535]], dtype=np.uint16)
    image = Image.fromarray(values)
    if name == ">u2":
        image = Image.frombytes("I;16B", (4, 1), values.astype(">u2").tobytes())
    np.testing.assert_array_equal(plain.image(image).numpy() * 255, [[[0, 0, 1, 255]]])


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_a_very_long_image_is_cropped_as_any_other(interpolation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ramp = np.arange(40)[:, None, None] * 4 + np.arange(6)[None, :, None] * 12 + np.arange(3) * 10
    pixels = ramp.astype(np.uint8)
    transform = Transform(resize=11, crop=8, interpolation=interpolation)
    whole = transform.image(Image.fromarray(pixels))
    monkeypatch.setattr("clcalib.data.transform._MOST_RESIZED", 100)
    torch.testing.assert_close(transform.image(Image.fromarray(pixels)), whole, rtol=0, atol=2.1 / 255 / 0.22)
    with pytest.raises(DataError, match="6 x 40 pixels, which would become 11 x 73; set a crop too"):
        Transform(resize=11).image(Image.fromarray(pixels))


@pytest.mark.parametrize(("height", "width"), [(40, 60), (60, 40), (50, 50), (33, 71)])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_resize_and_crop_agree_with_torchvision(height: int, width: int, interpolation: str) -> None:
    transforms = pytest.importorskip("torchvision.transforms")
    mean, deviation = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    theirs = transforms.Compose(
        [
            transforms.Resize(32, transforms.InterpolationMode(interpolation)),
            transforms.CenterCrop(27),
            transforms.ToTensor(),
            transforms.Normalize(mean, deviation),
        ]
    )
    ours = Transform(resize=32, crop=27, mean=mean, standard_deviation=deviation, interpolation=interpolation)
    image = picture(height, width)
    torch.testing.assert_close(ours.image(image), theirs(image), rtol=0, atol=1e-5)


@pytest.mark.parametrize("transform", [Transform(), Transform(crop=5), Transform(resize=12), Transform(9, 8)])
def test_a_batch_is_its_images(transform: Transform) -> None:
    pictures = [picture(8, 10), picture(8, 10).rotate(180)]
    pixels = torch.stack([torch.from_numpy(np.array(image)).permute(2, 0, 1) for image in pictures])
    assert torch.equal(transform.batch(pixels), torch.stack([transform.image(image) for image in pictures]))


def test_a_grey_batch_is_resized_too() -> None:
    grey = Transform(resize=4, mean=(0.5,), standard_deviation=(0.5,))
    assert grey.batch(torch.full((2, 1, 8, 8), 255, dtype=torch.uint8)).tolist() == torch.ones(2, 1, 4, 4).tolist()


@pytest.mark.parametrize(
    "images", [torch.zeros(2, 1, 8, 8, dtype=torch.uint8), torch.zeros(2, 3, 8, 8), torch.zeros(3, 8, 8).byte()]
)
def test_a_batch_of_another_kind_is_refused(images: torch.Tensor) -> None:
    with pytest.raises(DataError, match=r"uint8 pixels \(N, 3, H, W\)"):
        Transform().batch(images)


def test_a_crop_larger_than_the_image_is_refused() -> None:
    with pytest.raises(DataError, match="crop: expected at most the image, 8 x 10 pixels, got 9; set resize"):
        Transform(crop=9).image(picture(8, 10))
    with pytest.raises(DataError, match="set resize to at least crop"):
        Transform(crop=9).batch(torch.zeros(1, 3, 8, 10, dtype=torch.uint8))


def test_a_sliver_keeps_at_least_one_pixel() -> None:
    assert Transform(resize=1).image(picture(1, 9)).shape == (3, 1, 9)
    assert Transform(resize=2).image(picture(100, 3)).shape == (3, 66, 2)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("resize", {"resize": 0}),
        ("crop", {"crop": -3}),
        ("mean", {"mean": (0.5, 0.5)}),
        ("mean", {"mean": (0.5, float("nan"), 0.5)}),
        ("standard_deviation", {"standard_deviation": (0.5, 0.5)}),
        ("standard_deviation", {"standard_deviation": (0.5, 0.0, 0.5)}),
        ("interpolation", {"interpolation": "nearest"}),
    ],
)
def test_fields_out_of_range_are_named(name: str, arguments: dict[str, object]) -> None:
    with pytest.raises(ArgumentError, match=f"^{name}: expected"):
        Transform(**arguments)  # type: ignore[arg-type]


def test_describe_names_every_step() -> None:
    assert Transform().describe() == "mean (0.485, 0.456, 0.406), standard deviation (0.229, 0.224, 0.225)"
    assert Transform(256, 224).describe().startswith("resize 256 bilinear, crop 224, mean")
