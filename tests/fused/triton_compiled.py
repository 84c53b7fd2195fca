"""Compiles every kernel for GPUs of two generations, which needs no GPU; run by ``test_device.py``.

The interpreter does not know what the compiler refuses.  Prints a line for each kernel that was made.
"""

from __future__ import annotations

import importlib
import itertools

CAPABILITIES = (80, 90)
ARRAYS = {"a", "residual", "scale", "zero_point", "out", "gradient", "parts", "floors", "v"}
WHOLE = {"threshold", "count", "row"}
NUMBERS = {"key": "*i32", "tweak": "*i32", "beta": "*fp64"}  # read from memory
LOW = {"a", "out", "gradient", "key", "tweak"}  # bfloat16 in every second variant
FLAGS = [
    {"has_residual": both, "has_limits": both, "kept": kept}
    for both, kept in itertools.product((True, False), range(3))
]
KERNELS = {
    "_activation_forward": FLAGS,
    "_activation_backward": FLAGS,
    "_soft_round_forward": [{}],
    "_soft_round_backward": [{}],
    "_rounding_penalty": [{}],
}


def signature(names: list[str], constants: dict[str, object], is_low: bool) -> dict[str, str]:
    types = {}
    for name in names:
        if name in constants:
            types[name] = "constexpr"
        elif name in NUMBERS and constants.get("kept", 1) == 1:
            types[name] = NUMBERS[name]
        elif name in ARRAYS or name in NUMBERS:  # x stands for numbers that are not read
            types[name] = "*bf16" if is_low and name in LOW else "*fp32"
        else:
            types[name] = "i32" if name in WHOLE else "fp32"
    return types


def compile_for_all(name: str, flags: dict[str, object], is_low: bool) -> None:
    triton = importlib.import_module("triton")  # not above: this file is also collected where there is no Triton
    kernels = importlib.import_module("clcalib.fused.triton_kernels")
    kernel, constants = getattr(kernels, name), {"block": kernels.BLOCK, **flags}
    if flags.get("has_residual") is False:
        constants["residual"] = None
    types = signature(kernel.arg_names, constants, is_low)
    source = triton.compiler.ASTSource(kernel, types, constexprs=constants)
    for capability in CAPABILITIES:
        target = triton.backends.compiler.GPUTarget("cuda", capability, 32)
        made = triton.compile(source, target=target, options={"enable_fp_fusion": False})
        text = made.asm["ptx"]
        assert "atom." not in text, f"{name} sums in no fixed order"
        assert "red.global" not in text, f"{name} sums in no fixed order"
        assert not flags.get("kept") or "div.rn.f32" in text, f"{name} divides in a way of its own"
        assert len(made.asm["cubin"]) > 0
        print("compiled", name, flags, capability)


def main() -> None:
    for name, variants in KERNELS.items():
        for number, flags in enumerate(variants):
            compile_for_all(name, flags, number % 2 == 1)


if __name__ == "__main__":
    main()
