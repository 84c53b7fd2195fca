"""What a table of widths costs: bytes of weights as they are saved, and bit operations.

A layer's weight of n elements and C scales, in b bits, takes ``ceil(n b / 8) + 8 C`` bytes in ``model.safetensors``:
its packed codes, and a scale and a zero point of four bytes each for every channel.  In float it takes ``4 n``.
Biases, the scales of activations and the file's header are not counted.

A multiply-accumulate of a weight of b_w bits and an activation of b_a bits is ``b_w b_a`` bit operations; what is in
float counts 32 bits, the images 8, as they come as bytes.

Source: bit operations after UNIQ (Baskin et al. 2018).
*Deviation*: only the products are counted, not the additions.
"""

from __future__ import annotations

from collections.abc import Sequence

from clcalib.capture.chain import Chain
from clcalib.capture.describe import layer_macs
from clcalib.capture.graph import value_of, weighted_nodes
from clcalib.quant.packing import packed_bytes
from clcalib.quant.policy import FLOAT_BITS, LayerPolicy
from clcalib.quant.reads import find_reads
from clcalib.quant.spec import MAXIMUM_BITS, PerChannel, QuantSpec

IMAGE_BITS = 8
_FLOAT_BYTES = 4


def weight_bytes(shape: Sequence[int], spec: QuantSpec | None) -> int:
    """The bytes of one weight in the checkpoint: codes, scales and zero points; None: float32.

    Example:
        >>> weight_bytes((16, 3, 3, 3), QuantSpec(3, granularity=PerChannel(0)))
        290
    """
    count = 1
    for size in shape:
        count *= size
    if spec is None:
        return _FLOAT_BYTES * count
    scales = shape[spec.granularity.axis] if isinstance(spec.granularity, PerChannel) else 1
    return packed_bytes(count, spec.bits) + 2 * _FLOAT_BYTES * scales


def layer_bytes(chain: Chain, policy: Sequence[LayerPolicy]) -> dict[str, int]:
    """The bytes of every layer's weight; products have none."""
    shapes = {layer: _sizes(node.args[1]) for layer, node in weighted_nodes(chain.module)}
    return {row.layer: weight_bytes(shapes[row.layer], row.weight) for row in policy if row.layer in shapes}


def bit_operations(chain: Chain, policy: Sequence[LayerPolicy]) -> dict[str, int]:
    """The bit operations for one image of every layer and product; an einsum, whose sums are not known, counts 0.

    Rows of other tensors, which a target's kernels need quantized, have none.
    """
    macs, products = layer_macs(chain), set(chain.products)
    of_images = {read.name for read in find_reads(chain.module) if read.tensor.name == chain.input_name}
    found = {}
    for row in policy:
        if row.layer not in macs:
            continue
        first = _bits(row.right if row.layer in products else row.weight)
        found[row.layer] = macs[row.layer] * first * (IMAGE_BITS if row.layer in of_images else _bits(row.input))
    return found


def bit_operations_at_8_bits(chain: Chain) -> int:
    """The bit operations for one image with 8 bits everywhere, which the share of a cost budget is of."""
    return MAXIMUM_BITS**2 * sum(layer_macs(chain).values())


def _bits(spec: QuantSpec | None) -> int:
    return FLOAT_BITS if spec is None else spec.bits


def _sizes(node: object) -> tuple[int, ...]:
    return tuple(int(size) for size in value_of(node).shape)  # type: ignore[arg-type]
