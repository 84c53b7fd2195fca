"""The channels behind a layer norm are brought to one range, and the layers that read them undo it: exact in float.

Channels of a normalised tensor differ in range by factors of ten, and one scale for the tensor serves few of them.
With s_c and z_c the scale and zero point that each channel wants, s and z their means, the tensor becomes
``x'_c = (x_c + a_c) / r_c``, r = s_c / s, a = s_c (z_c - z), for which (s, z) is right in every channel:

* layer norm: ``gamma' = gamma / r``, ``beta' = (beta + a) / r``;
* each linear layer that reads it: ``W' = W diag(r)``, ``b' = b - W a``.

Source: RepQ-ViT (Li et al., ICCV 2023), section 3.2, equations 7 to 10.

*Deviation*: a layer norm is left as it is where anything but linear layers with a bias reads it, such as the shortcut
of a network with the norm behind the block.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from clcalib.capture.chain import Chain
from clcalib.capture.graph import is_linear, operator_name, value_of
from clcalib.capture.running import advance, bytes_of_one
from clcalib.quant.ranges import RANGE_RULES, RangeRule
from clcalib.quant.spec import PerChannel, QuantSpec

# what moves rows of channels about, or averages them
_MOVES = ("reshape", "permute", "transpose", "roll", "select", "slice", "clone", "contiguous", "pad", "mean")
SMALLEST_SHARE = 1e-3  # of the mean scale, which a channel's own does not fall below
_GROUP_BYTES = 1 << 28  # of the values that are in memory at a time, where one norm has no more by itself
_BITS = 8  # of the ranges; the factors r do not depend on it


@dataclasses.dataclass(frozen=True)
class _Norm:
    """A layer norm that can be changed, and the linear layers that undo it."""

    node: fx.Node
    gamma: str
    beta: str
    readers: tuple[fx.Node, ...]


def reparameterize_layer_norm(chain: Chain, images: Tensor, rule: RangeRule = RANGE_RULES["percentile"]) -> Chain:
    """Return a chain with the same float output, whose layer norms give every channel the same range.

    Args:
        chain: a float chain; not changed.
        images: what the channels' ranges are found from, on the chain's device  # shape: (N, ...)
        rule: chooses them.

    Returns:
        The chain with other parameters under the same names.
    """
    module = copy.deepcopy(chain.module)
    norms = [norm for node in module.graph.nodes if (norm := _read(node)) is not None]
    norms = [norm for norm in norms if _is_alone(module.graph, norm)]
    for some in _groups(norms, len(images)):
        # None of them changes what another one gives out, so all ranges can be read off the chain as it was.
        values = advance(chain.subgraph((chain.input_name,), [norm.node.name for norm in some]), (images,))
        for norm, value in zip(some, values, strict=True):
            _reparameterize(module, norm, value, rule)
    return dataclasses.replace(chain, module=module)


def _groups(norms: Sequence[_Norm], images: int) -> Iterator[list[_Norm]]:
    """Norms that are read in one pass: as many as have room beside each other."""
    group, used = list[_Norm](), 0
    for norm in norms:
        size = images * bytes_of_one(value_of(norm.node))
        if group and used + size > _GROUP_BYTES:
            yield group
            group, used = [], 0
        group.append(norm)
        used += size
    if group:
        yield group


@torch.no_grad()
def _reparameterize(module: fx.GraphModule, norm: _Norm, value: Tensor, rule: RangeRule) -> None:
    spec = QuantSpec(_BITS, granularity=PerChannel(value.ndim - 1))
    wanted = rule(value, spec)
    scale, zero = wanted.scale.flatten().double(), wanted.zero_point.flatten().double()
    scale = scale.clamp(min=SMALLEST_SHARE * float(scale.mean()))
    factor, shift = scale / scale.mean(), scale * (zero - zero.mean())
    gamma, beta = module.get_parameter(norm.gamma), module.get_parameter(norm.beta)
    beta.copy_((beta.double() + shift) / factor)
    gamma.copy_(gamma.double() / factor)
    for reader in norm.readers:
        weight, bias = (module.get_parameter(_target(reader.args[place])) for place in (1, 2))
        bias.copy_(bias.double() - weight.double() @ shift)
        weight.copy_(weight.double() * factor)


def _read(node: fx.Node) -> _Norm | None:
    """A layer norm over the last axis with parameters, read by linear layers with a bias only."""
    if operator_name(node) != "layer_norm" or len(node.args) < 4 or len(node.args[1]) != 1:  # type: ignore[arg-type]
        return None
    gamma, beta = _target(node.args[2]), _target(node.args[3])
    readers = _readers(node)
    if not (gamma and beta and readers):
        return None
    has_parameters = all(_target(reader.args[place]) for reader in readers for place in (1, 2))
    return _Norm(node, gamma, beta, tuple(readers)) if has_parameters else None


def _readers(node: fx.Node) -> list[fx.Node]:
    """The linear layers that read the channels of a tensor; empty if anything else does."""
    found: list[fx.Node] = []
    for user in node.users:
        if is_linear(user) and len(user.args) > 2 and user.args[0] is node and user.args[1] is not node:
            found.append(user)
        elif _keeps_channels(user) and (behind := _readers(user)):
            found += behind
        else:
            return []
    return found


def _keeps_channels(node: fx.Node) -> bool:
    """Whether a channel of the result comes from the same channel of what is read; both have them last."""
    name, source = operator_name(node), node.args[0] if node.args else None
    if name not in _MOVES or not isinstance(source, fx.Node):
        return False
    rank, (first, second, *_) = value_of(source).ndim, (*node.args[1:], None, None)
    axes: dict[str, Any] = {
        "transpose": (first, second),
        "select": (first,),
        "slice": (0 if first is None else first,),
        "roll": second or (-1,),
        "mean": first or (-1,),
    }
    if name == "permute":
        return bool(first[-1] % rank == rank - 1)  # type: ignore[index]
    if name == "pad":
        return not any(first)  # type: ignore[arg-type]
    if name in axes:
        return all(axis % rank != rank - 1 for axis in axes[name])
    return bool(value_of(node).shape[-1] == value_of(source).shape[-1])


def _is_alone(graph: fx.Graph, norm: _Norm) -> bool:
    """Whether nothing else uses the parameters that are to change, here or under a second node."""
    own = {norm.gamma: 1, norm.beta: 1}
    own |= {_target(reader.args[place]): 1 for reader in norm.readers for place in (1, 2)}
    if len(own) != 2 + 2 * len(norm.readers):
        return False
    uses = dict.fromkeys(own, 0)
    for node in graph.nodes:
        if node.op == "get_attr" and node.target in uses:
            uses[str(node.target)] += len(node.users)
    return uses == own


def _target(node: object) -> str:
    return str(node.target) if isinstance(node, fx.Node) and node.op == "get_attr" else ""
