"""Judge files of weights without loading them: what they would run, and what they would ask of memory.

A PyTorch archive holds ``data.pkl``, a program for the pickle machine, read here opcode by opcode: only the opcodes and
the few globals that a bare state dict needs are allowed. The program is then followed as far as tensors and storages
go, none of which is made: a storage must be as large as its member of the archive, and tensors may not show much more
than their storages hold. (torch lists the globals of a checkpoint, too, but has to be imported for it, and looks
neither at the opcodes nor at the rest of the archive.) The header of safetensors is judged by its own library.
"""

from __future__ import annotations

import math
import pickletools
import re
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medseg.bundle.findings import Finding
from medseg.files import open_zip, read_member

_LARGEST_PICKLE = 2 << 20
"""A tensor of a state dict takes 120 bytes and 31 opcodes: room for 17,000 of them, judged in two seconds."""
_LARGEST_HEADER = 2 << 20
"""A tensor of safetensors takes 100 bytes of the header: room for 20,000 of them."""
_ITEM_BYTES = {
    "FloatStorage": 4, "DoubleStorage": 8, "HalfStorage": 2, "BFloat16Storage": 2, "LongStorage": 8, "IntStorage": 4,
    "ShortStorage": 2, "CharStorage": 1, "ByteStorage": 1, "BoolStorage": 1, "UntypedStorage": 1,
}  # fmt: skip
_GLOBALS = frozenset(
    {
        "collections OrderedDict",
        "torch._utils _rebuild_tensor_v2",
        "torch._utils _rebuild_parameter",
        "torch.storage UntypedStorage",
        "torch Size",
        *(f"torch {name}" for name in _ITEM_BYTES if name != "UntypedStorage"),
        *("numpy ndarray", "numpy dtype", "_codecs encode"),
        *(f"numpy.{core}.multiarray _reconstruct" for core in ("core", "_core")),
    }
)
"""With numpy's arrays, which :func:`medseg.bundle.portable.arrays_as_data` reads: torch alone refuses them."""
_OPCODES = frozenset(
    {"PROTO", "FRAME", "STOP", "MARK", "MEMOIZE", "BINPUT", "LONG_BINPUT", "BINGET", "LONG_BINGET", "NONE", "NEWTRUE"}
    | {"NEWFALSE", "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"}
    | {"EMPTY_DICT", "EMPTY_LIST", "EMPTY_TUPLE", "DICT", "LIST", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "SETITEM"}
    | {"SETITEMS", "APPEND", "APPENDS", "GLOBAL", "REDUCE", "BUILD", "BINPERSID"}
)
_SHOWN_TWICE = 4
"""How often tensors may show their storages, in all: weights that layers share."""
_ALWAYS_ELEMENTS = 1 << 20
_MOST_AXES = 16
_PLAIN_NUMBERS = re.compile(r"[biuf]\d{1,2}")
_DAMAGED = "the file is damaged or tampered with"


def judge_torch_archive(
    path: Path, file: str, inert: frozenset[str] = frozenset(), largest_pickle: int = _LARGEST_PICKLE
) -> list[Finding]:
    """Findings on a ``.pt`` file; a PyTorch zip archive whose pickle builds a state dict and no more passes.

    ``inert``: further globals, as ``"numpy dtype"``, that whoever loads the file puts stand-ins for.
    """

    def found(what: str, why: str = "loading it can run code; save a bare state_dict()", place: str = "") -> Finding:
        return Finding("block", file, place, what, why)

    if not zipfile.is_zipfile(path):
        return [found("not a PyTorch zip archive", "the older formats are bare pickles; save it again with torch.save")]
    try:
        with open_zip(path) as archive:
            if problem := _layout_problem(archive, path):
                return [found(problem)]
            sizes = {info.filename.partition("/")[2]: info.file_size for info in archive.infolist()}
            pickled = next(info for info in archive.infolist() if info.filename.endswith("/data.pkl"))
            if pickled.file_size > largest_pickle:
                what = f"its data.pkl is of {pickled.file_size} bytes, expected at most {largest_pickle}"
                return [found(what, "a state dict needs 120 bytes for a tensor; save a bare state_dict()")]
            data = read_member(archive, pickled, largest_pickle)
    except (zipfile.BadZipFile, ValueError, OSError, NotImplementedError, RuntimeError, EOFError) as error:
        return [found(f"the archive cannot be read: {error}", "readers disagree on broken archives; save it again")]
    try:
        problems = [found(problem, place=place) for place, problem in _pickle_problems(data, inert)]
        return problems or [found(problem, _DAMAGED, "data.pkl") for problem in _size_problems(data, sizes, inert)]
    except ValueError as error:
        return [found(f"its pickle cannot be read: {error}", _DAMAGED, "data.pkl")]


def _layout_problem(archive: zipfile.ZipFile, path: Path) -> str | None:
    infos = archive.infolist()
    names = [info.filename for info in infos]
    roots = {name.partition("/")[0] for name in names}
    if len(set(names)) != len(names) or len(roots) != 1 or archive.comment:
        return "the archive has doubled members, several roots or a comment"
    if any(info.compress_type != zipfile.ZIP_STORED or ".." in info.filename.split("/") for info in infos):
        return "the archive holds compressed or misnamed members"
    if problem := _stated_problem(infos, path):
        return problem
    inside = {name.partition("/")[2] for name in names}
    if any(name.startswith("code/") or name in {"constants.pkl", "data.ts"} for name in inside):
        return "a TorchScript archive: it holds code"
    allowed = {"data.pkl", "version", "byteorder", ".format_version", ".storage_alignment", ".data/serialization_id"}
    strange = sorted(name for name in inside - allowed if not (name.startswith("data/") and name[5:].isdigit()))
    if strange:
        return f"the archive holds {strange[0]!r}, which is no part of a state dict"
    return None if "data.pkl" in inside else "the archive holds no data.pkl"


def _stated_problem(infos: list[zipfile.ZipInfo], path: Path) -> str | None:
    """Where what the archive states of its members does not fit the file."""
    if any(info.compress_size != info.file_size for info in infos):
        return "the archive states two sizes for a member that is not compressed"
    if (total := sum(info.file_size for info in infos)) > (size := path.stat().st_size):
        return f"the archive states {total} bytes of members, the file has {size}"
    with path.open("rb") as handle:
        return None if handle.read(4) == b"PK\x03\x04" else "something stands before the archive"


def _pickle_problems(data: bytes, inert: frozenset[str]) -> Iterator[tuple[str, str]]:
    seen: set[str] = set()
    for opcode, argument, position in pickletools.genops(data):
        problem = None
        if opcode.name not in _OPCODES:
            problem = f"the pickle uses {opcode.name}"
        elif opcode.name == "GLOBAL" and argument not in _GLOBALS | inert:
            problem = f"the pickle imports {str(argument).replace(' ', '.')}"
        elif opcode.name == "STOP" and position != len(data) - 1:
            problem = "something follows the end of the pickle"
        if problem and problem not in seen:
            seen.add(problem)
            yield f"data.pkl byte {position}", problem


@dataclass(frozen=True)
class _Global:
    name: str


@dataclass(frozen=True)
class _Storage:
    """A storage that the archive holds: its key, and how many elements it has."""

    key: str
    elements: int


class _Mark:
    """Where the items of a tuple, list or dictionary begin."""


_PLAIN_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}


class _Follower:
    """Follows a pickle whose opcodes are known to be allowed, and makes nothing but tuples of plain values.

    What a state dict does not do ends in a ``ValueError``: a key that is no text or number (a tuple of tuples of tuples
    takes no room, and ages to hash), a storage without a member, a call with other arguments than a tensor's.
    """

    def __init__(self, sizes: Mapping[str, int], inert: frozenset[str] = frozenset()) -> None:
        self._sizes, self._inert = sizes, {name.partition(" ")[2] for name in inert}
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}
        self.storages: dict[str, int] = {}
        self.shown = 0

    def follow(self, data: bytes) -> None:
        """Go through the program to its end."""
        try:
            for opcode, argument, _ in pickletools.genops(data):
                self._step(opcode.name, argument)
        except (IndexError, KeyError) as error:
            raise ValueError("it takes what it has not put there") from error

    def _step(self, name: str, argument: Any) -> None:
        if name in {"BINGET", "LONG_BINGET"}:
            self._stack.append(self._memo[argument])
        elif name in {"BINPUT", "LONG_BINPUT", "MEMOIZE"}:
            self._memo[len(self._memo) if name == "MEMOIZE" else argument] = self._stack[-1]
        elif name == "MARK":
            self._stack.append(_Mark)
        elif name == "GLOBAL":
            self._stack.append(_Global(argument.partition(" ")[2]))
        elif name in _PLAIN_CONSTANTS:
            self._stack.append(_PLAIN_CONSTANTS[name])
        elif name.startswith(("EMPTY_D", "EMPTY_L")):
            self._stack.append(None)  # nobody asks what a dictionary or a list holds
        elif name in {"TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "EMPTY_TUPLE"}:
            self._stack.append(self._tuple(name))
        elif name not in {"PROTO", "FRAME", "STOP"}:
            self._change(name, argument)

    def _change(self, name: str, argument: Any) -> None:
        if name in {"SETITEMS", "DICT"}:
            self._keys(self._since_mark()[::2])
        elif name == "SETITEM":
            self._keys([self._pops(2)[0]])
        elif name in {"APPENDS", "LIST"}:
            self._since_mark()
        elif name in {"APPEND", "BUILD"}:
            self._pops(1)
        elif name == "REDUCE":
            self._stack.append(self._called(*self._pops(2)))
        elif name == "BINPERSID":
            self._stack.append(self._storage(self._pops(1)[0]))
        else:
            self._stack.append(argument)
        if name in {"DICT", "LIST"}:
            self._stack.append(None)

    def _pops(self, count: int) -> list[Any]:
        taken = self._stack[-count:]
        if len(taken) < count or any(value is _Mark for value in taken):
            raise IndexError
        del self._stack[-count:]
        return taken

    def _since_mark(self) -> list[Any]:
        place = len(self._stack) - 1
        while self._stack[place] is not _Mark:
            place -= 1
            if place < 0:
                raise IndexError
        taken = self._stack[place + 1 :]
        del self._stack[place:]
        return taken

    def _tuple(self, name: str) -> tuple[Any, ...]:
        if name == "EMPTY_TUPLE":
            return ()
        return tuple(self._since_mark() if name == "TUPLE" else self._pops(int(name[-1])))

    def _keys(self, keys: list[Any]) -> None:
        if odd := next((key for key in keys if not isinstance(key, str | int | float | None)), None):
            raise ValueError(f"a dictionary has a {type(odd).__name__} for a key, expected a name")

    def _storage(self, named: Any) -> _Storage:
        """What ``("storage", class, key, device, elements)`` names."""
        kinds = (str, _Global, str, str, int)
        if not (isinstance(named, tuple) and len(named) == len(kinds)):
            raise ValueError("it names a storage in an unusual way")
        if not all(isinstance(part, kind) for part, kind in zip(named, kinds, strict=True)):
            raise ValueError("it names a storage in an unusual way")
        _, kind, key, _, elements = named
        stated, found = elements * _ITEM_BYTES.get(kind.name, 1), self._sizes.get(f"data/{key}")
        if found is None:
            raise ValueError(f"it names the storage {key[:40]!r}, which the archive does not hold")
        if stated != found:
            raise ValueError(f"it states {stated} bytes for the storage {key}, the archive holds {found}")
        self.storages[key] = elements
        return _Storage(key, elements)

    def _called(self, function: Any, given: Any) -> Any:
        """What a call gives: of a tensor its storage, of anything else nothing."""
        if not isinstance(function, _Global) or not isinstance(given, tuple):
            raise ValueError("it calls what is no function")  # noqa: TRY004  as everything that a pickle gets wrong
        if function.name == "_rebuild_parameter":
            return given[0]
        if function.name in self._inert:
            return _encoded(given) if function.name == "encode" else None
        if function.name in {"_reconstruct", "dtype", "encode"}:
            if not _is_of_array(function.name, given):
                raise ValueError(f"it calls {function.name} in another way than for an array")
            return None
        if function.name != "_rebuild_tensor_v2":
            if function.name not in {"OrderedDict", "Size"} or not _is_flat(given):
                raise ValueError(f"it calls {function.name}, which a state dict does not")
            return None
        storage, offset, size, stride = given[:4]
        whole = [size, stride, (offset,)]
        if not isinstance(storage, _Storage) or not all(_is_whole(part) for part in whole) or len(size) != len(stride):
            raise ValueError("it makes a tensor in an unusual way")
        self.shown += math.prod(size)
        return storage


def _is_of_array(name: str, given: tuple[Any, ...]) -> bool:
    """Whether a call is one of those that numpy's arrays are pickled with: they begin without an element."""
    if name == "_reconstruct":
        return len(given) == 3 and given[:2] == (_Global("ndarray"), (0,))
    if name == "dtype" and not (given and _PLAIN_NUMBERS.fullmatch(str(given[0]))):
        return False
    return 2 <= len(given) <= 3 and isinstance(given[0], str) and all(isinstance(v, str | bool) for v in given[1:])


def _is_whole(values: Any) -> bool:
    if not isinstance(values, tuple) or len(values) > _MOST_AXES:
        return False
    return all(isinstance(v, int) and 0 <= v < 1 << 62 for v in values)


def _is_flat(given: tuple[Any, ...]) -> bool:
    """Arguments of a dictionary or a size: nothing, or plain numbers."""
    return not given or (len(given) == 1 and (given[0] is None or _is_whole(given[0])))


def _encoded(given: tuple[Any, ...]) -> None:
    """Bytes of a text, as old pickles write them: Python's own encoder makes them, of any name."""
    if len(given) != 2 or not isinstance(given[0], str) or given[1] != "latin1":
        raise ValueError("it encodes a text in an unusual way")


def _size_problems(data: bytes, sizes: Mapping[str, int], inert: frozenset[str]) -> Iterator[str]:
    follower = _Follower(sizes, inert)
    follower.follow(data)
    held = sum(follower.storages.values())
    most = _SHOWN_TWICE * held + _ALWAYS_ELEMENTS
    if follower.shown > most:
        yield f"its tensors come to {follower.shown} elements, expected at most {most}: its storages hold {held}"


def judge_safetensors(path: Path, file: str) -> list[Finding]:
    """Findings on a safetensors file: its header must describe the whole file, without overlaps and gaps."""
    from safetensors import SafetensorError, safe_open

    try:
        check_header(path)
        with safe_open(path, framework="np"):
            return []
    except (SafetensorError, OSError, ValueError) as error:
        what = f"its header does not describe the file: {error}"
        return [Finding("block", file, "header", what, _DAMAGED)]


def check_header(path: Path) -> None:
    """Refuse a safetensors file by the length of its header, before its library reads it.

    Raises ``ValueError`` if it is longer than the tensors of any network need.
    """
    with path.open("rb") as handle:
        length = int.from_bytes(handle.read(8), "little")
    if length > _LARGEST_HEADER:
        raise ValueError(f"a header of {length} bytes, expected at most {_LARGEST_HEADER}")
