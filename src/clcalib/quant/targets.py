"""What the runtimes' kernels can do, so that calibration runs under the rules under which the result will compute."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Literal

from clcalib.capture.chain import Chain
from clcalib.errors import ArgumentError
from clcalib.quant.placement import Placement, named_tensors
from clcalib.quant.policy import TENSOR, Bits, LayerPolicy, input_spec
from clcalib.quant.reads import find_reads
from clcalib.quant.spec import QuantSpec

ALL_WIDTHS = (2, 3, 4, 5, 6, 7, 8)
Side = Literal["weights", "activations"]
NARROW = 8  # below this width a code less its zero point fits into 8 bits
REDUCED = 7  # width of signed weights of which two products with unsigned bytes add up to less than 2^15


@dataclasses.dataclass(frozen=True)
class Target:
    """One runtime and the rules of its integer kernels.

    Attributes:
        name: as in ``--target``.
        summary: one line for people.
        weight_bits: widths that a weight may have.
        activation_bits: widths that an activation may have.
        is_weight_symmetric: whether weights must be signed, with the zero point 0; scales are per output channel.
        asymmetric_below: weights of fewer bits than this have a zero point all the same, which is taken off before a
            kernel sees them: of so few codes none is to be lost.
        is_range_reduced: whether weights of 8 bits use 7 of them (``reduce_range`` of ONNX Runtime and PyTorch), so
            that two products with activations can be added in 16 bits; weights of 7 bits have no zero point then.
        exact_without_vnni: the target of the same runtime whose range is reduced, where kernels of x86 processors
            without VNNI add so; None where no kernel does.
        is_activation_symmetric: whether activations must be; their scale is per tensor.
        placement: where quantizers stand; None as in the papers, at what layers read.
        runtime: the runtime that executes the file, or None if nothing here does.
        file: what ``clcalib export`` writes.
        notes: what to know, one sentence each.
    """

    name: str
    summary: str
    weight_bits: tuple[int, ...] = ALL_WIDTHS
    activation_bits: tuple[int, ...] = ALL_WIDTHS
    is_weight_symmetric: bool = False
    asymmetric_below: int = 0
    is_range_reduced: bool = False
    exact_without_vnni: str | None = None
    is_activation_symmetric: bool = False
    placement: Placement | None = None
    runtime: str | None = None
    file: str = "model.onnx"
    notes: tuple[str, ...] = ()

    def widths(self, side: Side) -> tuple[int, ...]:
        """Those that its kernels have for weights or for activations."""
        return self.weight_bits if side == "weights" else self.activation_bits

    def bits(self, bits: Bits) -> Bits:
        """The same widths, with the signs that the target needs.

        Raises:
            ArgumentError: the target has no kernel for one of the widths.
        """
        self._check("weights", bits.weights, self.weight_bits)
        self._check("activations", bits.activations, self.activation_bits)
        if self.placement is not None and bits.weights is not None and bits.activations is None:
            remedy = f"take A{self.activation_bits[-1]}, or the target 'paper'; single layers may stay in float"
            raise ArgumentError("bits (activations)", f"integers for target {self.name}", "float", remedy)
        return dataclasses.replace(
            bits,
            is_weight_symmetric=bits.is_weight_symmetric or self.is_weight_symmetric,
            is_activation_symmetric=bits.is_activation_symmetric or self.is_activation_symmetric,
        )

    def fitted(self, row: LayerPolicy) -> LayerPolicy:
        """A row with the signs, and the part of 8 bits, that the target's kernels take, whatever a pattern says."""
        weight, reason = row.weight, row.reason
        if weight is not None and self.is_range_reduced and weight.bits > REDUCED:
            reason = f"{reason}, {_REDUCED}" if reason else _REDUCED
            weight = dataclasses.replace(weight, bits=REDUCED)
        if weight is not None and self.is_weight_symmetric:
            is_symmetric = weight.bits >= self.asymmetric_below
            weight = QuantSpec(weight.bits, is_symmetric, is_symmetric, weight.granularity)
        sides = [
            QuantSpec(side.bits, True, True) if side is not None and self.is_activation_symmetric else side
            for side in (row.input, row.right)
        ]
        return dataclasses.replace(row, weight=weight, input=sides[0], right=sides[1], reason=reason)

    def check(self, rows: Iterable[LayerPolicy]) -> None:
        """Raise ``ArgumentError`` where a row of the policy has a width or a grid that the target has no kernel for."""
        for row in rows:
            self._check(f"weights of {row.layer}", _bits(row.weight), self.weight_bits)
            for spec in (row.input, row.right):
                self._check(f"inputs of {row.layer}", _bits(spec), self.activation_bits)
                grids = ("uniform", "twin") if self.placement is None else ("uniform",)
                if spec is not None and spec.grid not in grids:
                    expected = f"{' or '.join(map(repr, grids))} for target {self.name}"
                    remedy = "leave softmax_grid and gelu_grid out, or run without a target"
                    raise ArgumentError(f"grid (inputs of {row.layer})", expected, repr(spec.grid), remedy)

    def overflowing(self, rows: Iterable[LayerPolicy]) -> list[str]:
        """The layers whose sums may overflow on a processor that adds two products in 16 bits."""
        if self.exact_without_vnni is None:
            return []
        return [
            row.layer for row in rows if row.weight is not None and row.weight.bits >= REDUCED + row.weight.is_symmetric
        ]

    def _check(self, what: str, bits: int | None, allowed: Sequence[int]) -> None:
        if bits is None or bits in allowed:
            return
        widths = ", ".join(map(str, allowed))
        side: Side = "weights" if what.startswith("weights") else "activations"
        others = [own.name for own in TARGETS.values() if bits in own.widths(side) and own.runtime is not None]
        raise ArgumentError(
            f"bits ({what})",
            f"{widths} bits, or float, for target {self.name}",
            str(bits),
            f"its kernels have no other widths: take {side[0].upper()}{allowed[-1]}, a target whose kernels have it "
            f"({', '.join(others)}), or 'paper', which computes any width in float",
        )

    def rows(self, chain: Chain, rows: Sequence[LayerPolicy]) -> tuple[LayerPolicy, ...]:
        """Rows for the tensors that the target's kernels need quantized and that no row of a layer speaks of."""
        if self.placement is None:
            return ()
        own = {row.layer: row for row in rows}
        # What the first layer reads has a row of its own; any other layer with floats at its input has a float kernel.
        quantized = {
            row.layer for place, row in enumerate(rows) if row.input is not None or (place == 0 and row.weight)
        }
        spoken_of = {
            read.tensor
            for read in find_reads(chain.module, self.placement)
            if read.spec(own.get(read.name)) is not None
        }
        wanted = self.placement.wanted(chain.module, quantized)
        spec = self.activation_spec()
        return tuple(
            LayerPolicy(name, None, spec, wanted[node], TENSOR)
            for name, node in named_tensors(chain.module)
            if node in wanted and (node not in spoken_of or node.op == "placeholder")
        )

    def activation_spec(self) -> QuantSpec:
        """The spec of a tensor that is quantized for the kernels' sake: the widest that they have."""
        spec = input_spec(Bits(8, self.activation_bits[-1], is_activation_symmetric=self.is_activation_symmetric))
        assert spec is not None
        return spec


_POOLS = ("adaptive_avg_pool2d", "avg_pool2d", "mean")
_REDUCED = f"{REDUCED} of 8 bits"  # the reason of a width


def _with_reduced(target: Target) -> tuple[Target, ...]:
    """A target, and the one for processors without VNNI where there is one."""
    if target.exact_without_vnni is None:
        return (target,)
    name = target.exact_without_vnni
    overflow = f"x86 processors without VNNI add two products in 16 bits, which may overflow: for them take {name}"
    reduced = dataclasses.replace(
        target,
        name=name,
        summary=f"the same for x86 processors without VNNI: weights of 8 bits use {REDUCED} of them",
        asymmetric_below=REDUCED,
        is_range_reduced=True,
        exact_without_vnni=None,
        notes=(f"as {target.name}, but exact on every processor",),
    )
    return dataclasses.replace(target, notes=(*target.notes, overflow)), reduced


TARGETS: dict[str, Target] = {
    own.name: own
    for target in (
        Target(
            "paper",
            "as in the papers: quantizers at what layers read, any width; computes in float what was simulated",
            notes=("an optimiser may compute MatMul with quantized weights in its own way, as ONNX Runtime does",),
        ),
        Target(
            "onnxruntime",
            "ONNX Runtime on processors: quantizers at convolutions' results, sums and pools too",
            is_weight_symmetric=True,
            asymmetric_below=NARROW,
            exact_without_vnni="onnxruntime-avx2",
            placement=Placement(
                frozenset(("add", "mul", "cat", "sigmoid", "leaky_relu", "softmax", *_POOLS)), has_results=True
            ),
            runtime="onnxruntime",
            notes=(
                "codes of fewer than 8 bits are computed in 8, exactly; weights are stored in 4 where they fit",
                "zero points of weights are taken off their codes when the file is loaded; weights of 8 bits have none",
            ),
        ),
        Target(
            "openvino",
            "OpenVINO on processors: sums are computed by convolutions' kernels",
            is_weight_symmetric=True,
            asymmetric_below=NARROW,
            exact_without_vnni="openvino-avx2",
            placement=Placement(),
            runtime="openvino",
            notes=(
                "zero points of weights are taken off their codes when the file is loaded; weights of 8 bits have none",
            ),
        ),
        Target(
            "tensorrt",
            "TensorRT, explicit quantization: symmetric 8-bit codes; written, and tried on no such device",
            weight_bits=(8,),
            activation_bits=(8,),
            is_weight_symmetric=True,
            is_activation_symmetric=True,
            placement=Placement(frozenset(("add", *_POOLS)), is_fused=True),
        ),
        Target(
            "torch",
            "PyTorch on x86 processors: a program for torch.compile; sums are computed by convolutions' kernels",
            activation_bits=(8,),
            is_weight_symmetric=True,
            asymmetric_below=NARROW,
            exact_without_vnni="torch-avx2",
            placement=Placement(frozenset(("add",)), is_fused=True),
            runtime="torch",
            file="model.pt2",
            notes=(
                "its integer kernels are reached through torchao, clcalib[torchao]; without it the program computes in "
                "float",
                "weights of fewer than 8 bits are stored and computed in 8, exactly",
                "products of activations, as in attention, are computed in float",
            ),
        ),
        Target(
            "executorch",
            "ExecuTorch with XNNPACK, on phones and processors: a .pte file; quantizers at all results too",
            activation_bits=(8,),
            is_weight_symmetric=True,
            asymmetric_below=NARROW,
            placement=Placement(frozenset(("add", "mul", *_POOLS)), has_results=True, has_linear_results=True),
            runtime="executorch",
            file="model.pte",
            notes=(
                "the package executorch writes the file and tries it, clcalib[executorch]",
                "codes inside of XNNPACK cannot be seen: only outputs are compared with the simulation",
                "the file takes batches of at most 64 images",
            ),
        ),
    )
    for own in _with_reduced(target)
}


def target_of(name: str | None) -> Target | None:
    """The target of a name; None for None.

    Raises:
        ArgumentError: there is none of this name.
    """
    if name is None:
        return None
    if name not in TARGETS:
        raise ArgumentError("target (--target)", f"one of {', '.join(TARGETS)}", repr(name))
    return TARGETS[name]


def _bits(spec: QuantSpec | None) -> int | None:
    return None if spec is None else spec.bits
