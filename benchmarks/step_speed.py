"""How much faster a calibration step and a whole run are than the reference code, and how far from what is possible.

    python benchmarks/step_speed.py                    # one thread, CPU time; half an hour
    python benchmarks/step_speed.py --device cuda      # CUDA events, after a round that only warms up
    python benchmarks/step_speed.py --quick            # whether it works; the numbers mean nothing

ResNet-20, W2A2, batch 32, random images.  The reference is ``reference_step.py``, clcalib runs through its public API;
both, and clcalib with the contrastive term, take turns in one process, and the smallest time of each unit counts.  A
step's time is that between the first and the last step of a unit.  The floor is the time of a unit's convolutions at
the rate of a large matrix product, that of bf16 where convolutions run in bf16; the classifier has none.  Writes
``benchmarks/results/step_speed.json``.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from statistics import geometric_mean, mean
from typing import Any
from unittest import mock

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

import clcalib
import reference_step as reference
from clcalib.fused import calls, device
from common import commit, provenance, resnet20, write_result
from step_clock import Clock, StepTimer
from step_floor import ConvolutionTypes, rates, unit_operations

CONTRASTIVE: dict[str, dict[str, Any]] = {
    "interval=1": {"interval": 1, "images": "all"},
    "interval=4": {"interval": 4, "images": "all"},
    "interval=8": {"interval": 8, "images": "all"},
    "interval=4, images=8": {"interval": 4, "images": 8},
    "interval=4, images=4": {"interval": 4, "images": 4},
    "interval=8, images=8": {"interval": 8, "images": 8},
}
ON_PREDICTION = "on the prediction difference"  # of pd_quant, which reads the rest of the network at every step
PLAIN = "without compiled passes"
STEPS = 57  # 56 are timed: whole numbers of the intervals
DEVICE_STEPS = 401  # there the first are not timed, in which steps are recorded (``step_clock.py``)
EXTRAPOLATED = (2_000, 20_000)
BITS = 2
Times = dict[str, float]  # by unit, milliseconds a step


@dataclasses.dataclass(frozen=True)
class Settings:
    steps: int
    rounds: int
    images: int
    run_steps: int
    run_images: int
    device: str
    is_quick: bool = False


def random_images(count: int, device: str) -> torch.Tensor:
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(0)).to(device)


def float_network() -> torch.nn.Module:
    torch.manual_seed(0)
    return resnet20().eval()


def run_ours(images: torch.Tensor, recipe: clcalib.Recipe, device: str, observer: Any = None) -> None:
    calibration = clcalib.CalibrationSet.from_tensor(images.cpu())
    bits = clcalib.Bits(BITS, BITS)
    settings = {"recipe": recipe, "bits": bits, "measured_images": 0, "device": device, "observer": observer}
    clcalib.quantize(float_network(), calibration, **settings)


def _unavailable(*arguments: Any) -> bool:
    return False


@contextlib.contextmanager
def plain_passes() -> Iterator[None]:
    """As on a machine without a compiler (or, on a GPU, without Triton)."""
    with contextlib.ExitStack() as stack:
        for module, name in ((calls, "is_available"), (calls, "has_weight_gradient"), (device, "is_available")):
            stack.enter_context(mock.patch.object(module, name, _unavailable))
        yield


def run_reference(names: list[str], network: torch.nn.Sequential, images: torch.Tensor, steps: int, timer: Any) -> None:
    """The steps alone: ranges are there already, and caches move on from unit to unit."""
    network, quantized, floats = copy.deepcopy(network), images, images
    for name, unit in zip(names, network, strict=True):
        reference.set_quantized(unit, False)
        target = in_batches(unit, floats)
        reference.set_quantized(unit, True)
        reference.reconstruct(unit, (quantized, floats, target), steps, lambda step, name=name: timer(name, step))
        quantized, floats = in_batches(unit, quantized), target


@torch.no_grad()
def in_batches(unit: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
    return torch.cat([unit(batch) for batch in x.split(reference.BATCH)])


def measure_steps(settings: Settings, clock: Clock) -> tuple[dict[str, Times], dict[str, float]]:
    """The least milliseconds a step by method and unit, and the operations of a step by unit."""
    images = random_images(settings.images, settings.device)
    names, network = reference.build(float_network().to(settings.device), images, BITS)
    recipes = {"qdrop": clcalib.recipes.qdrop(steps=settings.steps)}
    recipes |= {name: clcalib.with_contrastive(recipes["qdrop"], **more) for name, more in CONTRASTIVE.items()}
    predicting = clcalib.recipes.pd_quant(steps=settings.steps, correction_steps=0)  # the correction is in no step
    recipes |= {"pd_quant": predicting, ON_PREDICTION: clcalib.with_contrastive(predicting)}
    best: dict[str, Times] = {}
    for number in range(-1 if clock.is_cuda else 0, settings.rounds):
        timers = {name: StepTimer(clock) for name in ("reference", *recipes, PLAIN)}
        run_reference(names, network, images, settings.steps, timers["reference"].unit_step)
        for name, recipe in recipes.items():
            run_ours(images, recipe, settings.device, timers[name])
        with plain_passes():
            run_ours(images, recipes["qdrop"], settings.device, timers[PLAIN])
        for name, timer in timers.items():
            times = timer.milliseconds
            assert list(times) == names, f"the units of {name} are {list(times)}"
            if number >= 0:
                row = best.setdefault(name, times)
                best[name] = {unit: min(row[unit], value) for unit, value in times.items()}
    return best, unit_operations(names, network, images[: reference.BATCH])


def measure_runs(settings: Settings, clock: Clock) -> dict[str, Any]:
    """Seconds from the float to the quantized network; those of longer runs follow from fixed part and steps."""
    images, steps = random_images(settings.run_images, settings.device), settings.run_steps
    seconds: dict[str, dict[str, float]] = {}
    for name in ("reference", "clcalib", "fast"):
        timer, first = StepTimer(clock), clock.mark()
        if name == "reference":
            reference.calibrate(float_network().to(settings.device), images, steps, timer.unit_step)
        else:
            recipe = clcalib.recipes.fast() if name == "fast" else clcalib.recipes.qdrop(steps=steps)
            run_ours(images, recipe, settings.device, timer)
        total = clock.milliseconds(first, clock.mark()) / 1e3
        if name == "fast":  # with the steps that it has
            seconds[name] = {"total": total}
            break
        per_step = sum(timer.milliseconds.values()) / 1e3
        fixed = total - steps * per_step
        seconds[name] = {"total": total, "fixed": fixed, "one_step_of_all_units": per_step}
        seconds[name] |= {f"extrapolated_to_{count}": fixed + count * per_step for count in EXTRAPOLATED}
    keys = ["total", *(f"extrapolated_to_{count}" for count in EXTRAPOLATED)]
    ratios = {key: round(seconds["reference"][key] / seconds["clcalib"][key], 3) for key in keys}
    share = seconds["fast"]["total"] / seconds["reference"]["extrapolated_to_2000"]
    return {
        "steps": steps,
        "images": settings.run_images,
        "fast_as_share_of_2000_reference_steps": round(share, 4),
        "whole_run_speedup": ratios["total"],
        "speedup_extrapolated": {str(count): ratios[f"extrapolated_to_{count}"] for count in EXTRAPOLATED},
        "seconds": {name: rounded(row, 4) for name, row in seconds.items()},
    }


def convolution_types(settings: Settings) -> dict[str, int]:
    """How many convolutions ran in which type, in a few steps of clcalib; its first type is the common one."""
    watch = ConvolutionTypes()
    run_ours(random_images(64, settings.device), clcalib.recipes.qdrop(steps=5), settings.device, watch)
    return dict(watch.counts.most_common())


def operators(settings: Settings) -> list[dict[str, Any]]:
    """The operators of the reference's steps by their own time."""
    images = random_images(64, settings.device)
    names, network = reference.build(float_network().to(settings.device), images, BITS)
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if settings.device.startswith("cuda") else [])
    with profile(activities=activities) as profiler:
        run_reference(names, network, images, min(STEPS, settings.steps), lambda name, step: None)
    field = "self_cpu_time_total" if len(activities) == 1 else "self_device_time_total"
    # Not the kernels that stand beside their operators.
    rows = [row for row in profiler.key_averages() if row.device_type == DeviceType.CPU]
    rows.sort(key=lambda row: -getattr(row, field))
    total = sum(getattr(row, field) for row in rows)
    return [{"operator": row.key, "share": round(getattr(row, field) / total, 4)} for row in rows[:16]]


def summary(
    times: Mapping[str, Times], operations: Times, speed: Mapping[str, Any], ran: Iterable[str]
) -> dict[str, Any]:
    ours, theirs = times["qdrop"], times["reference"]
    floors = {kind: {unit: count / rate / 1e6 for unit, count in operations.items()} for kind, rate in speed.items()}
    fractions = {kind: geometric_mean(row[unit] / ours[unit] for unit in row) for kind, row in floors.items()}
    headline = next(iter(ran), "fp32")
    overhead = {name: mean(times[name][unit] / ours[unit] for unit in ours) for name in CONTRASTIVE}
    overhead[ON_PREDICTION] = mean(times[ON_PREDICTION][unit] / times["pd_quant"][unit] for unit in ours)
    without_passes = geometric_mean(times[PLAIN][unit] / ours[unit] for unit in ours)
    units = {
        unit: {
            "reference_ms": round(theirs[unit], 3),
            "ours_ms": round(ours[unit], 3),
            "speedup": round(theirs[unit] / ours[unit], 3),
            "convolution_gflop": round(operations.get(unit, 0.0) / 1e9, 4),
            **{f"floor_{kind}_ms": round(row.get(unit, 0.0), 3) for kind, row in floors.items()},
            **{f"contrastive_{name}_ms": round(times[name][unit], 3) for name in CONTRASTIVE},
        }
        for unit in ours
    }
    return {
        "geomean_speedup": round(geometric_mean(theirs[unit] / ours[unit] for unit in ours), 3),
        "fraction_of_floor": round(fractions[headline], 3),
        "fraction_of_floor_rate": headline,
        "fraction_of_floor_by_rate": rounded(fractions, 3),
        "contrastive_overhead": rounded(overhead, 3),
        "times_as_fast_as_without_compiled_passes": round(without_passes, 3),
        "units": units,
    }


def rounded(row: Mapping[str, float], digits: int) -> dict[str, float]:
    return {name: round(value, digits) for name, value in row.items()}


def show(result: Mapping[str, Any]) -> None:
    kind = result["fraction_of_floor_rate"]
    print(f"{'unit':10} {'reference ms':>12} {'ours ms':>9} {'speedup':>8} {f'floor ms, {kind}':>15}")
    for unit, row in result["units"].items():
        cells = f"{row['reference_ms']:12.2f} {row['ours_ms']:9.2f} {row['speedup']:8.2f}"
        print(f"{unit:10} {cells} {row[f'floor_{kind}_ms']:15.2f}")
    for name in (
        "geomean_speedup",
        "times_as_fast_as_without_compiled_passes",
        "fraction_of_floor_by_rate",
        "contrastive_overhead",
        "gflop_per_second",
    ):
        print(f"{name}: {result[name]}")
    for name in ("convolution_types", "whole_run"):
        print(f"{name}: {result[name]}")


def read_arguments() -> Settings:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--run-steps", type=int, default=1000, help="steps for each unit of the whole run")
    parser.add_argument("--quick", action="store_true", help="a smoke run, which writes no result")
    given = parser.parse_args()
    is_cuda = torch.device(given.device).type == "cuda"
    if given.quick:
        few = DEVICE_STEPS if is_cuda else 9
        return Settings(few, 1, 64, few, 64, given.device, is_quick=True)
    return Settings(DEVICE_STEPS if is_cuda else STEPS, given.rounds, 256, given.run_steps, 1024, given.device)


def main() -> None:
    at_start = commit()
    settings = read_arguments()
    torch.set_num_threads(1)
    clock = Clock(settings.device)
    times, operations = measure_steps(settings, clock)
    ran, speed, whole = convolution_types(settings), rates(clock), measure_runs(settings, clock)
    result = {
        **summary(times, operations, speed["matrix"], ran),
        "whole_run_speedup": whole["whole_run_speedup"],
        "whole_run": whole,
        "gflop_per_second": speed,
        "convolution_types": ran,
        "operators_of_the_reference": operators(settings),
        "batch": reference.BATCH,
        **dataclasses.asdict(settings),
        **provenance(commit=at_start, device=clock.name(), seed=0),
    }
    if not settings.is_quick:
        print(write_result("step_speed_cuda" if clock.is_cuda else "step_speed", result))
    show(result)


if __name__ == "__main__":
    main()
