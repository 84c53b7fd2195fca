"""Which tensor gets which width: a table with a row for each layer, printed before any work starts."""

from __future__ import annotations

import dataclasses
import difflib
import fnmatch
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

from clcalib.errors import ArgumentError
from clcalib.quant.spec import PerChannel, PerTensor, QuantSpec

SETTINGS = ("qdrop", "brecq")
EDGE_BITS = 8
KIND_MARK = "@"  # begins a pattern of kinds instead of names: "@depthwise"
FLOAT, FLOAT_BITS = "float", 32
OVERRIDE, RAISED = "override", "raised for accuracy"  # begin the reasons of widths that are not those of all layers
WIDTHS = '"W4A8", "W4" or "A8" (2 to 8, 32 for float), or "float"'

EdgeBits = int | Literal["same"] | None

_WIDTHS = re.compile(r"(?=.)(?:w(\d+))?(?:a(\d+))?", re.IGNORECASE)
TENSOR = "tensor"  # the kind of a row that is a tensor's own
_PRODUCT = "product"  # the kind of a matrix product of activations


@dataclasses.dataclass(frozen=True)
class Bits:
    """Widths of weights and activations; ``None`` leaves them in float.

    Args:
        weights: 2 to 8, or None.
        activations: 2 to 8, or None.
        is_weight_symmetric: symmetric ranges around zero, signed codes.
        is_activation_symmetric: the same.

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
    """Widths of the layers that a pattern fits; ``"default"`` leaves one as it would be without the override.

    Args:
        weights: 2 to 8, None for float, or ``"default"``.
        activations: the same.
        reason: what the table of widths says beside the layers; the pattern by default.
    """

    weights: int | Literal["default"] | None = "default"
    activations: int | Literal["default"] | None = "default"
    reason: str = ""

    @classmethod
    def parse(cls, argument: str, text: str) -> Override:
        """The override that a text such as ``"W4A8"``, ``"A8"`` or ``"float"`` stands for.

        Raises:
            ArgumentError: another text; it names ``argument``.

        Example:
            >>> Override.parse("overrides", "W4"), Override.parse("overrides", "float")
            (Override(weights=4, activations='default', reason=''), Override(weights=None, activations=None, reason=''))
        """
        if text.strip().lower() == FLOAT:
            return cls(None, None)
        match = _WIDTHS.fullmatch(text.strip())
        numbers = () if match is None else tuple(None if part is None else int(part) for part in match.groups())
        if not numbers or not all(number in (None, FLOAT_BITS) or 2 <= number <= 8 for number in numbers):
            raise ArgumentError(argument, WIDTHS, repr(text))
        weights, activations = (_width(number) for number in numbers)
        return cls(weights, activations)

    def applied_to(self, bits: Bits) -> Bits:
        """The widths of a layer whose default is ``bits``."""
        weights = bits.weights if self.weights == "default" else self.weights
        activations = bits.activations if self.activations == "default" else self.activations
        return dataclasses.replace(bits, weights=weights, activations=activations)


def _width(number: int | None) -> int | Literal["default"] | None:
    return "default" if number is None else None if number == FLOAT_BITS else number


Overrides = Mapping[str, Bits | Override | str]


@dataclasses.dataclass(frozen=True)
class LayerPolicy:
    """One row: the widths of a layer's weight and of the tensor that it reads, and what kind of layer it is.

    A product of two activations, as in attention, has a row too: no weight, and a second tensor, ``right``.  So has a
    tensor (of the kind "tensor") that a target's kernels need quantized for themselves: ``input`` is its own spec.
    """

    layer: str
    weight: QuantSpec | None
    input: QuantSpec | None
    reason: str
    kind: str = ""
    right: QuantSpec | None = None


def build_policy(
    layers: Sequence[str],
    bits: Bits,
    setting: str = "qdrop",
    overrides: Overrides | None = None,
    *,
    first_last_bits: EdgeBits = EDGE_BITS,
    kinds: Mapping[str, str] | None = None,
    products: Sequence[str] = (),
    is_image_quantized: bool = False,
) -> tuple[LayerPolicy, ...]:
    """Return one row for each layer, in execution order.

    The first and the last layer's weights and the last layer's input have 8 bits; the image itself is not quantized.
    ``"brecq"`` also gives the second layer's input 8 bits.  The two settings must not be mixed in one comparison.
    A pattern wins over these rules, and a later pattern over an earlier one; a width that it does not name stays.

    Args:
        layers: names in execution order.
        bits: the widths everywhere else.
        setting: ``"qdrop"`` or ``"brecq"``.
        overrides: pattern -> widths, as ``Bits``, as an ``Override`` or as a text such as ``"W4A8"`` or ``"float"``.
            A pattern is a glob of layer names (``"layer4.*"``), or ``@`` and a word of a layer's kind
            (``"@depthwise"``).
        first_last_bits: the width of the first and the last layer in place of 8; None leaves them in float, ``"same"``
            gives them those of all others.
        kinds: layer -> its kind in words, such as ``"depthwise conv2d"``.
        products: names of matrix products of activations (``Chain.products``), whose rows come last; both their factors
            have the activations' width.
        is_image_quantized: whether a target's kernels need the image itself quantized, which has a row of its own.

    Raises:
        ArgumentError: an unknown setting, or a pattern that fits no layer.

    Source: QDrop (Wei et al., 2022), appendix; BRECQ (Li et al., 2021), section 4.1; docs/method.md, section 3.
    """
    if setting not in SETTINGS:
        raise ArgumentError("setting", f"one of {', '.join(SETTINGS)}", repr(setting))
    _check_edge_bits(first_last_bits)
    kinds = {**(kinds or {}), **dict.fromkeys(products, _PRODUCT)}
    parsed = {pattern: _override(pattern, widths) for pattern, widths in (overrides or {}).items()}
    for pattern in parsed:
        _check_fits(pattern, (*layers, *products), kinds)
    rows = []
    for index, layer in enumerate((*layers, *products)):
        is_product = index >= len(layers)
        widths, reason = (bits, "") if is_product else _default(index, len(layers), bits, setting, first_last_bits)
        if index == 0 and is_image_quantized:
            reason = "first layer"
        for pattern, override in parsed.items():
            if _fits(pattern, layer, kinds.get(layer, "")):
                widths = override if isinstance(override, Bits) else override.applied_to(widths)
                own = override.reason if isinstance(override, Override) else ""
                reason = own or f"{OVERRIDE} {pattern}"
        weight, read = None if is_product else weight_spec(widths), None if index == 0 else input_spec(widths)
        rows.append(LayerPolicy(layer, weight, read, reason, kinds.get(layer, ""), read if is_product else None))
    return tuple(rows)


def float_reasons(rows: Iterable[LayerPolicy]) -> dict[str, str]:
    """By the name of each layer whose weights are float, and of each product with a factor in float, why that is.

    Example:
        >>> float_reasons(build_policy(["stem", "head"], Bits(4, 4), overrides={"head": "float"}))
        {'head': 'override head'}
    """
    found = {}
    for row in rows:
        is_product = row.kind == _PRODUCT
        is_float = row.input is None or row.right is None if is_product else row.weight is None and row.kind != TENSOR
        if is_float:
            found[row.layer] = row.reason or f"{'activations' if is_product else 'weights'} are float in this run"
    return found


def _override(pattern: str, widths: object) -> Bits | Override:
    if isinstance(widths, str):
        return Override.parse(f"overrides[{pattern!r}]", widths)
    if not isinstance(widths, Bits | Override):
        raise ArgumentError("overrides", f"Bits, an Override or a text for {pattern!r}", repr(widths))
    return widths


def _fits(pattern: str, layer: str, kind: str) -> bool:
    """Whether a pattern means a layer: by its name, or by a word of its kind."""
    if pattern.startswith(KIND_MARK):
        return any(fnmatch.fnmatchcase(word, pattern[1:]) for word in kind.split())
    return fnmatch.fnmatchcase(layer, pattern)


def _check_fits(pattern: str, layers: Sequence[str], kinds: Mapping[str, str]) -> None:
    if any(_fits(pattern, layer, kinds.get(layer, "")) for layer in layers):
        return
    if pattern.startswith(KIND_MARK):
        known = sorted({KIND_MARK + word for kind in kinds.values() for word in kind.split()})
        remedy = f"this network has {', '.join(known)}"
    else:
        remedy = f"nearest layer: {_nearest(pattern, layers)}"
    raise ArgumentError("overrides (--bits, --float)", "patterns that fit a layer", repr(pattern), remedy)


def _nearest(pattern: str, layers: Iterable[str]) -> str:
    return difflib.get_close_matches(pattern, list(layers), 1, 0.0)[0]


def _check_edge_bits(bits: object) -> None:
    is_width = type(bits) is int and 2 <= bits <= 8
    if not (is_width or bits is None or bits == "same"):
        raise ArgumentError("first_last_bits", 'a whole number from 2 to 8, None for float, or "same"', repr(bits))


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


def _default(index: int, count: int, bits: Bits, setting: str, edge: EdgeBits) -> tuple[Bits, str]:
    """The widths of a layer that no pattern fits, and why; what is float everywhere is float at the edges too."""
    edge_weights = bits.weights if bits.weights is None or edge == "same" else edge
    edge_activations = bits.activations if bits.activations is None or edge == "same" else edge
    if index == 0:
        return dataclasses.replace(bits, weights=edge_weights), "first layer (image not quantized)"
    if index == count - 1:
        return dataclasses.replace(bits, weights=edge_weights, activations=edge_activations), "last layer"
    if index == 1 and setting == "brecq":
        return dataclasses.replace(bits, activations=edge_activations), "second layer, brecq setting"
    return bits, ""
