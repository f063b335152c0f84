"""Weights of published networks as data: TorchScript archives without running their code, state dicts by any name.

A TorchScript archive is a zip: ``data.pkl`` builds its modules with their attributes, ``data/N`` hold the bytes of the
tensors, ``code/`` says what the modules do. The last is never read. The pickle is followed by an unpickler that knows
six harmless names and makes plain records of everything else.
"""

from __future__ import annotations

import io
import math
import pickle
import pickletools
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from medseg.bundle.audit_weights import check_header
from medseg.bundle.checkpoints import read_weights
from medseg.errors import BundleError
from medseg.files import open_zip, read_member, shown

if TYPE_CHECKING:
    import torch

WEIGHT_SUFFIXES = (".safetensors", ".pt", ".pth", ".ts", ".ckpt", ".bin")
_LARGEST_PICKLE = 8 << 20
_MOST_STEPS, _MOST_NUMBERS = 100_000, 33
_SHOWN_TWICE, _ALWAYS_BYTES = 4, 4 << 20
"""How often tensors may show their storages, in all: each gets memory of its own."""
_STORAGES = {
    "FloatStorage": "float32",
    "DoubleStorage": "float64",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
}
_RESTORED = ("build_intlist", "build_doublelist", "build_boollist", "build_tensorlist", "restore_type_tag")
_PREFIXES = ("module", "model", "net", "network", "_orig_mod", "state_dict")


def read_state(path: Path) -> tuple[dict[str, torch.Tensor], str]:
    """The state dict in a file of weights, and what the file was, for people.

    Raises ``BundleError`` if it cannot be read as data, or holds no state dict of finite numbers.
    """
    state, kind = (
        (_script_state(path), "a TorchScript archive") if _is_script(path) else (_plain_state(path), "a state dict")
    )
    bad = next((key for key, value in state.items() if value.is_floating_point() and not value.isfinite().all()), None)
    if bad is not None:
        raise BundleError(f"{shown(path)} holds numbers that are not finite in {shown(bad)}; fetch it again")
    return state, kind


def without_prefix(state: Mapping[str, torch.Tensor]) -> Iterator[tuple[str, dict[str, torch.Tensor]]]:
    """The state as it is, then without what all its names begin with, as wrappers of networks add it, and that."""
    prefix, given = "", dict(state)
    while given:
        yield prefix, given
        first = {key.partition(".")[0] for key in given}
        if len(first) > 1 or not first <= {*_PREFIXES}:
            return
        prefix += f"{first.pop()}."
        given = {key.partition(".")[2]: value for key, value in given.items()}


def _plain_state(path: Path) -> dict[str, torch.Tensor]:
    """A state dict, known as safetensors by its bytes rather than its name."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    with path.open("rb") as handle:
        start = handle.read(9)
    if start[8:] != b"{":
        return read_weights(path)
    try:
        check_header(path)
        return dict(load_file(path))
    except (SafetensorError, OSError, ValueError) as error:
        raise BundleError(f"{shown(path)} cannot be read as safetensors: {shown(error)}; fetch it again") from error


def _is_script(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    try:
        with open_zip(path) as archive:
            return any(name.partition("/")[2].startswith("code/") for name in archive.namelist())
    except zipfile.BadZipFile as error:
        raise BundleError(f"{shown(path)} is no sound archive: {shown(error)}; fetch it again") from error


def _script_state(path: Path) -> dict[str, torch.Tensor]:
    try:
        with open_zip(path) as archive:
            infos = {info.filename.partition("/")[2]: info for info in archive.infolist()}
            data = read_member(archive, infos["data.pkl"], _LARGEST_PICKLE)
            whole = _unpickled(data, lambda key, size: _exactly(archive, infos[f"data/{key}"], size))
            return dict(_walked(whole))
    except (
        pickle.UnpicklingError, zipfile.BadZipFile, ValueError, TypeError, AttributeError, KeyError, IndexError,
        EOFError, OverflowError, RuntimeError, NotImplementedError, OSError,
    ) as error:  # fmt: skip
        what = f"{type(error).__name__}: {shown(error)}"
        raise BundleError(f"{shown(path)} cannot be read as a TorchScript archive: {what}; fetch it again") from error


def _exactly(archive: zipfile.ZipFile, info: zipfile.ZipInfo, size: int) -> bytes:
    data = read_member(archive, info, size)
    if len(data) != size:
        raise ValueError(f"{info.filename} has {len(data)} bytes, the pickle states {size}")
    return data


class _Record(dict[str, Any]):
    """What a module of the archive becomes: its attributes, by name."""

    def __init__(self, *_: object) -> None:
        """Take the arguments of a call, and hold nothing yet."""
        super().__init__()

    def __setstate__(self, state: object) -> None:
        if not isinstance(state, Mapping):
            raise pickle.UnpicklingError("an object's state is no table of attributes")
        self.update(state)


_PLAINLY: dict[int, Callable[[Any], None]] = pickle._Unpickler.dispatch


class _ByName(pickle._Unpickler):  # the quick one cannot be told what not to do
    """An unpickler whose tables go by texts and numbers (tuples of tuples take ages to hash), and states to records."""

    stack: list[Any]
    dispatch: ClassVar[dict[int, Callable[[Any], None]]] = dict(_PLAINLY)

    def _refused(self) -> None:
        raise pickle.UnpicklingError("it builds what no archive of weights holds")

    def _state(self) -> None:
        if not isinstance(self.stack[-2], _Record):
            self._refused()
        _PLAINLY[pickle.BUILD[0]](self)

    def _item(self) -> None:
        _named(self.stack[-2:-1])
        _PLAINLY[pickle.SETITEM[0]](self)

    def _items(self) -> None:
        _named(self.stack[::2])
        _PLAINLY[pickle.SETITEMS[0]](self)

    def _table(self) -> None:
        _named(self.stack[::2])
        _PLAINLY[pickle.DICT[0]](self)

    dispatch[pickle.BUILD[0]] = _state
    dispatch[pickle.SETITEM[0]], dispatch[pickle.SETITEMS[0]], dispatch[pickle.DICT[0]] = _item, _items, _table
    dispatch[pickle.ADDITEMS[0]] = dispatch[pickle.FROZENSET[0]] = _refused


def _named(keys: list[Any]) -> None:
    if not all(isinstance(key, str | int | float | None) for key in keys):
        raise pickle.UnpicklingError("a table goes by something else than texts and numbers")


def _unpickled(data: bytes, member: Callable[[str, int], bytes]) -> Any:
    """What a TorchScript pickle builds: records of tensors, numbers and texts.

    ``member`` gives the bytes of a storage, which must be as many as asked for. Classes of the archive become records,
    a few names tensors or lists; any other name is an ``UnpicklingError``, so that no code but this is ever called.
    All that a pickle might write on is made anew each time.
    """
    import torch

    storages: dict[str, torch.Tensor] = {}
    shown_bytes = 0

    def view(*given: Any) -> torch.Tensor:
        nonlocal shown_bytes
        found = _view(*given[:4])
        shown_bytes += found.nbytes
        if shown_bytes > _SHOWN_TWICE * sum(storage.nbytes for storage in storages.values()) + _ALWAYS_BYTES:
            raise pickle.UnpicklingError(f"its tensors come to {shown_bytes} bytes, more than its storages hold")
        return found

    known: dict[str, Any] = {f"torch.jit._pickle {name}": lambda value, *_: value for name in _RESTORED}
    known |= {f"torch {name}": name for name in _STORAGES}
    known |= {"torch._utils _rebuild_tensor_v2": view, "collections OrderedDict": lambda *_: {}}

    class Record(_Record):
        pass

    class Unpickler(_ByName):
        def find_class(self, module: str, name: str) -> Any:
            if module.partition(".")[0] == "__torch__":
                return Record
            if f"{module} {name}" not in known:
                raise pickle.UnpicklingError(f"it names {module}.{name}")
            return known[f"{module} {name}"]

        def persistent_load(self, named: Any) -> torch.Tensor:
            what, kind, key, _, count = named
            named_so = what == "storage" and isinstance(kind, str) and isinstance(key, str)
            if not named_so or type(count) is not int or count < 0:
                raise pickle.UnpicklingError("it names a storage in an unusual way")
            dtype: torch.dtype = getattr(torch, _STORAGES[kind])
            if key not in storages:
                whole = bytearray(member(key, count * dtype.itemsize))
                storages[key] = torch.frombuffer(whole, dtype=dtype) if count else torch.empty(0, dtype=dtype)
            return storages[key]

    puts = {"BINPUT", "LONG_BINPUT"}
    places = (argument or 0 for opcode, argument, _ in pickletools.genops(data) if opcode.name in puts)
    if max(places, default=0) > len(data):  # pickle takes memory up to the place that is named
        raise pickle.UnpicklingError("it keeps more than it holds")
    return Unpickler(io.BytesIO(data)).load()


def _view(storage: torch.Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...]) -> torch.Tensor:
    """A tensor of some size, which must not be larger than its storage, nor reach beyond it."""
    numbers = [*size, *stride, offset]
    if len(size) != len(stride) or len(numbers) > _MOST_NUMBERS or not all(type(n) is int and n >= 0 for n in numbers):
        raise pickle.UnpicklingError("a tensor states an odd size")
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if math.prod(size) > len(storage) or last >= max(len(storage), 1):
        raise pickle.UnpicklingError(f"a tensor of size {tuple(size)} reaches beyond its storage")
    return storage.as_strided(size, stride, offset)


def _walked(whole: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors of a module and those below it, by name, each with memory of its own."""
    import torch

    places: list[tuple[str, Any]] = [("", whole)]
    for _ in range(_MOST_STEPS):
        if not places:
            return
        path, value = places.pop()
        if isinstance(value, torch.Tensor):
            yield path, value.clone(memory_format=torch.contiguous_format)
        elif isinstance(value, _Record):
            places += [(f"{path}.{name}" if path else str(name), part) for name, part in reversed(value.items())]
    raise ValueError(f"it has more than {_MOST_STEPS} attributes, or modules that hold themselves")
