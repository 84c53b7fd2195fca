"""A CUDA graph where there is no GPU: PyTorch's operations are written down, and done again on the same memory.

As in a real graph, numbers that Python passed to an operation are frozen, tensors are read where they lie, the work is
not done while it is recorded, and waiting for a value is an error.  Kernels that PyTorch does not dispatch would not
be seen, so the plain path has to be taken.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

WAITS = ("_local_scalar_dense", "nonzero", "masked_select", "_unique2", "unique_dim", "equal", "is_nonzero")


class RefusesToWait(TorchDispatchMode):
    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.overloadpacket.__name__ in WAITS:
            raise RuntimeError(f"called a synchronizing operation: {function}")
        return function(*args, **(kwargs or {}))


class Tape(RefusesToWait):
    """The operations in their order, and what the tensors that they changed held before."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[tuple[Any, tuple[Any, ...], dict[str, Any], list[Tensor]]] = []
        self.before: dict[int, tuple[Tensor, Tensor]] = {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        for tensor in changed_by(function, args, kwargs):
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in self.before:
                whole = torch.empty(0, dtype=torch.uint8).set_(storage)
                self.before[storage.data_ptr()] = whole, whole.clone()
        result = super().__torch_dispatch__(function, types, args, kwargs)
        is_fresh = not any(value.alias_info for value in function._schema.returns)
        fresh = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)] if is_fresh else []
        self.operations.append((function, args, kwargs, fresh))
        return result

    def undo(self) -> None:
        for whole, values in self.before.values():
            whole.copy_(values)

    @torch.no_grad()
    def play(self) -> None:
        for function, args, kwargs, fresh in self.operations:
            found = function(*args, **kwargs)
            new = [leaf for leaf in tree_leaves(found) if isinstance(leaf, Tensor)] if fresh else []
            for tensor, value in zip(fresh, new, strict=True):
                tensor.copy_(value)


def changed_by(function, args, kwargs) -> list[Tensor]:
    names = [
        argument for argument in function._schema.arguments if argument.alias_info and argument.alias_info.is_write
    ]
    places = {argument.name: at for at, argument in enumerate(function._schema.arguments)}
    given = [args[places[a.name]] if places[a.name] < len(args) else kwargs.get(a.name) for a in names]
    return [leaf for leaf in tree_leaves(given) if isinstance(leaf, Tensor)]


class EmulatedGraphs:
    """Stands for ``CudaGraphs``."""

    def __init__(self, device: torch.device) -> None:
        self.recorded, self.played = 0, 0

    def running(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    @contextlib.contextmanager
    def refusing_to_wait(self) -> Iterator[None]:
        with RefusesToWait():
            yield

    def record(self, work: Callable[[], object]) -> Callable[[], None]:
        tape = Tape()
        with tape:
            work()
        tape.undo()
        self.recorded += 1

        def play() -> None:
            self.played += 1
            tape.play()

        return play
