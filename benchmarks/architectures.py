"""The architectures of the coverage table: the smallest variant of each family, at a small image size that it takes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import timm
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F


@dataclasses.dataclass(frozen=True)
class Architecture:
    """How to build one network with random weights, and the side of its square images in pixels."""

    family: str
    build: Callable[[], nn.Module]
    size: int
    library: str


def _vision(family: str, name: str, size: int = 64, **options: Any) -> Architecture:
    return Architecture(
        family, lambda: torchvision.models.get_model(name, weights=None, **options), size, "torchvision"
    )


def _segmenter(family: str, name: str, size: int = 64) -> Architecture:
    return _vision(family, name, size, weights_backbone=None)


def _timm(family: str, name: str, size: int = 64, **options: Any) -> Architecture:
    return Architecture(family, lambda: timm.create_model(name, pretrained=False, **options), size, "timm")


class UNet(nn.Module):
    """An encoder and a decoder with a skip connection on each of four levels."""

    def __init__(self, width: int = 8, classes: int = 5) -> None:
        super().__init__()
        widths = [width * 2**level for level in range(4)]
        self.down = nn.ModuleList(_two(3 if i == 0 else widths[i - 1], widths[i]) for i in range(4))
        self.bottom = _two(widths[-1], 2 * widths[-1])
        self.up = nn.ModuleList(nn.ConvTranspose2d(2 * w, w, 2, 2) for w in reversed(widths))
        self.merge = nn.ModuleList(_two(2 * w, w) for w in reversed(widths))
        self.head = nn.Conv2d(width, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        skips = []
        for level in self.down:
            skips.append(level(x))
            x = F.max_pool2d(skips[-1], 2)
        x = self.bottom(x)
        for up, merge in zip(self.up, self.merge, strict=True):
            x = merge(torch.cat((skips.pop(), up(x)), 1))
        return self.head(x)


def _two(channels: int, out_channels: int) -> nn.Sequential:
    def one(inputs: int) -> list[nn.Module]:
        return [nn.Conv2d(inputs, out_channels, 3, padding=1, bias=False), nn.BatchNorm2d(out_channels), nn.ReLU(True)]

    return nn.Sequential(*one(channels), *one(out_channels))


ARCHITECTURES = {
    "resnet18": _vision("ResNet", "resnet18"),
    "resnet26d": _timm("ResNet-D", "resnet26d"),
    "resnext50_32x4d": _vision("ResNeXt", "resnext50_32x4d"),
    "seresnext26d_32x4d": _timm("SE-ResNeXt", "seresnext26d_32x4d"),
    "res2net50_14w_8s": _timm("Res2Net", "res2net50_14w_8s"),
    "regnet_x_400mf": _vision("RegNet X", "regnet_x_400mf"),
    "regnet_y_400mf": _vision("RegNet Y", "regnet_y_400mf"),
    "mobilenetv1_100": _timm("MobileNet V1", "mobilenetv1_100"),
    "mobilenet_v2": _vision("MobileNet V2", "mobilenet_v2"),
    "mobilenet_v3_small": _vision("MobileNet V3", "mobilenet_v3_small"),
    "mobilenetv4_conv_small_050": _timm("MobileNet V4", "mobilenetv4_conv_small_050"),
    "mobilenetv4_hybrid_medium": _timm("MobileNet V4", "mobilenetv4_hybrid_medium", 96),
    "efficientnet_b0": _vision("EfficientNet", "efficientnet_b0"),
    "efficientnet_lite0": _timm("EfficientNet-Lite", "efficientnet_lite0"),
    "mnasnet0_5": _vision("MNASNet", "mnasnet0_5"),
    "shufflenet_v2_x0_5": _vision("ShuffleNet", "shufflenet_v2_x0_5"),
    "squeezenet1_1": _vision("SqueezeNet", "squeezenet1_1"),
    "densenet121": _vision("DenseNet", "densenet121"),
    "googlenet": _vision("Inception", "googlenet", 64, init_weights=False),
    "inception_v3": _vision("Inception", "inception_v3", 96, init_weights=False),
    "xception41": _timm("Xception", "xception41"),
    "alexnet": _vision("AlexNet", "alexnet"),
    "vgg11_bn": _vision("VGG", "vgg11_bn"),
    "ghostnet_050": _timm("GhostNet", "ghostnet_050"),
    "ghostnetv2_100": _timm("GhostNet", "ghostnetv2_100"),
    "repvgg_a0": _timm("RepVGG", "repvgg_a0"),
    "mobileone_s0": _timm("MobileOne", "mobileone_s0"),
    "repvit_m0_9": _timm("RepViT", "repvit_m0_9"),
    "hrnet_w18_small": _timm("HRNet", "hrnet_w18_small"),
    "dla34": _timm("DLA", "dla34"),
    "ese_vovnet19b_slim": _timm("VoVNet", "ese_vovnet19b_slim"),
    "cspresnet50": _timm("CSPNet", "cspresnet50"),
    "nf_regnet_b0": _timm("NFNet", "nf_regnet_b0"),
    "convnext_atto": _timm("ConvNeXt", "convnext_atto"),
    "convnextv2_atto": _timm("ConvNeXt", "convnextv2_atto"),
    "inception_next_atto": _timm("InceptionNeXt", "inception_next_atto"),
    "starnet_s050": _timm("StarNet", "starnet_s050"),
    "fastvit_t8": _timm("FastViT", "fastvit_t8"),
    "mobilevit_xxs": _timm("MobileViT", "mobilevit_xxs"),
    "mobilevitv2_050": _timm("MobileViT", "mobilevitv2_050"),
    "edgenext_xx_small": _timm("EdgeNeXt", "edgenext_xx_small"),
    "efficientformer_l1": _timm("EfficientFormer", "efficientformer_l1", 224),
    "efficientformerv2_s0": _timm("EfficientFormer", "efficientformerv2_s0", 224),
    "levit_128s": _timm("LeViT", "levit_128s", 224),
    "vit_tiny_patch16_224": _timm("ViT", "vit_tiny_patch16_224", 64, img_size=64),
    "vit_b_16": _vision("ViT", "vit_b_16", 32, image_size=32),
    "deit_tiny_patch16_224": _timm("DeiT", "deit_tiny_patch16_224", 64, img_size=64),
    "cait_xxs24_224": _timm("CaiT", "cait_xxs24_224", 64, img_size=64),
    "swin_tiny_patch4_window7_224": _timm("Swin", "swin_tiny_patch4_window7_224", 112, img_size=112),
    "swin_v2_t": _vision("Swin", "swin_v2_t", 64),
    "maxvit_pico_rw_256": _timm("MaxViT", "maxvit_rmlp_pico_rw_256", 64, img_size=64),
    "coatnet_pico_rw_224": _timm("CoAtNet", "coatnet_pico_rw_224", 64, img_size=64),
    "xcit_nano_12_p16_224": _timm("XCiT", "xcit_nano_12_p16_224", 64),
    "eva02_tiny_patch14_224": _timm("EVA", "eva02_tiny_patch14_224", 56, img_size=56),
    "pvt_v2_b0": _timm("PVT", "pvt_v2_b0"),
    "poolformer_s12": _timm("PoolFormer", "poolformer_s12"),
    "mixer_s32_224": _timm("MLP-Mixer", "mixer_s32_224", 64, img_size=64),
    "unet": Architecture("U-Net", UNet, 64, "benchmarks/architectures.py"),
    "fcn_resnet50": _segmenter("FCN", "fcn_resnet50"),
    "deeplabv3_mobilenet_v3_large": _segmenter("DeepLab", "deeplabv3_mobilenet_v3_large"),
    "lraspp_mobilenet_v3_large": _segmenter("LR-ASPP", "lraspp_mobilenet_v3_large"),
    "resnet18_features": _timm("several outputs", "resnet18", 64, features_only=True),
}
