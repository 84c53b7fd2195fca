"""Where a model is, and moving a captured network to a device."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx, nn


def home_of(model: nn.Module) -> torch.device:
    """Where a model is; the CPU where it has nothing that lies anywhere."""
    return next((tensor.device for tensor in (*model.parameters(), *model.buffers())), torch.device("cpu"))


def move(module: fx.GraphModule, place: torch.device) -> fx.GraphModule:
    """Move a captured network, in place; returned.

    ``nn.Module.to`` moves parameters and buffers.  The devices that ``torch.export`` wrote into nodes, for tensors that
    are made anew in each call (``arange`` up to the batch size), stay what they were without this.
    """

    def moved(value: Any) -> Any:
        return place if isinstance(value, torch.device) else value

    module.to(place)
    for part in module.modules():
        if not isinstance(part, fx.GraphModule):
            continue
        is_changed = False
        for node in part.graph.nodes:
            arguments, options = fx.node.map_aggregate((node.args, node.kwargs), moved)
            if (arguments, options) != (node.args, node.kwargs):
                node.args, node.kwargs, is_changed = arguments, options, True
        if is_changed:
            part.recompile()
    return module
