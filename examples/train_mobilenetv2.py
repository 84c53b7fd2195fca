"""Train the MobileNetV2 of the study on CIFAR-10 and write its weights, as float16, with their provenance.

    python examples/train_mobilenetv2.py --data DATA --out benchmarks/networks

About half an hour of one core.  The weights are rounded to float16 *before* the test images are looked at.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import platform
from pathlib import Path

import torch
from safetensors.torch import save_file

from clcalib.data.cifar10 import read_cifar10
from mobilenetv2 import mobilenetv2
from train_demo_network import Recipe, test_accuracy, train

# Convolutions of few channels are no faster in bfloat16.
RECIPE = Recipe(epochs=16, peak_rate=0.2, warmup_epochs=4.0, weight_decay=2e-4, autocast="float32")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with the CIFAR-10 sheets")
    parser.add_argument("--out", type=Path, required=True, help="folder for mobilenetv2.safetensors and .json")
    parser.add_argument("--epochs", type=int, default=RECIPE.epochs)
    parser.add_argument("--checkpoint", type=Path, help="file that a stopped training goes on from")
    arguments = parser.parse_args()
    recipe = dataclasses.replace(RECIPE, epochs=arguments.epochs)
    torch.manual_seed(recipe.seed)
    model = mobilenetv2().to(memory_format=torch.channels_last)
    train(model, *read_cifar10(arguments.data, "train"), recipe, arguments.checkpoint)
    model = model.to(memory_format=torch.contiguous_format)
    floats = {name: tensor for name, tensor in model.state_dict().items() if tensor.is_floating_point()}
    halves = {name: tensor.half().contiguous() for name, tensor in floats.items()}
    model.load_state_dict({name: half.float() for name, half in halves.items()}, strict=False)
    accuracy = test_accuracy(model, *read_cifar10(arguments.data, "test"))
    arguments.out.mkdir(parents=True, exist_ok=True)
    save_file(halves, arguments.out / "mobilenetv2.safetensors")
    record = {
        "network": "mobilenetv2",
        "test_accuracy": accuracy,
        "test_images": 10000,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "recipe": dataclasses.asdict(recipe),
        "torch": torch.__version__,
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
    }
    (arguments.out / "mobilenetv2.json").write_text(json.dumps(record, indent=2) + "\n")
    print(f"test accuracy {accuracy:.4f}")


if __name__ == "__main__":
    main()
