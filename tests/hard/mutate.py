"""Damaged versions of sound files, each made from its number alone: bytes, and for some kinds the structure as well."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import random
import re
import struct
import zipfile
import zlib
from collections.abc import Callable

import onnx

_ODD_NUMBERS = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 1 << 40, (1 << 64) - 1)
_ODD_TEXTS = (
    "-1", "0", "1e999", "-0.0", "NaN", "99999999999999999999", "1.5", "true", "null", '""', '"\\u0000"', '"../../x"',
    "[]", "{}", "[[[[[[]]]]]]", '"' + "a" * 3000 + '"', '"~nobody/x"', '"inf"', "2147483648", '"float32"', "[1, -1]",
)  # fmt: skip
_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|-?[0-9][0-9.eE+-]*|[\w.-]+|[\[\]{}:,=\n]')


def mutant(kind: str, seed: bytes, number: int) -> bytes:
    """The damaged file of this number; the same number gives the same bytes."""
    chance = random.Random(f"{kind} {number}")
    special = _SPECIAL.get(kind)
    if special is not None and chance.random() < 0.6:
        return special(seed, chance)
    return damaged(seed, chance)


def damaged(data: bytes, chance: random.Random) -> bytes:
    """A few changes anywhere."""
    changed = bytearray(data)
    for _ in range(chance.choice((1, 1, 2, 3, 8))):
        if not changed:
            break
        _CHANGES[chance.randrange(len(_CHANGES))](changed, chance)
    return bytes(changed)


def _flip(data: bytearray, chance: random.Random) -> None:
    data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)


def _set(data: bytearray, chance: random.Random) -> None:
    data[chance.randrange(len(data))] = chance.choice((0, 0xFF, 0x7F, 0x80, chance.randrange(256)))


def _number(data: bytearray, chance: random.Random) -> None:
    size = chance.choice((2, 4, 8))
    place = chance.randrange(len(data))
    value = chance.choice(_ODD_NUMBERS) & ((1 << 8 * size) - 1)
    data[place : place + size] = value.to_bytes(size, chance.choice(("little", "big")))


def _cut(data: bytearray, chance: random.Random) -> None:
    del data[chance.randrange(len(data)) :]


def _remove(data: bytearray, chance: random.Random) -> None:
    place = chance.randrange(len(data))
    del data[place : place + chance.choice((1, 4, 64))]


def _insert(data: bytearray, chance: random.Random) -> None:
    data[chance.randrange(len(data)) : 0] = chance.randbytes(chance.choice((1, 4, 64)))


def _repeat(data: bytearray, chance: random.Random) -> None:
    place, size = chance.randrange(len(data)), chance.choice((1, 8, 100))
    data[place:place] = data[place : place + size] * chance.choice((1, 2, 30))


def _swap(data: bytearray, chance: random.Random) -> None:
    size = chance.choice((1, 4, 32))
    one, two = (chance.randrange(max(1, len(data) - size)) for _ in range(2))
    data[one : one + size], data[two : two + size] = data[two : two + size], data[one : one + size]


_CHANGES: tuple[Callable[[bytearray, random.Random], None], ...] = (
    _flip, _flip, _set, _number, _number, _cut, _remove, _insert, _repeat, _swap,
)  # fmt: skip


def _text(seed: bytes, chance: random.Random) -> bytes:
    """Tokens of JSON or TOML replaced, removed or doubled."""
    text = seed.decode()
    for _ in range(chance.choice((1, 1, 2, 4))):
        tokens = list(_TOKEN.finditer(text))
        token, other = chance.choice(tokens), chance.choice(tokens)
        new = chance.choice((chance.choice(_ODD_TEXTS), "", token[0] * 2, other[0], f"[{token[0]}]"))
        text = text[: token.start()] + new + text[token.end() :]
    return text.encode()


def _manifest(seed: bytes, chance: random.Random) -> bytes:
    """The same in a manifest, half of them with a sha256 that fits again."""
    text = _text(seed, chance)
    if chance.random() < 0.5:
        return text
    with contextlib.suppress(ValueError, AttributeError):
        content = json.loads(text)
        content.pop("sha256", None)
        body = json.dumps(content, sort_keys=True, separators=(",", ":"))
        return json.dumps({"sha256": hashlib.sha256(body.encode()).hexdigest(), **content}).encode()
    return text


def _png(seed: bytes, chance: random.Random) -> bytes:
    """Damage inside a chunk, with a check sum that fits again."""
    content, place = io.BytesIO(), 8
    chunks = []
    while place < len(seed):
        (size,) = struct.unpack(">I", seed[place : place + 4])
        chunks.append([seed[place + 4 : place + 8], seed[place + 8 : place + 8 + size]])
        place += 12 + size
    chosen = chance.choice([chunk for chunk in chunks if chunk[1]])
    is_packed = chosen[0] == b"IDAT" and chance.random() < 0.5
    body = damaged(zlib.decompress(chosen[1]) if is_packed else chosen[1], chance)
    chosen[1] = zlib.compress(body) if is_packed else body
    content.write(seed[:8])
    for kind, body in chunks:
        content.write(struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)))
    return content.getvalue()


def _zip(seed: bytes, chance: random.Random) -> bytes:
    """Damage inside a record, mostly the pickle, in an archive that is sound."""
    source, content = zipfile.ZipFile(io.BytesIO(seed)), io.BytesIO()
    names = source.namelist()
    chosen = (
        next(name for name in names if name.endswith("data.pkl")) if chance.random() < 0.8 else chance.choice(names)
    )
    with zipfile.ZipFile(content, "w") as target:
        for name in names:
            record = source.read(name)
            target.writestr(name, damaged(record, chance) if name == chosen else record)
    return content.getvalue()


def _safetensors(seed: bytes, chance: random.Random) -> bytes:
    """Damage to the header, whose length fits again."""
    (size,) = struct.unpack("<Q", seed[:8])
    header = seed[8 : 8 + size]
    if chance.random() < 0.5:
        table = json.loads(header)
        entry = table[chance.choice([name for name in table if name != "__metadata__"])]
        place = chance.choice(("shape", "data_offsets"))
        values = entry[place] or [0]
        values[chance.randrange(len(values))] = chance.choice((*_ODD_NUMBERS, -1))
        entry[place] = values
        entry["dtype"] = chance.choice((entry["dtype"], "F64", "F8_E5M2", "F4", "BOOL", "U16", "X"))
        header = json.dumps(table).encode()
    else:
        header = _text(header, chance)
    return struct.pack("<Q", len(header)) + header + seed[8 + size :]


def _onnx(seed: bytes, chance: random.Random) -> bytes:
    """Fields of the graph with other values, in a message that is sound."""
    model = onnx.load_model_from_string(seed)
    for _ in range(chance.choice((1, 1, 2, 4))):
        with contextlib.suppress(IndexError):  # of a node that has lost what is changed
            _change_field(model, chance)
    content: bytes = model.SerializeToString()
    return content


def _change_field(model: onnx.ModelProto, chance: random.Random) -> None:
    node, other, tensor = (
        chance.choice(each) for each in (model.graph.node, model.graph.node, model.graph.initializer)
    )
    kind = model.graph.input[0].type.tensor_type
    size = chance.choice(kind.shape.dim)
    changes: tuple[Callable[[], object], ...] = (
        lambda: node.input.__setitem__(0, chance.choice(["", *other.input])),
        lambda: node.output.__setitem__(0, chance.choice(["", "x", *other.output])),
        lambda: setattr(node, "op_type", chance.choice(["", "Loop", "Conv", "Relu", other.op_type])),
        node.input.pop,
        node.output.pop,
        lambda: model.graph.node.remove(node),
        lambda: node.attribute.extend([*other.attribute]),
        lambda: setattr(tensor, "data_type", chance.randrange(30)),
        lambda: tensor.dims.extend([chance.choice((0, 1, -1, 7))]),
        lambda: setattr(tensor, "raw_data", tensor.raw_data[: chance.randrange(9)]),
        lambda: setattr(size, "dim_value", chance.choice((0, -1, 1, 3, 1 << 20, 1 << 62))),
        lambda: setattr(model.opset_import[0], "version", chance.choice((-1, 0, 1, 9, 999))),
        lambda: setattr(kind, "elem_type", chance.randrange(30)),
        lambda: model.graph.output.extend([*model.graph.input]),
    )
    chance.choice(changes)()


_SPECIAL: dict[str, Callable[[bytes, random.Random], bytes]] = {
    "manifest": _manifest,
    "png": _png,
    "pt_zip": _zip,
    **dict.fromkeys(("onnx", "onnx_openvino"), _onnx),
    **dict.fromkeys(("safetensors", "model_tensors", "image_tensors"), _safetensors),
    **dict.fromkeys(
        ("toml", "model_json", "run_json", "config_json", "sheet_json", "trace_json", "report_json", "file_list"), _text
    ),
}
