"""Train the demonstration ResNet-20 on CIFAR-10 and write its weights with their provenance.

    python examples/train_demo_network.py --data DATA --out examples/demo

DATA is what ``clcalib data cifar10`` brings.  The recipe (SGD with Nesterov momentum, linear warm-up, cosine to zero,
crop and flip) is in ``Recipe``; the last epoch is taken, and the test images are looked at once, after it.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import platform
import time
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from clcalib.data.cifar10 import read_cifar10
from demo_network import MEAN, STANDARD_DEVIATION, resnet20


@dataclasses.dataclass(frozen=True)
class Recipe:
    epochs: int = 50
    batch_size: int = 128
    peak_rate: float = 0.15
    warmup_epochs: float = 3.0
    momentum: float = 0.9
    weight_decay: float = 5e-4
    crop_padding: int = 4
    autocast: str = "bfloat16"
    seed: int = 0


def normalise(images: Tensor) -> Tensor:  # (N, 3, 32, 32) uint8 -> float32
    mean = torch.tensor(MEAN).view(1, 3, 1, 1)
    deviation = torch.tensor(STANDARD_DEVIATION).view(1, 3, 1, 1)
    return (images.float() / 255 - mean) / deviation


def augment(images: Tensor, padding: int, generator: torch.Generator) -> Tensor:
    """Crop each image at its own place from its zero-padded self; mirror half of them."""
    count, _, height, width = images.shape
    padded = F.pad(images, (padding,) * 4)
    top, left = (torch.randint(0, 2 * padding + 1, (count, 1), generator=generator) for _ in range(2))
    rows = top + torch.arange(height)
    columns = left + torch.arange(width)
    mirrored = torch.rand(count, 1, generator=generator) < 0.5
    columns = torch.where(mirrored, columns.flip(1), columns)
    index = torch.arange(count)[:, None, None]
    return padded.permute(0, 2, 3, 1)[index, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def rate_at(progress: float, recipe: Recipe) -> float:  # progress in epochs
    if progress < recipe.warmup_epochs:
        return recipe.peak_rate * progress / recipe.warmup_epochs
    share = (progress - recipe.warmup_epochs) / (recipe.epochs - recipe.warmup_epochs)
    return recipe.peak_rate * 0.5 * (1 + math.cos(math.pi * share))


def optimizer_of(model: nn.Module, recipe: Recipe) -> torch.optim.SGD:
    decayed = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    return torch.optim.SGD(
        [{"params": decayed, "weight_decay": recipe.weight_decay}, {"params": others, "weight_decay": 0.0}],
        lr=0.0,
        momentum=recipe.momentum,
        nesterov=True,
        fused=True,
    )


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """Keeps the state after every epoch in a file, so that a training that was stopped goes on there."""

    file: Path | None

    def save(self, epoch: int, model: nn.Module, optimizer: torch.optim.SGD, generator: torch.Generator) -> None:
        if self.file is not None:
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "epoch": epoch + 1}
            torch.save(state | {"generator": generator.get_state()}, self.file.with_suffix(".new"))
            self.file.with_suffix(".new").replace(self.file)

    def load(self, model: nn.Module, optimizer: torch.optim.SGD, generator: torch.Generator) -> int:
        """Return the epoch to go on with."""
        if self.file is None or not self.file.exists():
            return 0
        state = torch.load(self.file, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        generator.set_state(state["generator"])
        return int(state["epoch"])


def train(model: nn.Module, images: Tensor, labels: Tensor, recipe: Recipe, checkpoint: Path | None = None) -> None:
    generator = torch.Generator().manual_seed(recipe.seed)
    optimizer, kept = optimizer_of(model, recipe), Checkpoint(checkpoint)
    steps = len(images) // recipe.batch_size
    for epoch in range(kept.load(model, optimizer, generator), recipe.epochs):
        start, total, correct = time.time(), 0.0, 0
        order = torch.randperm(len(images), generator=generator)
        for step in range(steps):
            for group in optimizer.param_groups:
                group["lr"] = rate_at(epoch + step / steps, recipe)
            index = order[step * recipe.batch_size : (step + 1) * recipe.batch_size]
            batch = augment(normalise(images[index]), recipe.crop_padding, generator)
            with torch.autocast("cpu", torch.bfloat16, enabled=recipe.autocast == "bfloat16"):
                logits = model(batch.contiguous(memory_format=torch.channels_last))
            loss = F.cross_entropy(logits.float(), labels[index])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item()
            correct += int((logits.argmax(1) == labels[index]).sum())
        accuracy = correct / (steps * recipe.batch_size)
        print(
            f"epoch {epoch + 1}: loss {total / steps:.3f} train {accuracy:.4f} {time.time() - start:.0f} s", flush=True
        )
        kept.save(epoch, model, optimizer, generator)


@torch.no_grad()
def test_accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    model.eval()
    predictions = torch.cat([model(normalise(part)).argmax(1) for part in images.split(500)])
    return float((predictions == labels).double().mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with the CIFAR-10 sheets")
    parser.add_argument("--out", type=Path, required=True, help="folder for resnet20.safetensors and resnet20.json")
    parser.add_argument("--epochs", type=int, default=Recipe.epochs)
    parser.add_argument("--seed", type=int, default=Recipe.seed)
    arguments = parser.parse_args()
    recipe = Recipe(epochs=arguments.epochs, seed=arguments.seed)
    torch.manual_seed(recipe.seed)
    model = resnet20().to(memory_format=torch.channels_last)
    start = time.time()
    train(model, *read_cifar10(arguments.data, "train"), recipe)
    model = model.to(memory_format=torch.contiguous_format)
    accuracy = test_accuracy(model, *read_cifar10(arguments.data, "test"))
    arguments.out.mkdir(parents=True, exist_ok=True)
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, arguments.out / "resnet20.safetensors")
    record = {
        "network": "resnet20",
        "test_accuracy": accuracy,
        "test_images": 10000,
        "recipe": dataclasses.asdict(recipe),
        "seconds": round(time.time() - start),
        "torch": torch.__version__,
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
    }
    (arguments.out / "resnet20.json").write_text(json.dumps(record, indent=2) + "\n")
    print(f"test accuracy {accuracy:.4f}")


if __name__ == "__main__":
    main()
