"""A pickle of ``torch.save`` read as a list of instructions, none of which is carried out.

``torch.load(weights_only=True)`` runs no foreign code, but it believes the sizes that a pickle names: a ``bytearray``
of a terabyte is allocated, and a storage that claims more bytes than its record has is read beyond its end.  Here the
instructions are followed with placeholders on the stack, as many as a state dict is made of and no others.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import IO, Any

_MOST_INSTRUCTIONS = 500_000
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
    stack: list[Any] = []
    memo: dict[int, Any] = {}
    try:
        for number, (name, argument) in enumerate(_instructions(stream)):
            if number >= _MOST_INSTRUCTIONS:
                raise NoStateDictError(f"its pickle has more than {_MOST_INSTRUCTIONS} instructions")
            _follow(name, argument, stack, memo, check_storage)
    except NoStateDictError:
        raise
    except (ValueError, IndexError, KeyError, TypeError, OverflowError) as error:
        raise NoStateDictError(f"its pickle is damaged ({type(error).__name__}: {error})") from None


def _instructions(stream: IO[bytes]) -> Iterator[tuple[str, Any]]:
    for instruction, argument, _ in pickletools.genops(stream):
        yield instruction.name, argument


def _follow(
    name: str, argument: Any, stack: list[Any], memo: dict[int, Any], check_storage: Callable[[str, int], None]
) -> None:
    """Do to the stack what the instruction would do, with placeholders for what it would make."""
    if name in _CONSTANTS:
        stack.append(argument)
    elif name in ("EMPTY_DICT", "EMPTY_LIST", "EMPTY_SET", "EMPTY_TUPLE"):
        stack.append(() if name == "EMPTY_TUPLE" else _OTHER)
    elif name == "MARK":
        stack.append(_MARK)
    elif name == "GLOBAL":
        stack.append(_checked_name(argument))
    elif name in ("BINPUT", "LONG_BINPUT"):
        memo[argument] = stack[-1]
    elif name in ("BINGET", "LONG_BINGET"):
        stack.append(memo[argument])
    elif name == "TUPLE":
        stack.append(tuple(_above_mark(stack)))
    elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
        count = int(name[-1])
        stack[-count:] = [tuple(stack[-count:])]
    elif name in ("APPEND", "SETITEM", "BUILD"):
        del stack[-2 if name == "SETITEM" else -1 :]
    elif name in ("APPENDS", "SETITEMS"):
        _above_mark(stack)
    elif name == "REDUCE":
        _, function = stack.pop(), stack.pop()
        if not isinstance(function, _Name) or function.text not in _CALLABLE:
            raise NoStateDictError(f"its pickle calls {_shown(function)}, which makes no tensor")
        stack.append(_OTHER)
    elif name == "BINPERSID":
        stack.append(_checked_storage(stack.pop(), check_storage))
    elif name not in ("PROTO", "STOP"):
        raise NoStateDictError(f"its pickle has the instruction {name}, which no state dict needs")


_CONSTANTS = frozenset({
    "NONE", "NEWTRUE", "NEWFALSE", "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINSTRING",
})  # fmt: skip


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


def _above_mark(stack: list[Any]) -> list[Any]:
    place = len(stack) - 1 - stack[::-1].index(_MARK)
    items = stack[place + 1 :]
    del stack[place:]
    return items


def _shown(function: object) -> str:
    return function.text.replace(" ", ".") if isinstance(function, _Name) else "something without a name"
