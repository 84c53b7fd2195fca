"""A pickle of ``torch.save`` read as a list of instructions, none of which is carried out.

``torch.load(weights_only=True)`` runs no foreign code, but it believes the sizes that a pickle names: a ``bytearray``
of a terabyte is allocated, and a storage that claims more bytes than its record has is read beyond its end.  Here the
instructions are followed with placeholders on the stack, as many as a state dict is made of and no others.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable
from dataclasses import dataclass
from typing import IO, Any

_MOST_INSTRUCTIONS = 400_000  # of a tensor about 30
_STORAGES = {
    "DoubleStorage": 8, "FloatStorage": 4, "HalfStorage": 2, "BFloat16Storage": 2, "LongStorage": 8, "IntStorage": 4,
    "ShortStorage": 2, "CharStorage": 1, "ByteStorage": 1, "BoolStorage": 1, "ComplexDoubleStorage": 16,
    "ComplexFloatStorage": 8,
}  # fmt: skip
_ITEM_BYTES = {f"torch {name}": size for name, size in _STORAGES.items()} | {"torch.storage UntypedStorage": 1}
_CALLABLE = frozenset({
    "collections OrderedDict", "torch._utils _rebuild_tensor", "torch._utils _rebuild_tensor_v2",
    "torch._utils _rebuild_tensor_v3", "torch._utils _rebuild_parameter",
})  # fmt: skip
_TYPES = frozenset(
    f"torch {name}"
    for name in ("float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz", "uint16", "uint32", "uint64")
)
_MARK, _OTHER = object(), object()


class NoStateDictError(ValueError):
    """The pickle is damaged, or holds other things than tensors; the message says which."""


@dataclass(frozen=True)
class _Name:
    text: str  # "module name"


def check_pickle(stream: IO[bytes], check_storage: Callable[[str, int], None]) -> None:
    """Follow the instructions of the pickle that begins here, and stop behind it.

    Args:
        stream: at the first byte of the pickle.
        check_storage: called with the key of each storage and the bytes that the pickle says it has.

    Raises:
        NoStateDictError: it is damaged, too long, or names anything that a state dict does not need.
    """
    machine = _Machine([], {}, check_storage)
    try:
        for number, (instruction, argument, _) in enumerate(pickletools.genops(stream)):
            if number >= _MOST_INSTRUCTIONS:
                raise NoStateDictError(f"its pickle has more than {_MOST_INSTRUCTIONS} instructions")
            follow = _FOLLOW.get(instruction.name)
            if follow is None:
                raise NoStateDictError(f"its pickle has the instruction {instruction.name}, which no state dict needs")
            follow(machine, argument)
    except NoStateDictError:
        raise
    except (ValueError, IndexError, KeyError, TypeError, OverflowError) as error:
        raise NoStateDictError(f"its pickle is damaged ({type(error).__name__}: {error})") from None


@dataclass
class _Machine:
    """What unpickling has, with placeholders for what it would make."""

    stack: list[Any]
    memo: dict[int, Any]
    check_storage: Callable[[str, int], None]

    def push(self, argument: Any) -> None:
        self.stack.append(argument)

    def push_other(self, _: Any) -> None:
        self.stack.append(_OTHER)

    def push_name(self, argument: Any) -> None:
        self.stack.append(_checked_name(argument))

    def mark(self, _: Any) -> None:
        self.stack.append(_MARK)

    def put(self, argument: Any) -> None:
        self.memo[argument] = self.stack[-1]

    def get(self, argument: Any) -> None:
        self.stack.append(self.memo[argument])

    def make_tuple(self, _: Any) -> None:
        self.stack.append(tuple(self.above_mark()))

    def make_small_tuple(self, count: int) -> None:
        self.stack[-count:] = [tuple(self.stack[-count:])]

    def drop(self, count: int) -> None:
        del self.stack[-count:]

    def above_mark(self, _: Any = None) -> list[Any]:
        place = len(self.stack) - 1
        while self.stack[place] is not _MARK:
            place -= 1
            if place < 0:
                raise NoStateDictError("its pickle is damaged (a mark is missing)")
        items = self.stack[place + 1 :]
        del self.stack[place:]
        return items

    def call(self, _: Any) -> None:
        _, function = self.stack.pop(), self.stack.pop()
        if not isinstance(function, _Name) or function.text not in _CALLABLE:
            raise NoStateDictError(f"its pickle calls {_shown(function)}, which makes no tensor")
        self.stack.append(_OTHER)

    def push_storage(self, _: Any) -> None:
        self.stack.append(_checked_storage(self.stack.pop(), self.check_storage))

    def nothing(self, _: Any) -> None:
        pass


_CONSTANTS = (
    "NONE", "NEWTRUE", "NEWFALSE", "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINSTRING",
)  # fmt: skip
_FOLLOW: dict[str, Callable[[_Machine, Any], object]] = {
    **dict.fromkeys(_CONSTANTS, _Machine.push),
    **dict.fromkeys(("EMPTY_DICT", "EMPTY_LIST", "EMPTY_SET"), _Machine.push_other),
    "EMPTY_TUPLE": lambda machine, _: machine.push(()),
    "MARK": _Machine.mark,
    "GLOBAL": _Machine.push_name,
    **dict.fromkeys(("BINPUT", "LONG_BINPUT"), _Machine.put),
    **dict.fromkeys(("BINGET", "LONG_BINGET"), _Machine.get),
    "TUPLE": _Machine.make_tuple,
    "TUPLE1": lambda machine, _: machine.make_small_tuple(1),
    "TUPLE2": lambda machine, _: machine.make_small_tuple(2),
    "TUPLE3": lambda machine, _: machine.make_small_tuple(3),
    **dict.fromkeys(("APPEND", "BUILD"), lambda machine, _: machine.drop(1)),
    "SETITEM": lambda machine, _: machine.drop(2),
    **dict.fromkeys(("APPENDS", "SETITEMS"), _Machine.above_mark),
    "REDUCE": _Machine.call,
    "BINPERSID": _Machine.push_storage,
    **dict.fromkeys(("PROTO", "STOP"), _Machine.nothing),
}


def _checked_name(text: str) -> _Name:
    if text not in _CALLABLE and text not in _ITEM_BYTES and text not in _TYPES:
        raise NoStateDictError(f"it holds an object of {text.replace(' ', '.')[:100]}, which is no tensor")
    return _Name(text)


def _checked_storage(identity: Any, check_storage: Callable[[str, int], None]) -> object:
    """Check ("storage", type, key, location, count), the legacy form of which ends with None."""
    is_tuple = isinstance(identity, tuple) and len(identity) in (5, 6) and identity[0] == "storage"
    if not is_tuple or identity[5:] not in ((), (None,)):
        raise NoStateDictError("its pickle refers to something outside that is no storage")
    _, kind, key, location, count = identity[:5]
    is_known = isinstance(kind, _Name) and kind.text in _ITEM_BYTES
    if not is_known or not isinstance(key, str) or not isinstance(location, str) or type(count) is not int or count < 0:
        raise NoStateDictError("its pickle describes a storage that cannot be")
    check_storage(key, count * _ITEM_BYTES[kind.text])
    return _OTHER


def _shown(function: object) -> str:
    return function.text.replace(" ", ".") if isinstance(function, _Name) else "something without a name"
