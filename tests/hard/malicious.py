"""Files made to harm: to run code, to fill the memory, to hang, or to reach other files.

``CORPUS`` gives for each a target of ``tests.fuzz.targets`` and a function from the path of a canary to the bytes; who
carries out what such a file says writes the canary.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import struct
import warnings
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper
from PIL import Image

from tests.fuzz.targets import TARGETS, TOML, network, torch_saved
from tests.qdq_models import QdqBuilder

Maker = Callable[[Path], bytes]


class Command:
    """What ``pickle`` turns into a call when it loads it."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.canary}",)


class Expression(Command):
    def __reduce__(self) -> tuple[Any, ...]:
        return eval, (f"open({str(self.canary)!r}, 'w').close()",)


class FromBytes(Command):
    """A pickle in bytes, which torch would load without any restriction."""

    def __reduce__(self) -> tuple[Any, ...]:
        return torch.storage._load_from_bytes, (torch_saved(Command(self.canary), is_legacy=True),)


class Long:
    def __reduce__(self) -> tuple[Any, ...]:
        return bytearray, (100_000_000_000,)


def archive(
    records: dict[str, bytes], root: str = "archive", method: int = zipfile.ZIP_STORED, behind: bytes = b""
) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method, compresslevel=1) as target:
        for name, content in records.items():
            target.writestr(f"archive/{name}", content)
    return stream.getvalue() + behind


def with_pickle(content: bytes, **records: bytes) -> bytes:
    return archive({"data.pkl": content, "byteorder": b"little", "version": b"3\n", **records})


def storage_of(count: int, *, is_legacy: bool = False) -> bytes:
    """A file whose storage claims ``count`` floats and has one."""
    sound = torch_saved({"a": torch.zeros(1)}, is_legacy=is_legacy)
    # One item, as the storage and as the shape: the numbers in front of these instructions.
    claimed = b"\x8a\x08" + count.to_bytes(8, "little")
    if is_legacy:
        return sound.replace(b"K\x01Nt", claimed + b"Nt")
    parts = zipfile.ZipFile(io.BytesIO(sound))
    changed = (
        parts.read("archive/data.pkl").replace(b"K\x01tq", claimed + b"tq").replace(b"K\x01\x85", claimed + b"\x85")
    )
    return archive({"data.pkl": changed, "data/0": b"\0\0\0\0", "byteorder": b"little", "version": b"3\n"})


def overlapping() -> bytes:
    """An archive with a hundred names for one and the same record."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as target:
        target.writestr("archive/data.pkl", pickle.dumps({}, 2))
        target.writestr("archive/data/0", bytes(1 << 16))
        (record,) = (each for each in target.filelist if each.filename.endswith("/0"))
        for number in range(1, 100):
            other = zipfile.ZipInfo(f"archive/data/{number}")
            for field in ("header_offset", "CRC", "compress_size", "file_size"):
                setattr(other, field, getattr(record, field))
            target.filelist.append(other)
            target.NameToInfo[other.filename] = other
    return stream.getvalue()


def script() -> bytes:
    """The layout of TorchScript; it need not run to be refused."""
    return archive({"data.pkl": pickle.dumps({}, 2), "constants.pkl": b"", "code/__torch__.py": b"x"})


def exported() -> bytes:
    stream = io.BytesIO()
    torch.export.save(torch.export.export(network(), (torch.zeros(2, 3, 2, 2),)), stream)
    return stream.getvalue()


def npz(canary: Path) -> bytes:
    stream = io.BytesIO()
    np.savez(stream, images=np.array([Command(canary)], dtype=object))
    return stream.getvalue()


def npy_archive(shape: bytes, zeros: int = 0, times: int = 1) -> bytes:
    """An ``.npz`` with an array ``images`` of a claimed shape and some zeros."""
    header = b"{'descr': '|u1', 'fortran_order': False, 'shape': " + shape + b", }\n"
    content = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as target, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a name that is there already
        for _ in range(times):
            with target.open("images.npy", "w", force_zip64=True) as member:
                member.write(content)
                for start in range(0, zeros, 1 << 24):
                    member.write(bytes(min(1 << 24, zeros - start)))
    return stream.getvalue()


def safetensors(header: object, body: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + body


def entry(shape: list[int], first: int, last: int, dtype: str = "F32") -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [first, last]}


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(width: int, height: int, *chunks: bytes, depth: int = 8, colour: int = 2) -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + chunk(b"IEND", b"")


def png_bomb() -> bytes:
    """17.5 KB that become 432 MB of pixels."""
    stream, row = zlib.compressobj(9), b"\0" * (12_000 // 8 + 1)
    packed = b"".join([stream.compress(row) for _ in range(12_000)]) + stream.flush()
    return png(12_000, 12_000, chunk(b"IDAT", packed), depth=1, colour=0)


def jpeg(width: int, height: int) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (8, 8)).save(stream, "JPEG")
    data = stream.getvalue()
    place = data.index(b"\xff\xc0") + 5
    return data[:place] + struct.pack(">HH", height, width) + data[place + 4 :]


def many_scans() -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (2000, 2000)).save(stream, "JPEG", progressive=True)
    data = stream.getvalue()
    place = data.rindex(b"\xff\xda")
    return data[:place] + data[place:-2] * 3000 + data[-2:]


def webp() -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (8, 8)).save(stream, "WEBP", lossless=True)
    frame = bytes(6) + (7).to_bytes(3, "little") * 2 + bytes(4) + stream.getvalue()[12:]
    size = (16382).to_bytes(3, "little")
    body = b"WEBPVP8X" + struct.pack("<I", 10) + b"\x02\0\0\0" + size * 2
    body += b"ANIM" + struct.pack("<IIH", 6, 0, 0) + b"ANMF" + struct.pack("<I", len(frame)) + frame
    return b"RIFF" + struct.pack("<I", len(body)) + body


def bmp(width: int, height: int, compression: int = 0) -> bytes:
    header = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, compression, 0, 0, 0, 256, 0)
    return b"BM" + struct.pack("<IHHI", 54, 0, 0, 1078) + header + bytes(1024) + b"\0\1\0\1"


def graph(change: Callable[[Any], None]) -> bytes:
    make = QdqBuilder((3, 8, 8))
    model = onnx.load_model_from_string(make.bytes(make.conv(make.image(), channels=3)))
    change(model)
    content: bytes = model.SerializeToString()
    return content


def huge_constant(model: Any) -> None:
    model.graph.initializer[0].dims[:] = [1 << 40, 1 << 20]


def huge_input(model: Any) -> None:
    for size in model.graph.input[0].type.tensor_type.shape.dim:
        size.dim_value = 1 << 30


def negative_constant(model: Any) -> None:
    model.graph.initializer[0].dims[:] = [-1, -4]


def custom_operator(model: Any) -> None:
    model.graph.node[0].domain, model.graph.node[0].op_type = "evil", "RunCode"
    model.opset_import.append(helper.make_opsetid("evil", 1))


def hidden_constant(model: Any) -> None:
    """An external tensor in a subgraph of a node."""
    tensor = helper.make_tensor("hidden", TensorProto.FLOAT, [0], [])
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../../../etc/passwd")
    inner = helper.make_graph([helper.make_node("Identity", ["hidden"], ["y"])], "inner", [], [], [tensor])
    model.graph.node.append(helper.make_node("If", ["c"], ["z"], then_branch=inner, else_branch=inner))


def deep_graph(_: Path) -> bytes:
    """A graph in an attribute of a node in a graph, 2000 times, written field by field."""

    def field(number: int, content: bytes) -> bytes:
        size, length = b"", len(content)
        while length > 0x7F:
            size, length = size + bytes([length & 0x7F | 0x80]), length >> 7
        return bytes([number << 3 | 2]) + size + bytes([length]) + content

    content = b""
    for _level in range(2000):
        content = field(1, field(5, field(6, content)))
    return field(7, content)


def model_json(**changes: object) -> bytes:
    (sound,) = TARGETS["model_json"].seeds()
    return json.dumps({**json.loads(sound), **changes}).encode()


def tree_with_import(canary: Path) -> bytes:
    """torch imports the module that an "enum" in a tree specification names."""
    (canary.parent / "evil_module.py").write_text(f"open({str(canary)!r}, 'w').close()\n")
    context = json.dumps({"__enum__": True, "fqn": "evil_module:x", "name": "y"})
    structure = json.dumps([1, {"type": "builtins.dict", "context": context, "children_spec": []}])
    return model_json(submodule="1", form={"shapes": [[12]], "structure": structure})


def manifest(part: str) -> bytes:
    """The manifest of a saved state, with a hash that fits, one of whose parts is another file."""
    content = json.loads(TARGETS["manifest"].seeds()[0])
    del content["sha256"]
    next(iter(content["entries"].values()))["file"] = part
    packed = json.dumps(content, sort_keys=True, separators=(",", ":")).encode()
    return json.dumps({"sha256": hashlib.sha256(packed).hexdigest(), **content}).encode()


PICKLES: dict[str, tuple[str, Maker]] = {
    "a command in a zip": ("pt_zip", lambda canary: torch_saved(Command(canary))),
    "a command in the old format": ("pt_legacy", lambda canary: torch_saved(Command(canary), is_legacy=True)),
    "a command among weights": ("pt_zip", lambda canary: torch_saved({"a": torch.zeros(2), "b": Command(canary)})),
    "a command as the wrapper": ("pt_legacy", lambda c: torch_saved({"state_dict": Command(c)}, is_legacy=True)),
    "an expression": ("pt_zip", lambda canary: torch_saved({"state_dict": {"a": Expression(canary)}})),
    "a pickle in bytes": ("pt_zip", lambda canary: torch_saved(FromBytes(canary))),
    "a bare pickle": ("pt_zip", lambda canary: pickle.dumps(Command(canary))),
    "a bare pickle of protocol 0": ("pt_legacy", lambda canary: pickle.dumps(Command(canary), 0)),
    "a pickle called .safetensors": ("safetensors", lambda canary: pickle.dumps(Command(canary), 2)),
    "a zip called .safetensors": ("safetensors", lambda canary: torch_saved(Command(canary))),
    "a pickle as images": ("image_tensors", lambda canary: pickle.dumps(Command(canary), 2)),
    "an array of objects": ("pt_zip", npz),
    "an array of objects as images": ("image_tensors", npz),
    "an array of objects in an archive": ("npz", npz),
    "a long bytearray": ("pt_zip", lambda _: torch_saved({"a": Long()})),
    "a long bytearray in the old format": ("pt_legacy", lambda _: torch_saved({"a": Long()}, is_legacy=True)),
    "a storage of a terabyte": ("pt_zip", lambda _: storage_of(1 << 38)),
    "a storage of a terabyte in the old format": ("pt_legacy", lambda _: storage_of(1 << 38, is_legacy=True)),
    "a view of a terabyte": ("pt_zip", lambda _: torch_saved({"1.weight": torch.zeros(1).expand(1 << 38)})),
    "many instructions": ("pt_zip", lambda _: with_pickle(b"\x80\x02}" + b"N0" * 1_500_000 + b".")),
    "deep tuples": ("pt_zip", lambda _: with_pickle(b"\x80\x02N" + b"\x85" * 400_000 + b".")),
    "a list that doubles": ("pt_zip", lambda _: with_pickle(b"\x80\x02]q\x00" + b"h\x00h\x00\x86q\x00" * 200 + b".")),
    "a program": ("pt_zip", lambda _: script()),
    "an exported program": ("pt_zip", lambda _: exported()),
    "a bomb": ("pt_zip", lambda _: archive({"data.pkl": pickle.dumps({}, 2), "data/0": bytes(1 << 28)}, method=8)),
    "one record under many names": ("pt_zip", lambda _: overlapping()),
    "many records": ("pt_zip", lambda _: archive({f"data/{n}": b"" for n in range(30_000)})),
    "something behind the archive": ("pt_zip", lambda c: archive({"data.pkl": pickle.dumps(Command(c))}, behind=b"x")),
    "an archive behind another": ("pt_zip", lambda c: torch_saved({}) + torch_saved(Command(c))),
    "a path in the archive": ("pt_zip", lambda _: with_pickle(pickle.dumps({}, 2), **{"../../evil": b"x"})),
}
TENSORS: dict[str, tuple[str, Maker]] = {
    "a header of 2^63 bytes": ("safetensors", lambda _: safetensors({}, length=1 << 63)),
    "a header longer than the file": ("safetensors", lambda _: safetensors({}, length=1 << 20)),
    "overlapping tensors": (
        "safetensors", lambda _: safetensors({"a": entry([2], 0, 8), "b": entry([2], 4, 12)}, bytes(12))),
    "negative places": ("safetensors", lambda _: safetensors({"a": entry([2], -8, 0)}, bytes(8))),
    "places beyond the end": ("safetensors", lambda _: safetensors({"a": entry([2], 0, 1 << 40)}, bytes(8))),
    "a shape that overflows": ("safetensors", lambda _: safetensors({"a": entry([1 << 62, 4], 0, 0)})),
    "a negative shape": ("safetensors", lambda _: safetensors({"a": entry([-1, -2], 0, 8)}, bytes(8))),
    "a deep header": ("safetensors", lambda _: safetensors(b'{"a":' + b"[" * 100_000)),
    "the same name twice": ("safetensors", lambda _: safetensors(
        b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"a":{"dtype":"U8","shape":[9],"data_offsets":[1,10]}}',
        bytes(10))),
    "images of no size": ("image_tensors", lambda _: safetensors({"images": entry([0, 1 << 40], 0, 0)})),
}  # fmt: skip
IMAGES: dict[str, tuple[str, Maker]] = {
    "a PNG bomb": ("png", lambda _: png_bomb()),
    "a PNG of 2^31 lines": ("png", lambda _: png((1 << 31) - 1, (1 << 31) - 1, chunk(b"IDAT", zlib.compress(b"\0")))),
    "a PNG with a long text": (
        "png", lambda _: png(4, 4, chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(1 << 25))))),
    "a PNG with a long profile": (
        "png", lambda _: png(4, 4, chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(1 << 25))))),
    "a JPEG of 65535 lines": ("jpg", lambda _: jpeg(65_535, 65_535)),
    "a JPEG of many scans": ("jpg", lambda _: many_scans()),
    "a WebP of 16383 lines": ("webp", lambda _: webp()),
    "a BMP of 2^31 lines": ("bmp", lambda _: bmp((1 << 31) - 1, (1 << 31) - 1)),
    "a BMP of 30000 packed lines": ("bmp", lambda _: bmp(30_000, 30_000, 1)),
    "a BMP of few bytes": ("bmp", lambda _: bmp(7_000, 7_000)),
    "PostScript called .png": (
        "png", lambda c: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n" + f"({c}) (w) file closefile\n".encode()),
}  # fmt: skip
ARRAYS: dict[str, tuple[str, Maker]] = {
    "an array of 2^80 values": ("npz", lambda _: npy_archive(b"(1099511627776, 1099511627776, 3, 3)")),
    "an array of negative size": ("npz", lambda _: npy_archive(b"(-1, -4, 3, 3)")),
    "an array longer than its bytes": ("npz", lambda _: npy_archive(b"(100000, 3, 8, 8)")),
    "a header that is a program": ("npz", lambda c: npy_archive(f"open({str(c)!r}, 'w')".encode())),
    "an array that unpacks to gigabytes": ("npz", lambda _: npy_archive(b"(20000, 3, 60, 60)", zeros=216_000_000)),
    "two arrays of one name": ("npz", lambda _: npy_archive(b"(1, 3, 2, 2)", zeros=12, times=2)),
    "an archive of many members": ("npz", lambda _: archive({f"{number}.npy": b"" for number in range(2000)})),
}
GRAPHS: dict[str, tuple[str, Maker]] = {
    "a constant of 2^60 values": ("onnx", lambda _: graph(huge_constant)),
    "an input of 2^120 values": ("onnx", lambda _: graph(huge_input)),
    "a constant of negative size": ("onnx", lambda _: graph(negative_constant)),
    "an operator of a library": ("onnx", lambda _: graph(custom_operator)),
    "a file hidden in a subgraph": ("onnx", lambda _: graph(hidden_constant)),
    "a deep graph": ("onnx", deep_graph),
    "a message without an end": ("onnx", lambda _: b"\x3a" + b"\xff" * 9 + b"\x01" + bytes(100)),
}
TEXTS: dict[str, tuple[str, Maker]] = {
    "deep lists": ("toml", lambda _: b"x = " + b"[" * 100_000),
    "a deep key": ("toml", lambda _: b"a" + b".a" * 100_000 + b" = 1"),
    "deep tables": ("toml", lambda _: b"x = " + b"{a = " * 20_000),
    "a long configuration": ("toml", lambda _: b"# comment\n" * 1_000_000),
    "a long number": ("toml", lambda _: b"[run]\nseed = " + b"9" * 100_000),
    "a key of no section": ("toml", lambda _: TOML.replace("[run]", "[run]\nhook = 'os:system'").encode()),
    "no end of a string": ("toml", lambda _: b'a = """' + b'\\"' * 100_000),
    "a deep description": ("model_json", lambda _: b'{"format": 1, "policy": ' + b"[" * 500_000),
    "a description with NaN": ("model_json", lambda _: model_json(input_shape=[float("nan")])),
    "an input of 2^90 values": ("model_json", lambda _: model_json(input_shape=[1 << 30] * 3)),
    "an input of 2^28 values in all": ("model_json", lambda _: model_json(input_shape=[1 << 15] * 2)),
    "codes of 2^80 values": ("model_json", lambda _: model_json(code_shapes={"1": [1 << 40, 1 << 40]})),
    "a module in a description": ("model_json", tree_with_import),
    "a long description": ("model_json", lambda _: b"[" + b"[]," * 2_000_000 + b"[]]"),
    "a record with NaN": ("run_json", lambda _: TARGETS["run_json"].seeds()[0].replace(b'"seed": 0', b'"seed": NaN')),
    "a record of many digits": ("run_json", lambda _: b'{"seed": ' + b"9" * 1_000_000 + b"}"),
    "a deep trace": ("trace_json", lambda _: b'{"a":' * 200_000),
    "deep evidence": ("report_json", lambda _: b'{"a":' * 200_000),
    "a deep record": ("run_json", lambda _: b'{"a":' * 200_000),
    "a deep configuration": ("config_json", lambda _: b'{"model":' * 200_000),
    "a list of a secret": ("file_list", lambda _: b"a.png\n/etc/passwd\n"),
    "a list without an end of a line": ("file_list", lambda _: b"a" * 10_000_000),
    "a list of bytes": ("file_list", lambda _: bytes(range(256)) * 100),
    "a sheet of 10^18 tiles": ("sheet_json", lambda _: b'{"tile": [4, 4], "columns": 2, "count": 1000000000000000000}'),
    "a manifest's part elsewhere": ("manifest", lambda canary: manifest(f"../{canary.name}.safetensors")),
    "a manifest's part by its whole path": ("manifest", lambda canary: manifest(f"{canary}.safetensors")),
    "a deep manifest": ("manifest", lambda _: b'{"entries": ' + b"[" * 500_000),
    "a sheet elsewhere": (
        "sheet_json", lambda _: b'{"tile": [4, 4], "columns": 2, "count": 4, "sheets": ["../../secret.png"]}'),
}  # fmt: skip
CORPUS = {**PICKLES, **TENSORS, **ARRAYS, **IMAGES, **GRAPHS, **TEXTS}
