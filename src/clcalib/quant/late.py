"""The same quantized network with its quantizers as late as they can be, right in front of what computes with them.

A target quantizes where a kernel stores its result, in front of all that only moves codes: a pool by maximum, a
shuffle of channels.  Where a chain is cut behind such a move, the quantizer of what a unit reads stands in another
unit.  Behind the move it makes the same values, as each is rounded by itself, in an order that rounding keeps.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from torch import Tensor, fx

from clcalib.capture.chain import Chain
from clcalib.capture.graph import value_of
from clcalib.quant.insert import Unquantized
from clcalib.quant.modules import ActivationQuantizer
from clcalib.quant.placement import hands_on


def with_late_quantizers(chain: Chain) -> Chain:
    """Return a quantized chain whose activation quantizers stand behind the moves that follow them.

    Its outputs are the same, bit for bit.  The units are those of ``chain``, by the names of the float tensors between
    them, and parameters and quantizers are shared with it.
    """
    graph, copies = fx.Graph(), dict[fx.Node, fx.Node]()
    graph.output(graph.graph_copy(chain.module.graph, copies))
    for node in tuple(graph.nodes):
        if _is_quantizer(chain, node):
            _move(graph, node)
    return dataclasses.replace(chain, module=fx.GraphModule(chain.module, graph, type(chain.module).__name__).eval())


def _move(graph: fx.Graph, quantizer: fx.Node) -> None:
    """Let all that only moves a quantizer's codes move its input, and put the quantizer behind it."""
    (tensor,) = quantizer.all_input_nodes
    for mover in [user for user in quantizer.users if hands_on(user)]:
        mover.replace_input_with(quantizer, tensor)
        # What takes a tensor into parts returns a list, from which each part is taken by a node of its own.
        for part in [mover] if isinstance(value_of(mover), Tensor) else tuple(mover.users):
            readers = tuple(part.users)
            with graph.inserting_after(part):
                late = graph.call_module(str(quantizer.target), (part,))
            late.meta = dict(part.meta)
            for reader in readers:
                reader.replace_input_with(part, late)
            _move(graph, late)


def _is_quantizer(chain: Chain, node: fx.Node) -> bool:
    module: Any = chain.module.get_submodule(str(node.target)) if node.op == "call_module" else None
    return isinstance(module, ActivationQuantizer | Unquantized)
