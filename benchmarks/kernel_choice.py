"""Why the elementwise passes of a calibration step are C++: the same passes by five ways of compiling them.

    python benchmarks/kernel_choice.py     # a few minutes; Numba takes part where it is installed

One thread, CPU time, least of many rounds in which the ways take turns.  ``plain`` is quant/functional.py with
torch.where, ``passes`` is quant/passes.py, ``inductor`` is torch.compile of one elementwise function for each
direction, ``numba`` the loops of kernels.cpp in Python (it has no bfloat16), ``c++`` is clcalib.fused.  All draw
QDrop's mask by the same counter, and all have to give the same results.  What the first use costs is measured in
processes of their own, with empty caches and then with full ones, behind ``import torch``; compilers count, one at a
time.  Writes ``benchmarks/results/kernel_choice.json``.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from clcalib.fused import soft, squared
from clcalib.fused.draws import Draw, keep_mask
from clcalib.quant import functional, kernels, passes
from common import provenance, write_result

Q_MIN, Q_MAX, SCALE = 0, 3, 0.37  # a scale that puts no bfloat16 on the edge of the range
BETA = 5.0  # at larger ones, float32 itself is further from the exact gradient than the tolerance (7.5: 1.5e-6)
BATCH = 32
DRAW = Draw(123_456_789, 2_987_654_321, 128)
SIZES, WEIGHTS, FEW, CALLS, ROUNDS = (131_072, 524_288), 36_864, 64, 100, 40
TOLERANCE = 1e-6
ZERO = torch.tensor(0.0)
U32, F32, BLOCK = np.uint32, np.float32, 2048  # of the loops for Numba
Function = Callable[..., Tensor]


@dataclasses.dataclass(frozen=True)
class Way:
    """How the functions are compiled; a missing one is that of ``plain``."""

    quantize_and_drop: Function  # of x and scale
    squared_error: Function | None = None  # of output and target
    rounding_penalty: Function | None = None  # of v
    types: tuple[torch.dtype, ...] = (torch.float32, torch.bfloat16)


class _TwoFunctions(torch.autograd.Function):
    """Forward and backward as two functions of the caller's, which see flat tensors."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, forward: Any, backward: Any) -> Tensor:
        ctx.save_for_backward(x.view(-1), scale)
        ctx.function = backward
        return forward(x.view(-1), scale).view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        gradient, of_scale = ctx.function(gradients[0].view(-1), *ctx.saved_tensors)
        return gradient.view_as(gradients[0]), of_scale, None, None


class _WithGradient(torch.autograd.Function):
    """A function that returns a sum and its gradient at once, as those of clcalib.fused do."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, function: Any, *others: Any) -> Tensor:
        total, gradient = function(x, *others)
        ctx.save_for_backward(gradient)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        (gradient,) = ctx.saved_tensors
        return gradient if float(gradients[0]) == 1.0 else gradient * gradients[0], None, None


def plain() -> Way:
    def quantize_and_drop(x: Tensor, scale: Tensor) -> Tensor:
        values = x.float()
        quantized = functional.fake_quantize(values, scale, ZERO, Q_MIN, Q_MAX)
        return torch.where(keep_mask(x.shape, DRAW) > 0, quantized, values).to(x.dtype)

    def rounding_penalty(v: Tensor) -> Tensor:
        return (1 - (2 * soft.rectified_sigmoid(v) - 1).abs().pow(BETA)).sum()

    return Way(quantize_and_drop, lambda output, target: (output - target).square().mean(), rounding_penalty)


def few_passes() -> Way:
    def quantize_and_drop(x: Tensor, scale: Tensor) -> Tensor:
        keep = keep_mask(x.shape, DRAW)
        return passes.fake_quantize_blend_fused(x.float(), scale, ZERO, Q_MIN, Q_MAX, keep).to(x.dtype)

    return Way(quantize_and_drop)


def cpp() -> Way:
    def quantize_and_drop(x: Tensor, scale: Tensor) -> Tensor:
        return kernels.activation(x, scale, ZERO, Q_MIN, Q_MAX, draw=DRAW)

    return Way(quantize_and_drop, squared.mean_squared_error, lambda v: soft.rounding_penalty(v, BETA))


def _signed(word: int) -> int:
    return word - (1 << 32) if word >= 1 << 31 else word


def _kept(x: Tensor, key: Tensor, tweak: Tensor) -> Tensor:
    """The mask in a form that Inductor fuses: a word for each element, where four share one (five times faster)."""

    def scramble(word: Tensor) -> Tensor:
        word = (word ^ (word >> 16 & 0xFFFF)) * _signed(0x7FEB352D)
        word = (word ^ (word >> 15 & 0x1FFFF)) * _signed(0x846CA68B)
        return word ^ (word >> 16 & 0xFFFF)

    element = torch.arange(x.numel(), dtype=torch.int32)
    word = scramble(scramble((element >> 2) ^ key) + tweak)
    return (word >> (8 * (element & 3)) & 255) < DRAW.threshold


def _inductor_forward(x: Tensor, scale: Tensor, key: Tensor, tweak: Tensor) -> Tensor:
    values = x.float()
    quantized = torch.round(values / scale).clamp(Q_MIN, Q_MAX) * scale
    return torch.where(_kept(x, key, tweak), quantized, values).to(x.dtype)


def _inductor_backward(gradient: Tensor, x: Tensor, scale: Tensor, key: Tensor, tweak: Tensor) -> tuple[Tensor, Tensor]:
    steps, keep, g = x.float() / scale, _kept(x, key, tweak), gradient.float()
    code = torch.round(steps)
    nearest = code.clamp(Q_MIN, Q_MAX)
    of_scale = torch.where(nearest == code, code - steps, nearest)
    return torch.where(keep & (nearest != code), 0.0, g).to(x.dtype), torch.where(keep, g * of_scale, 0.0).sum()


def _inductor_squared_error(output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    difference = output - target
    return difference.square().mean(), difference * (2.0 / output.numel())


def _inductor_penalty(v: Tensor) -> tuple[Tensor, Tensor]:
    sigma = torch.sigmoid(v)
    centred = 2 * (1.2 * sigma - 0.1).clamp(0, 1) - 1
    size = centred.abs()
    slope = -2.4 * BETA * torch.sign(centred) * size.pow(BETA - 1) * (sigma * (1 - sigma))
    return (1 - size.pow(BETA)).sum(), torch.where(size < 1, slope, 0.0)


def inductor() -> Way:
    ahead, back, error, penalty = (
        torch.compile(function, dynamic=True)
        for function in (_inductor_forward, _inductor_backward, _inductor_squared_error, _inductor_penalty)
    )
    seeds = [torch.tensor(_signed(word), dtype=torch.int32) for word in DRAW[:2]]

    def forward(x: Tensor, scale: Tensor) -> Tensor:
        return ahead(x, scale, *seeds)

    def backward(gradient: Tensor, x: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
        return back(gradient, x, scale, *seeds)

    return Way(
        lambda x, scale: _TwoFunctions.apply(x, scale, forward, backward),
        lambda output, target: _WithGradient.apply(output, error, target),
        lambda v: _WithGradient.apply(v, penalty),
    )


def _loop_draw(start: Any, count: Any, words: Any) -> None:
    for i in range((count + 3) // 4):
        word = U32(U32(start // 4 + i) ^ U32(DRAW.key))
        for tweak in (U32(DRAW.tweak), U32(0)):
            word = U32((word ^ (word >> U32(16))) * U32(0x7FEB352D))
            word = U32((word ^ (word >> U32(15))) * U32(0x846CA68B))
            word = U32((word ^ (word >> U32(16))) + tweak)
        words[i] = word


def _loop_forward(x: Any, scale: Any, out: Any) -> None:
    words = np.empty(BLOCK // 4, np.uint32)
    kept = words.view(np.uint8)
    for start in range(0, x.size, BLOCK):
        count = min(BLOCK, x.size - start)
        _loop_draw(start, count, words)
        values, results = x[start : start + count], out[start : start + count]
        for i in range(count):
            quantized = min(max(np.rint(values[i] / scale), F32(Q_MIN)), F32(Q_MAX)) * scale
            results[i] = quantized if kept[i] < DRAW.threshold else values[i]


def _loop_backward(gradient: Any, x: Any, scale: Any, out: Any) -> Any:
    words, total = np.empty(BLOCK // 4, np.uint32), 0.0
    kept = words.view(np.uint8)
    for start in range(0, x.size, BLOCK):
        count = min(BLOCK, x.size - start)
        _loop_draw(start, count, words)
        values, g, results = x[start : start + count], gradient[start : start + count], out[start : start + count]
        part = F32(0)
        for i in range(count):
            steps = values[i] / scale
            code = np.rint(steps)
            nearest = min(max(code, F32(Q_MIN)), F32(Q_MAX))
            keep = kept[i] < DRAW.threshold
            part += (g[i] * (code - steps if nearest == code else nearest)) if keep else F32(0)
            results[i] = F32(0) if keep and nearest != code else g[i]
        total += part
    return total


def with_numba() -> Way | None:
    """The loops above, where Numba can be imported; not as closures, which its cache does not find again."""
    global _loop_draw
    try:
        import numba
    except ImportError:
        return None
    _loop_draw = numba.njit(_loop_draw, cache=True, error_model="numpy")
    forward = numba.njit(_loop_forward, cache=True, error_model="numpy")
    backward = numba.njit(_loop_backward, cache=True, error_model="numpy", fastmath={"reassoc", "nsz", "contract"})

    def run_forward(x: Tensor, scale: Tensor) -> Tensor:
        out = torch.empty_like(x)
        forward(x.detach().numpy(), F32(float(scale)), out.numpy())
        return out

    def run_backward(gradient: Tensor, x: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
        out = torch.empty_like(x)
        total = backward(gradient.numpy(), x.detach().numpy(), F32(float(scale)), out.numpy())
        return out, torch.tensor(total, dtype=torch.float32)

    return Way(lambda x, scale: _TwoFunctions.apply(x, scale, run_forward, run_backward), types=(torch.float32,))


WAYS: dict[str, Callable[[], Way | None]] = {
    "plain": plain, "passes": few_passes, "inductor": inductor, "numba": with_numba, "c++": cpp
}  # fmt: skip


def case(name: str, floats: int, dtype: torch.dtype) -> tuple[list[Tensor], list[Tensor], Tensor]:
    """The arguments of a function, those of them that get a gradient, and the gradient that comes in."""
    generator = torch.Generator().manual_seed(0)
    x, other = (torch.randn(BATCH, floats // BATCH, generator=generator).to(dtype) for _ in range(2))
    if name == "quantize_and_drop":
        arguments = [x.requires_grad_(), torch.tensor(SCALE, requires_grad=True)]
        return arguments, arguments, other
    if name == "squared_error":
        return [x.requires_grad_(), other], [x], torch.tensor(1.0)
    return [x.mul_(2).requires_grad_()], [x], torch.tensor(1.0)


def functions_of(ways: dict[str, Way], name: str, dtype: torch.dtype) -> dict[str, Function]:
    found = {way: getattr(what, name) for way, what in ways.items() if dtype in what.types}
    return {way: function for way, function in found.items() if function is not None}


def require_equal(functions: dict[str, Function], given: tuple[list[Tensor], list[Tensor], Tensor]) -> dict[str, float]:
    """The largest relative difference from ``plain``; that of a sum is relative to the sum of its terms' sizes."""
    arguments, trained, gradient = given
    differences = {}
    for name, function in functions.items():
        result = function(*arguments)
        found = [result.detach(), *torch.autograd.grad(result, trained, gradient)]
        if name == "plain":
            expected = found
            sizes = [float(tensor.abs().max()) for tensor in found]
            sizes[2:] = [float(gradient.float().abs().sum())] * len(sizes[2:])  # the scale's gradient is a sum
        pairs = zip(found, expected, sizes, strict=True)
        differences[name] = max(float((a.double() - b.double()).abs().max()) / size for a, b, size in pairs)
        if not differences[name] <= TOLERANCE:
            raise RuntimeError(f"{name} differs from plain by {differences[name]:.2e}, more than {TOLERANCE}")
    return differences


def milliseconds(
    functions: dict[str, Function], given: tuple[list[Tensor], list[Tensor], Tensor], calls: int
) -> dict[str, dict[str, float]]:
    arguments, trained, gradient = given
    best = {name: [math.inf, math.inf] for name in functions}
    for _ in range(ROUNDS):
        for name, function in functions.items():
            start = time.process_time()
            results = [function(*arguments) for _ in range(calls)]
            middle = time.process_time()
            for result in results:
                torch.autograd.grad(result, trained, gradient)
            end = time.process_time()
            best[name] = [min(best[name][0], middle - start), min(best[name][1], end - middle)]
    return {
        name: {"forward": round(1e3 * forward / calls, 5), "backward": round(1e3 * backward / calls, 5)}
        for name, (forward, backward) in best.items()
    }


def cases() -> list[tuple[str, int, torch.dtype]]:
    rows = [("quantize_and_drop", floats, dtype) for dtype in (torch.float32, torch.bfloat16) for floats in SIZES]
    rows += [("squared_error", floats, torch.float32) for floats in SIZES]
    return [*rows, ("rounding_penalty", WEIGHTS, torch.float32), ("quantize_and_drop", FEW, torch.float32)]


def measure(ways: dict[str, Way]) -> list[dict[str, Any]]:
    rows = []
    for name, floats, dtype in cases():
        functions, given = functions_of(ways, name, dtype), case(name, floats, dtype)
        row = {"function": name, "floats": floats, "type": str(dtype).removeprefix("torch.")}
        row["difference"] = require_equal(functions, given)
        row["milliseconds"] = milliseconds(functions, given, CALLS if floats == FEW else 1)
        rows.append(row)
        print(f"{name}, {floats} floats, {row['type']}: {row['milliseconds']}", flush=True)
    return rows


def use_once(name: str) -> None:
    """A child: every function of one way, once in each type and size; prints the seconds that this took."""
    start, wall = sum(os.times()[:4]), time.perf_counter()  # with the compilers that were waited for
    way = WAYS[name]()
    assert way is not None
    for function_name, floats, dtype in cases():
        for function in functions_of({name: way}, function_name, dtype).values():
            arguments, trained, gradient = case(function_name, floats, dtype)
            torch.autograd.grad(function(*arguments), trained, gradient)
    seconds = {"cpu_seconds": sum(os.times()[:4]) - start, "seconds": time.perf_counter() - wall}
    print(json.dumps({key: round(value, 3) for key, value in seconds.items()}))


def first_use(name: str) -> dict[str, dict[str, float]]:
    with tempfile.TemporaryDirectory() as folder:
        caches = {"CLCALIB_CACHE": "c++", "TORCHINDUCTOR_CACHE_DIR": "inductor", "NUMBA_CACHE_DIR": "numba"}
        environment = os.environ | {variable: str(Path(folder) / path) for variable, path in caches.items()}
        environment["TORCHINDUCTOR_COMPILE_THREADS"] = "1"  # its compilers are waited for, and so counted
        command = [sys.executable, __file__, name]
        runs = {}
        for state in ("empty_cache", "full_cache"):
            done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
            runs[state] = json.loads(done.stdout.splitlines()[-1])
    return runs


def main() -> None:
    torch.set_num_threads(1)
    if len(sys.argv) == 2:
        use_once(sys.argv[1])
        return
    made = {name: make() for name, make in WAYS.items()}
    ways = {name: way for name, way in made.items() if way is not None}
    rows, uses = measure(ways), {name: first_use(name) for name in ways}
    for name, use in uses.items():
        print(f"first use of {name}: {use}")
    numba = importlib.metadata.version("numba") if "numba" in ways else "not installed"
    result = {"rows": rows, "first_use": uses, "tolerance": TOLERANCE, "numba": numba, **provenance(seed=0)}
    print(write_result("kernel_choice", result))


if __name__ == "__main__":
    main()
