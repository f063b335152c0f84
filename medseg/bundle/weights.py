"""Look into weight files without loading them: safetensors headers, and the pickle inside a PyTorch archive.

A PyTorch archive holds ``data.pkl``, a program for the pickle machine. It is read opcode by opcode: only the
opcodes and the few globals that a bare state dict needs are allowed.
"""

from __future__ import annotations

import json
import pickletools
import struct
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from medseg.bundle.configs import parse_json
from medseg.bundle.findings import Finding

__all__ = ["judge_safetensors", "judge_torch_archive"]

_HEADER_LIMIT = 100 * 1024 * 1024
_PICKLE_LIMIT = 64 * 1024 * 1024
_STORAGES = "Float Double Half BFloat16 Long Int Short Char Byte Bool"
_GLOBALS = frozenset(
    {
        "collections OrderedDict",
        "torch._utils _rebuild_tensor_v2",
        "torch._utils _rebuild_parameter",
        "torch.storage UntypedStorage",
        "torch Size",
        *(f"torch {name}Storage" for name in _STORAGES.split()),
    }
)
_OPCODES = frozenset(
    {"PROTO", "FRAME", "STOP", "MARK", "MEMOIZE", "BINPUT", "LONG_BINPUT", "BINGET", "LONG_BINGET", "NONE", "NEWTRUE"}
    | {"NEWFALSE", "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"}
    | {"EMPTY_DICT", "EMPTY_LIST", "EMPTY_TUPLE", "DICT", "LIST", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "SETITEM"}
    | {"SETITEMS", "APPEND", "APPENDS", "GLOBAL", "REDUCE", "BUILD", "BINPERSID"}
)
_TYPE_BYTES = {1: "BOOL U8 I8 F8_E4M3 F8_E5M2", 2: "I16 U16 F16 BF16", 4: "I32 U32 F32", 8: "I64 U64 F64"}
_BYTES = {name: count for count, names in _TYPE_BYTES.items() for name in names.split()}


def judge_torch_archive(path: Path, file: str) -> list[Finding]:
    """Findings on a ``.pt`` file; a PyTorch zip archive whose pickle builds a state dict and no more passes."""

    def found(what: str, why: str = "loading it can run code; save a bare state_dict()", place: str = "") -> Finding:
        return Finding("block", file, place, what, why)

    if not zipfile.is_zipfile(path):
        return [found("not a PyTorch zip archive", "the older formats are bare pickles; save it again with torch.save")]
    try:
        with zipfile.ZipFile(path) as archive:
            problem = _layout_problem(archive, path)
            if problem:
                return [found(problem)]
            pickled = [info for info in archive.infolist() if info.filename.endswith("/data.pkl")]
            if pickled[0].file_size > _PICKLE_LIMIT:
                return [found("its pickle is implausibly large")]
            return [found(problem, place=place) for place, problem in _pickle_problems(archive.read(pickled[0]))]
    except (zipfile.BadZipFile, ValueError, OSError, NotImplementedError, RuntimeError, EOFError) as error:
        return [found(f"the archive cannot be read: {error}", "readers disagree on broken archives; save it again")]


def _layout_problem(archive: zipfile.ZipFile, path: Path) -> str | None:
    names = [info.filename for info in archive.infolist()]
    roots = {name.partition("/")[0] for name in names}
    if len(set(names)) != len(names) or len(roots) != 1 or archive.comment:
        return "the archive has doubled members, several roots or a comment"
    if any(info.compress_type != zipfile.ZIP_STORED or ".." in info.filename.split("/") for info in archive.infolist()):
        return "the archive holds compressed or misnamed members"
    with path.open("rb") as handle:
        if handle.read(4) != b"PK\x03\x04":
            return "something stands before the archive"
    inside = {name.partition("/")[2] for name in names}
    if any(name.startswith("code/") or name in {"constants.pkl", "data.ts"} for name in inside):
        return "a TorchScript archive: it holds code"
    allowed = {"data.pkl", "version", "byteorder", ".format_version", ".storage_alignment", ".data/serialization_id"}
    strange = sorted(name for name in inside - allowed if not (name.startswith("data/") and name[5:].isdigit()))
    if strange:
        return f"the archive holds {strange[0]!r}, which is no part of a state dict"
    return None if "data.pkl" in inside else "the archive holds no data.pkl"


def _pickle_problems(data: bytes) -> Iterator[tuple[str, str]]:
    seen: set[str] = set()
    for opcode, argument, position in pickletools.genops(data):
        problem = None
        if opcode.name not in _OPCODES:
            problem = f"the pickle uses {opcode.name}"
        elif opcode.name == "GLOBAL" and argument not in _GLOBALS:
            problem = f"the pickle imports {str(argument).replace(' ', '.')}"
        elif opcode.name == "STOP" and position != len(data) - 1:
            problem = "something follows the end of the pickle"
        if problem and problem not in seen:
            seen.add(problem)
            yield f"data.pkl byte {position}", problem


def judge_safetensors(path: Path, file: str) -> list[Finding]:
    """Findings on a safetensors file: its header must describe the whole file and nothing else."""
    try:
        problem = _safetensors_problem(path)
    except (ValueError, OSError, LookupError, TypeError, AttributeError, struct.error) as error:
        problem = f"its header cannot be read, or is no safetensors header: {error!r}"
    return [Finding("block", file, "header", problem, "the file is damaged or tampered with")] if problem else []


def _safetensors_problem(path: Path) -> str | None:
    size = path.stat().st_size
    with path.open("rb") as handle:
        (length,) = struct.unpack("<Q", handle.read(8))
        if length > min(_HEADER_LIMIT, size - 8):
            return f"its header claims {length} bytes of a file of {size}"
        header: dict[str, Any] = parse_json(handle.read(length))
    metadata = header.pop("__metadata__", {})
    if not all(isinstance(value, str) for value in metadata.values()):
        return "its metadata holds something other than text"
    position = 0
    for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"][0]):
        start, end = entry["data_offsets"]
        count = 1
        for extent in entry["shape"]:
            count *= _natural(extent)
        if start != position or end - start != count * _BYTES[entry["dtype"]]:
            return f"the tensor {name!r} overlaps another, leaves a gap or has the wrong size"
        position = end
    return None if 8 + length + position == size else "bytes follow the last tensor"


def _natural(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError(f"the extent {json.dumps(value)} is not a natural number")
    return value
