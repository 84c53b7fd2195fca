"""Networks and images with bad numbers in them: each case changes a sound network and sound images in one place."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from tests.tiny import Tiny, images, tiny

NAN, INF = float("nan"), float("inf")
DENORMAL = 1e-40  # below the smallest normal float32, 1.2e-38
COUNT = 24


@dataclass
class Numbers:
    """What a run is given.

    Attributes:
        model: the network.
        images: calibration images, of any float type.
        held_out: images that units' errors are measured on.
    """

    model: Tiny
    images: Tensor
    held_out: Tensor


@dataclass(frozen=True)
class Case:
    """One place where numbers are bad.

    Attributes:
        change: makes them so, in place or by new values of the attributes.
        outcome: ``"refused"`` before any optimisation, ``"warned"`` (it finishes, and a warning of clcalib names the
            matter), or ``"sound"`` (it finishes, and the result at 8 bits is close to float, so there is no matter).
    """

    change: Callable[[Numbers], object]
    outcome: str
    corrected: str = ""  # the outcome of recipes that look at the statistics of batch norm, where it is another

    def build(self) -> Numbers:
        numbers = Numbers(tiny(), images(COUNT), images(20, seed=7))
        with torch.no_grad():
            self.change(numbers)
        return numbers


def _image(value: float) -> Callable[[Numbers], object]:
    return lambda n: n.images.view(-1).__setitem__(700, value)


def _images(change: Callable[[Tensor], Tensor]) -> Callable[[Numbers], object]:
    return lambda n: setattr(n, "images", change(n.images))


def _at(name: str, value: float, place: int | slice = 3) -> Callable[[Numbers], object]:
    """One number of a parameter or buffer, or some."""
    return lambda n: n.model.state_dict()[name].view(-1).__setitem__(place, value)


def _channel(name: str, change: Callable[[Tensor], Tensor]) -> Callable[[Numbers], object]:
    def apply(numbers: Numbers) -> None:
        channel = numbers.model.state_dict()[name][2]
        channel.copy_(change(channel))

    return apply


def _times(name: str, factor: float) -> Callable[[Numbers], object]:
    return lambda n: n.model.state_dict()[name].mul_(factor)


def _cast(dtype: torch.dtype, part: str = "") -> Callable[[Numbers], object]:
    return lambda n: n.model.get_submodule(part).to(dtype)


ALL = slice(None)
W, FC = "block.conv1.weight", "fc.weight"
CASES: dict[str, Case] = {
    # images
    "nan in an image": Case(_image(NAN), "refused"),
    "inf in an image": Case(_image(INF), "refused"),
    "-inf in an image": Case(_image(-INF), "refused"),
    "1e300 in a float64 image": Case(lambda n: (_images(Tensor.double)(n), _image(1e300)(n)), "refused"),
    "1e6 in an image": Case(_image(1e6), "warned"),
    "1e12 in an image": Case(_image(-1e12), "warned"),
    "1e18 in an image": Case(_image(1e18), "refused"),
    "1e38 in an image": Case(_image(1e38), "refused"),
    "images of 1e38": Case(_images(lambda x: x.sign() * 1e38), "refused"),
    "images of 1e15": Case(_images(lambda x: x * 1e15), "refused"),
    "images of zeros": Case(_images(lambda x: x * 0), "warned"),
    "constant images": Case(_images(lambda x: torch.ones_like(x)), "warned"),
    "one image of zeros": Case(lambda n: n.images[3].zero_(), "sound"),
    "images of 1e-12": Case(_images(lambda x: x * 1e-12), "warned"),
    "denormal images": Case(_images(lambda x: x * DENORMAL), "warned"),
    "float16 images with its largest number": Case(lambda n: (_images(Tensor.half)(n), _image(65504.0)(n)), "warned"),
    "bfloat16 images": Case(_images(Tensor.bfloat16), "sound"),
    "1e38 in a held-out image": Case(lambda n: n.held_out.view(-1).__setitem__(5, 1e38), "refused"),
    # weights
    "nan in a weight": Case(_at(W, NAN), "refused"),
    "inf in a weight": Case(_at(W, INF), "refused"),
    "nan in a bias": Case(_at("fc.bias", NAN), "refused"),
    "-inf in the last weight": Case(_at(FC, -INF), "refused"),
    "a channel of zeros": Case(_channel(W, lambda w: w * 0), "warned"),
    "a channel of -0": Case(_channel(W, lambda w: w * -0.0), "warned"),
    "a constant channel": Case(_channel(W, lambda w: w * 0 + 0.3), "warned"),
    "a channel of 1e-12": Case(_channel(W, lambda w: w * 1e-12), "sound"),
    "a denormal channel": Case(_channel(W, lambda w: w * DENORMAL), "sound"),
    "a row of 1e-12 in the last layer": Case(_channel(FC, lambda w: w * 1e-12), "sound"),
    "a channel of 1e12": Case(_channel(W, lambda w: w * 1e12), "warned"),
    "a channel of 1e20": Case(_channel(W, lambda w: w * 1e20), "refused"),
    "a layer of zeros": Case(_at(W, 0.0, ALL), "warned"),
    "a layer of ones": Case(_at(W, 1.0, ALL), "warned"),
    "a layer of 1e-30": Case(_times(W, 1e-30), "sound"),
    "a denormal layer": Case(_times("block.conv2.weight", DENORMAL), "sound"),
    "the first layer of zeros": Case(_at("conv.weight", 0.0, ALL), "warned"),
    "the last layer of zeros": Case(_at(FC, 0.0, ALL), "warned"),
    "1e6 in a weight": Case(_at(W, 1e6), "warned"),
    "1e6 in the first weight": Case(_at("conv.weight", -1e6), "warned"),
    "1e6 in the last weight": Case(_at(FC, 1e6), "warned"),
    "1e38 in a weight": Case(_at(W, 1e38), "refused"),
    "1e38 in the last weight": Case(_at(FC, 1e38), "refused"),
    "a layer of 1e38": Case(_at(W, 1e38, ALL), "refused"),
    # batch norm
    "nan in a running variance": Case(_at("block.bn1.running_var", NAN), "refused"),
    "inf in a running mean": Case(_at("bn.running_mean", INF), "refused"),
    "nan in gamma": Case(_at("bn.weight", NAN), "refused"),
    "nan in beta": Case(_at("block.bn2.bias", NAN), "refused"),
    "a running variance of 0": Case(_at("block.bn1.running_var", 0.0), "sound"),
    "all running variances 0": Case(_at("block.bn1.running_var", 0.0, ALL), "sound"),
    "a negative running variance": Case(_at("block.bn1.running_var", -1.0), "refused"),
    "a denormal running variance": Case(_at("block.bn1.running_var", DENORMAL), "sound"),
    "a running variance of 1e38": Case(_at("block.bn1.running_var", 1e38), "sound", "warned"),
    "a running mean of 1e6": Case(_at("block.bn1.running_mean", -1e6), "warned"),
    # Its rectifier lets nothing through.
    "a running mean of 1e38": Case(_at("block.bn1.running_mean", 1e38), "sound", "warned"),
    "a running mean of -1e38": Case(_at("block.bn1.running_mean", -1e38), "refused"),
    "gamma 0 in a channel": Case(_at("block.bn1.weight", 0.0), "warned"),
    "gamma 0 in a layer": Case(_at("block.bn1.weight", 0.0, ALL), "warned"),
    "gamma 0 in the first layer": Case(_at("bn.weight", 0.0, ALL), "warned"),
    "gamma of 1e-12": Case(_at("block.bn1.weight", 1e-12), "sound"),
    "gamma of 1e6": Case(_at("block.bn1.weight", 1e6), "warned"),
    "gamma of 1e38": Case(_at("block.bn1.weight", 1e38), "refused"),
    # activations
    "dead activations": Case(_at("bn.bias", -1e3, ALL), "warned"),
    "dead activations in a block": Case(_at("block.bn1.bias", -1e3, ALL), "warned"),
    "a dead channel": Case(_at("block.bn1.bias", -1e3), "sound"),
    "constant activations": Case(lambda n: (_at("bn.weight", 0.0, ALL)(n), _at("bn.bias", 1.0, ALL)(n)), "warned"),
    # types
    "a float16 network": Case(_cast(torch.float16), "refused"),
    "a bfloat16 network": Case(_cast(torch.bfloat16), "refused"),
    "a float64 network": Case(_cast(torch.float64), "refused"),
    "a float16 layer": Case(_cast(torch.float16, "fc"), "refused"),
    "a bfloat16 layer": Case(_cast(torch.bfloat16, "block.conv2"), "refused"),
}
