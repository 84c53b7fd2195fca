"""A worker lets go of the weights of units that others have: only their shapes stay."""

from __future__ import annotations

from torch import nn

from clcalib.capture.chain import Chain


def release(chain: Chain, kept: range) -> None:
    """Put tensors without bytes (device "meta") into the places of all that the kept units do not need.

    Args:
        chain: a float chain; its module is changed in place.
        kept: the numbers of the units.
    """
    bodies = [chain.cut_body(index) for index in kept]
    needed = {name for body in bodies for name, _ in (*body.named_parameters(), *body.named_buffers())}
    for path, module in chain.module.named_modules():
        for table in (module._parameters, module._buffers):
            for name, tensor in table.items():
                full = f"{path}.{name}" if path else name
                if tensor is None or full in needed:
                    continue
                empty = tensor.detach().to("meta")
                is_parameter = isinstance(tensor, nn.Parameter)
                table[name] = nn.Parameter(empty, tensor.requires_grad) if is_parameter else empty


def held_bytes(module: nn.Module) -> int:
    """The bytes of all tensors of a module that have any, each memory counted once."""
    storages = {}
    for tensor in module.state_dict(keep_vars=True).values():
        if not tensor.is_meta:
            storage = tensor.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())
