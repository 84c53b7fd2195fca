"""What is compared: the peers, their versions and methods, the widths, and how each was used.  Needs no library."""

from __future__ import annotations

import dataclasses
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
VENVS = FOLDER / ".venvs"
RESULTS = FOLDER.parent / "results" / "peers"
TORCH = "torch==2.13.0"

Widths = tuple[int, int]  # weights, activations
WIDTHS: tuple[Widths, ...] = ((8, 8), (4, 8), (4, 4), (2, 4), (2, 2))
ACADEMIC = "academic"  # inputs of convolutions and of the classifier
RELU = "outputs of ReLU"
OWN = "its own"


@dataclasses.dataclass(frozen=True)
class Method:
    """One way to use a peer.

    Args:
        settings: what was chosen, for the page.
        widths: those it can do.
        otherwise: why it cannot do the others.
    """

    title: str
    settings: str
    widths: tuple[Widths, ...] = WIDTHS
    otherwise: str = ""


@dataclasses.dataclass(frozen=True)
class Peer:
    """A library; ``module`` is its adapter, ``requirements`` are empty where it runs in the harness's environment."""

    title: str
    requirements: tuple[str, ...]
    placement: str
    where: str
    methods: dict[str, Method]
    did_not_run: str = ""


PEERS: dict[str, Peer] = {
    "ours": Peer(
        "clcalib",
        (),
        ACADEMIC,
        "the image and shortcuts stay float; weights asymmetric, a scale for each channel",
        {
            "nearest": Method("nearest", "ranges by squared error, no optimisation"),
            "fast": Method("fast", "as by default: 200 steps for each unit"),
            "qdrop": Method("QDrop", "2,000 steps for each unit"),
        },
    ),
    "brevitas": Peer(
        "Brevitas",
        (TORCH, "brevitas==0.13.4"),
        ACADEMIC,
        "its layerwise back end; the image and shortcuts stay float; weights asymmetric, a scale for each channel",
        {
            "gptq": Method("GPTQ", "ranges by squared error, activation order, quantized inputs, bias correction"),
            "gpfq": Method("GPFQ", "ranges by squared error, activation order, bias correction"),
        },
    ),
    "onnxruntime": Peer(
        "ONNX Runtime",
        (TORCH, "onnxruntime==1.32.0", "onnx==1.23.2", "onnxscript==0.7.2"),
        ACADEMIC,
        "QDQ at the inputs of Conv and Gemm only, the image with 8 bits; weights symmetric, a scale for each channel",
        {
            name: Method(title, "static, per channel", ((8, 8), (4, 8), (4, 4)), "has types of 4, 8 and 16 bits")
            for name, title in (("minmax", "min/max"), ("entropy", "entropy"))
        },
    ),
    "mct": Peer(
        "Sony MCT",
        (TORCH, "torchvision==0.28.0", "model-compression-toolkit==2.6.1"),
        RELU,
        "a platform description made for this table: outputs of ReLU, so shortcuts read quantized values too; the "
        "image with 8 bits; weights asymmetric, a scale for each channel",
        {
            "ptq": Method("PTQ", "ranges by squared error, bias correction (its defaults)"),
            "gptq": Method("GPTQ (gradients)", "its defaults, 5 epochs as in the example of its documentation"),
        },
    ),
    "nncf": Peer(
        "NNCF",
        (TORCH, "nncf==3.4.0"),
        OWN,
        "its rules for any device: the image and the inputs of additions with 8 bits too",
        {"default": Method("default", "preset mixed, fast bias correction", ((8, 8),), "its PyTorch flow has 8 bits")},
    ),
    "aimet": Peer(
        "AIMET",
        (TORCH, "torchvision==0.28.0", "aimet-torch==2.42.0"),
        ACADEMIC,
        "input quantizers of layers; the image and shortcuts stay float; weights symmetric, a scale for each channel",
        {
            "seqmse": Method("SeqMSE", "20 candidates"),
            "adaround": Method("AdaRound", "1,000 iterations for each layer; its default is 10,000 to 15,000"),
        },
    ),
    "torchao": Peer(
        "torchao PT2E",
        (TORCH, "numpy", "torchao==0.18.0"),
        OWN,
        "X86InductorQuantizer: the image and the inputs of additions with 8 bits too",
        {"default": Method("default", "histogram ranges", ((8, 8),), "its quantizer for x86 has 8 bits")},
    ),
    "modelopt": Peer(
        "NVIDIA Model Optimizer",
        (TORCH, "numpy", "requests", "huggingface_hub", "nvidia-modelopt==0.47.0"),
        ACADEMIC,
        "the image and shortcuts stay float; batch norm is not folded; weights symmetric, a scale for each channel",
        {
            "max": Method("max", "its INT8 recipe with unsigned inputs; it recommends 8 bits only for CNNs"),
            "mse": Method("mse", "ranges of weights by squared error, those of inputs by maximum"),
        },
    ),
}


def name_of(peer: str, method: str, widths: Widths, seed: int) -> str:
    return f"{peer}-{method}-w{widths[0]}a{widths[1]}-seed{seed}"


def title_of(widths: Widths) -> str:
    return f"W{widths[0]}A{widths[1]}"
