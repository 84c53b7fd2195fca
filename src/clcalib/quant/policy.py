"""Which tensor gets which width: a table with a row for each layer, printed before any work starts."""

from __future__ import annotations

import dataclasses
import difflib
import fnmatch
from collections.abc import Mapping, Sequence
from typing import Literal

from clcalib.errors import ArgumentError
from clcalib.quant.spec import PerChannel, PerTensor, QuantSpec

SETTINGS = ("qdrop", "brecq")
EDGE_BITS = 8
_PRODUCT = "product of activations"


@dataclasses.dataclass(frozen=True)
class Bits:
    """Widths of weights and activations; ``None`` leaves them in float.

    Args:
        weights, activations: 2 to 8, or None.
        is_weight_symmetric, is_activation_symmetric: symmetric ranges around zero, signed codes.

    Example:
        >>> str(Bits(weights=2, activations=4))
        'W2A4'
    """

    weights: int | None = 8
    activations: int | None = 8
    is_weight_symmetric: bool = False
    is_activation_symmetric: bool = False

    def __post_init__(self) -> None:
        for name, value in (("weights", self.weights), ("activations", self.activations)):
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or not 2 <= value <= 8):
                raise ArgumentError(name, "a whole number of bits from 2 to 8, or None for float", repr(value))

    def __str__(self) -> str:
        return f"W{self.weights or 32}A{self.activations or 32}"


@dataclasses.dataclass(frozen=True)
class Override:
    """Widths of the layers that a pattern fits; ``"default"`` leaves one as it would be without the override."""

    weights: int | Literal["default"] | None = "default"
    activations: int | Literal["default"] | None = "default"

    def applied_to(self, bits: Bits) -> Bits:
        """The widths of a layer whose default is ``bits``."""
        weights = bits.weights if self.weights == "default" else self.weights
        activations = bits.activations if self.activations == "default" else self.activations
        return dataclasses.replace(bits, weights=weights, activations=activations)


@dataclasses.dataclass(frozen=True)
class LayerPolicy:
    """One row: the widths of a layer's weight and of the tensor that it reads.

    A product of two activations, as in attention, has a row too: no weight, and a second tensor, ``right``.
    """

    layer: str
    weight: QuantSpec | None
    input: QuantSpec | None
    reason: str
    right: QuantSpec | None = None


def build_policy(
    layers: Sequence[str],
    bits: Bits,
    setting: str = "qdrop",
    overrides: Mapping[str, Bits | Override] | None = None,
    *,
    products: Sequence[str] = (),
) -> tuple[LayerPolicy, ...]:
    """Return one row for each layer, in execution order.

    The first and the last layer's weights and the last layer's input have 8 bits; the image itself is not quantized.
    ``"brecq"`` also gives the second layer's input 8 bits.  The two settings must not be mixed in one comparison.

    Args:
        layers: names in execution order.
        bits: the widths everywhere else.
        setting: ``"qdrop"`` or ``"brecq"``.
        overrides: glob pattern of layer names -> widths; the last pattern that fits wins.
        products: names of matrix products of activations (``Chain.products``), whose rows come last; both their factors
            have the activations' width.

    Raises:
        ArgumentError: an unknown setting, or a pattern that fits no layer.

    Source: QDrop (Wei et al., 2022), appendix; BRECQ (Li et al., 2021), section 4.1; docs/method.md, section 3.
    """
    if setting not in SETTINGS:
        raise ArgumentError("setting", f"one of {', '.join(SETTINGS)}", repr(setting))
    overrides = dict(overrides or {})
    for pattern, override in overrides.items():
        if not isinstance(override, (Bits, Override)):
            raise ArgumentError("overrides", f"Bits or Override for {pattern!r}", repr(override))
        if not fnmatch.filter((*layers, *products), pattern):
            near = difflib.get_close_matches(pattern, (*layers, *products), 1, 0.0)
            raise ArgumentError("overrides", "patterns that fit a layer", repr(pattern), f"nearest layer: {near[0]}")
    rows = []
    for index, layer in enumerate((*layers, *products)):
        is_product = index >= len(layers)
        widths, reason = (bits, _PRODUCT) if is_product else _default(index, len(layers), bits, setting)
        for pattern, override in overrides.items():
            if fnmatch.fnmatchcase(layer, pattern):
                widths = override if isinstance(override, Bits) else override.applied_to(widths)
                reason = f"override {pattern}"
        weight, read = None if is_product else weight_spec(widths), None if index == 0 else input_spec(widths)
        rows.append(LayerPolicy(layer, weight, read, reason, right=read if is_product else None))
    return tuple(rows)


def weight_spec(bits: Bits) -> QuantSpec | None:
    """Per output channel."""
    if bits.weights is None:
        return None
    symmetric = bits.is_weight_symmetric
    return QuantSpec(bits.weights, is_symmetric=symmetric, is_signed=symmetric, granularity=PerChannel(0))


def input_spec(bits: Bits) -> QuantSpec | None:
    """Per tensor."""
    if bits.activations is None:
        return None
    symmetric = bits.is_activation_symmetric
    return QuantSpec(bits.activations, is_symmetric=symmetric, is_signed=symmetric, granularity=PerTensor())


def _default(index: int, count: int, bits: Bits, setting: str) -> tuple[Bits, str]:
    edge_weights = None if bits.weights is None else EDGE_BITS
    edge_activations = None if bits.activations is None else EDGE_BITS
    if index == 0:
        return dataclasses.replace(bits, weights=edge_weights), "first layer (image not quantized)"
    if index == count - 1:
        return dataclasses.replace(bits, weights=edge_weights, activations=edge_activations), "last layer"
    if index == 1 and setting == "brecq":
        return dataclasses.replace(bits, activations=edge_activations), "second layer, brecq setting"
    return bits, ""
