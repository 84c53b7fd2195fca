"""The newcomer's test: from a clean clone to one's own quantized network, by what README.md and docs/start.md say.

    python benchmarks/newcomer.py              # clones, sets up, runs every command; benchmarks/results/newcomer.json
    python benchmarks/newcomer.py --count      # reading and typing alone, in a moment

The commands and files are the fenced blocks of docs/start.md, in their order.  Someone who reads 200 words and types
200 characters a minute reads README.md down to what is for later, and the page, and types everything in it, the code of
the network included, although that is there already.  Reading and typing down to the first own quantized network must
take less than ten minutes; what the machine takes is told beside it.

Only what a newcomer brings is made here: a trained network, images of its two classes, and the training itself.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from common import ROOT, provenance, write_result

sys.path.insert(0, str(ROOT))

from tests.docs.blocks import FENCE, blocks

README, PAGE = ROOT / "README.md", ROOT / "docs" / "start.md"
WORDS_A_MINUTE = CHARACTERS_A_MINUTE = 200
MOST_MINUTES = 10.0
FOR_LATER = "\n## What to choose"  # the first part of README.md that a newcomer leaves out
CLONE = "git clone ADDRESS clcalib\ncd clcalib\n"
GOAL = "clcalib quantize"  # the first of these leaves the first own quantized network
_TRAINING = "# and then it is trained"
_TRAINED = "; import brought; brought.train(model)"

# What a newcomer has: images of two classes, and a training.  The classes are stripes, upright and lying, under noise.
BROUGHT = '''
import torch
from PIL import Image
from pathlib import Path

MEAN, DEVIATION = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])


def pixels(count, seed):
    """Images (N, 32, 32, 3) of bytes and their classes."""
    generator = torch.Generator().manual_seed(seed)
    classes = torch.arange(count) % 2
    wave = torch.sin(torch.arange(32) * 0.7 + 6.3 * torch.rand(count, 1, generator=generator))
    upright, lying = wave[:, None, :].expand(-1, 32, -1), wave[:, :, None].expand(-1, -1, 32)
    shape = torch.where(classes.view(-1, 1, 1) == 0, lying, upright)[..., None]
    noise = torch.randn(count, 32, 32, 3, generator=generator)
    return (128 + 25 * shape + 50 * noise).clamp(0, 255).byte(), classes


def bring(folder):
    images, _ = pixels(256, 1)
    labelled, classes = pixels(400, 2)
    for name in ("images", "labelled-images/lying", "labelled-images/upright"):
        (folder / name).mkdir(parents=True)
    for number, image in enumerate(images):
        Image.fromarray(image.numpy()).save(folder / "images" / f"{number}.png")
    for number, (image, which) in enumerate(zip(labelled, classes)):
        place = folder / "labelled-images" / ("lying", "upright")[which]
        Image.fromarray(image.numpy()).save(place / f"{number}.png")


def train(model):
    torch.manual_seed(0)
    images, classes = pixels(1024, 3)
    inputs = ((images / 255 - MEAN) / DEVIATION).permute(0, 3, 1, 2)
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    for start in [*range(0, 1024, 64)] * 3:
        optimizer.zero_grad()
        chosen = slice(start, start + 64)
        torch.nn.functional.cross_entropy(model(inputs[chosen]), classes[chosen]).backward()
        optimizer.step()
    model.eval()


if __name__ == "__main__":
    bring(Path())
'''


@dataclasses.dataclass
class Stage:
    """A part of the way.

    Attributes:
        name: its heading.
        words: to read; characters: to type, in commands or in files.
        script: the shell commands that do it.
        waiting: seconds that they took, or None.
    """

    name: str
    words: int
    commands: int
    files: int
    script: str
    waiting: float | None = None

    @property
    def reading(self) -> float:
        """Minutes."""
        return self.words / WORDS_A_MINUTE

    @property
    def typing(self) -> float:
        """Minutes."""
        return (self.commands + self.files) / CHARACTERS_A_MINUTE


def stages() -> list[Stage]:
    """The way as the pages say it: the README and the clone, then each part of the page."""
    beginning = README.read_text(encoding="utf-8").split(FOR_LATER)[0]
    found = [Stage("README.md, and the clone", words(beginning), len(CLONE), 0, "")]
    text = PAGE.read_text(encoding="utf-8")
    starts = [0, *(match.start() + 1 for match in re.finditer(r"\n## ", text)), len(text)]
    for start, end in itertools.pairwise(starts):
        first, last = text.count("\n", 0, start), text.count("\n", 0, end)
        own = [block for block in blocks(PAGE) if first < block.line <= last + 1]
        commands = [block.code for block in own if block.language == "console"]
        files = [block.code for block in own if block.title is not None]
        script = "".join(block.code if block.title is None else written(block.title, block.code) for block in own)
        name = text[start:end].splitlines()[0].lstrip("# ")
        found.append(Stage(name, words(text[start:end]), *(sum(map(len, each)) for each in (commands, files)), script))
    return found


def words(text: str) -> int:
    """Words outside of fenced blocks and comments."""
    return len(re.sub(r"<!--.*?-->", "", FENCE.sub("", text), flags=re.DOTALL).split())


def written(name: str, code: str) -> str:
    """Shell that writes a file and runs it, with the training where the page says that one is."""
    return f"cat >{name} <<'END_OF_FILE'\n{code.replace(_TRAINING, _TRAINED)}END_OF_FILE\npython {name}\n"


def up_to_the_goal(way: list[Stage]) -> list[Stage]:
    """Everything down to the part that leaves the first own quantized network."""
    last = next(number for number, stage in enumerate(way) if GOAL in stage.script)
    return way[: last + 1]


def walk(way: list[Stage], folder: Path) -> None:
    """Clone the commit that is checked out, and do each stage in one shell, as one would."""
    clone = CLONE.replace("ADDRESS", f"--quiet {ROOT}")
    script = f"set -e\ncd {folder}\n{clone}cat >brought.py <<'END_OF_FILE'\n{BROUGHT}END_OF_FILE\n"
    script += 'exec 3>>"$CLOCK"\ndate +%s.%N >&3\n'
    for stage in way[1:]:
        # The images are there when they are needed; their making is no part of the way.
        making = "python brought.py\n" if "brought" in stage.script else ""
        script += f"{making}date +%s.%N >&3\n{stage.script}date +%s.%N >&3\n"
    clock = folder / "clock"
    hidden = ("PYTHONPATH", "VIRTUAL_ENV")
    environment = {name: value for name, value in os.environ.items() if name not in hidden} | {"CLOCK": str(clock)}
    done = subprocess.run(["bash", "-c", script], env=environment)
    if done.returncode != 0:
        raise SystemExit(f"the way of {PAGE.name} ends with exit code {done.returncode}; see above")
    moments = [float(line) for line in clock.read_text().split()]
    for number, stage in enumerate(way[1:]):
        stage.waiting = moments[2 + 2 * number] - moments[1 + 2 * number]


def accuracies(folder: Path) -> dict[str, float]:
    """Of the first own quantized network; it must have learned its task and kept it."""
    record = json.loads((folder / "clcalib" / "runs" / "first" / "run.json").read_text())
    found = {name: record[name] for name in ("float_top1", "nearest_top1", "quantized_top1")}
    if not found["float_top1"] > 0.9 or not found["quantized_top1"] > found["float_top1"] - 0.05:
        raise SystemExit(f"the network that was quantized is no good: {found}")
    return found


def result_of(way: list[Stage]) -> dict[str, object]:
    """The sums, and each stage."""
    first = up_to_the_goal(way)
    table = [dataclasses.asdict(stage) for stage in way]
    for row in table:
        del row["script"]
    sums = {
        "reading_minutes": sum(stage.reading for stage in first),
        "typing_minutes": sum(stage.typing for stage in first),
        "typing_minutes_without_the_network": sum(stage.commands for stage in first) / CHARACTERS_A_MINUTE,
        "whole_page_minutes": sum(stage.reading + stage.typing for stage in way),
    }
    if all(stage.waiting is not None for stage in first[1:]):
        sums["waiting_minutes"] = sum(stage.waiting or 0.0 for stage in first) / 60
    return {"words_a_minute": WORDS_A_MINUTE, "characters_a_minute": CHARACTERS_A_MINUTE, **sums, "stages": table}


def show(way: list[Stage], result: dict[str, object]) -> None:
    """Print the table."""
    print(f"{'':<34}{'words':>7}{'typed':>7}{'reading':>9}{'typing':>8}{'waiting':>9}")
    goal = up_to_the_goal(way)[-1]
    for stage in way:
        waiting = "" if stage.waiting is None else f"{stage.waiting / 60:.1f} min"
        typed = stage.commands + stage.files
        print(f"{stage.name[:33]:<34}{stage.words:>7}{typed:>7}{stage.reading:>9.1f}{stage.typing:>8.1f}{waiting:>9}")
        if stage is goal:
            print(f"{'- your first quantized network -':<48}{result['reading_minutes']:>9.1f}", end="")
            waited = result.get("waiting_minutes")
            print(f"{result['typing_minutes']:>8.1f}" + ("" if waited is None else f"{f'{waited:.1f} min':>9}"))


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    arguments.add_argument("--count", action="store_true", help="count reading and typing; run nothing")
    is_counted = arguments.parse_args().count
    way, more = stages(), {}
    if not is_counted:
        with tempfile.TemporaryDirectory() as folder:
            walk(way, Path(folder))
            more = accuracies(Path(folder))
    result = result_of(way) | more
    show(way, result)
    if not is_counted:
        write_result("newcomer", {"provenance": provenance(), **result})
    taken = float(str(result["reading_minutes"])) + float(str(result["typing_minutes"]))
    print(f"\nreading and typing: {taken:.1f} minutes of {MOST_MINUTES:g}")
    if taken >= MOST_MINUTES:
        raise SystemExit(f"README.md and {PAGE.name} ask for more than {MOST_MINUTES:g} minutes: shorten them")


if __name__ == "__main__":
    main()
