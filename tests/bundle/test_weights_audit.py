"""Files of weights that state more than they hold are refused before anybody loads them."""

from __future__ import annotations

import io
import json
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from medseg.bundle.audit_weights import judge_safetensors, judge_torch_archive

_STORAGE = "FloatStorage"


def _pickled(write: Callable[[pickle._Pickler], None]) -> bytes:
    """What torch.save pickles, without its end."""
    stream = io.BytesIO()
    pickler = pickle._Pickler(stream, 2)
    write(pickler)
    return stream.getvalue()


def _global(name: str) -> bytes:
    return f"c{name.rpartition('.')[0]}\n{name.rpartition('.')[2]}\n".encode()


def _text(text: str) -> bytes:
    return b"X" + struct.pack("<I", len(text)) + text.encode()


def _number(value: int) -> bytes:
    data = pickle.dumps(value, 2)
    return data[2:-1]


def _tensor(key: str, elements: int, size: tuple[int, ...], stride: tuple[int, ...]) -> bytes:
    storage = (
        b"(" + _text("storage") + _global(f"torch.{_STORAGE}") + _text(key) + _text("cpu") + _number(elements) + b"tQ"
    )
    shape = b"".join(b"(" + b"".join(map(_number, part)) + b"t" for part in (size, stride))
    hooks = _global("collections.OrderedDict") + b")R"
    return _global("torch._utils._rebuild_tensor_v2") + b"(" + storage + _number(0) + shape + b"\x89" + hooks + b"tR"


def _archive(path: Path, program: bytes, **storages: bytes) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("model/data.pkl", program)
        archive.writestr("model/version", "3\n")
        for key, data in storages.items():
            archive.writestr(f"model/data/{key.removeprefix('_')}", data)
    return path


def _state(*tensors: bytes) -> bytes:
    held = b"".join(_text(f"w{number}") + tensor for number, tensor in enumerate(tensors))
    return b"\x80\x02}(" + held + b"u."


def _whats(path: Path) -> list[str]:
    return [finding.what for finding in judge_torch_archive(path, "models/model.pt")]


def _tower() -> bytes:
    """A key that takes no room and ages to hash."""
    return b"\x80\x02})" + b"q\x00h\x00\x86" * 60 + b"K\x01s."


CASES: dict[str, tuple[bytes, dict[str, bytes], str]] = {
    "shows a storage endlessly": (_state(_tensor("0", 1, (10**9,), (0,))), {"_0": bytes(4)}, "1000000000 elements"),
    "in many tensors": (_state(*[_tensor("0", 1000, (1000,), (1,))] * 2000), {"_0": bytes(4000)}, "2000000 elements"),
    "states a larger storage": (_state(_tensor("0", 10**9, (10**9,), (1,))), {"_0": bytes(4)}, "4000000000 bytes"),
    "names no storage": (_state(_tensor("7", 1, (1,), (1,))), {"_0": bytes(4)}, "which the archive does not hold"),
    "has an unending shape": (_state(_tensor("0", 1, (2,) * 40, (0,) * 40)), {"_0": bytes(4)}, "unusual way"),
    "has a key of tuples": (_tower(), {}, "a tuple for a key"),
    "takes what is not there": (b"\x80\x02h\x07.", {}, "has not put there"),
    "is large": (b"\x80\x02" + b"N" * (3 << 20) + b".", {}, "3145731 bytes, expected at most 2097152"),
}


@pytest.mark.parametrize("name", CASES)
def test_a_pickle_that_lies_is_refused(tmp_path: Path, name: str) -> None:
    program, storages, expected = CASES[name]
    (what,) = _whats(_archive(tmp_path / "model.pt", program, **storages))
    assert expected in what


def test_what_torch_saves_passes(tmp_path: Path) -> None:
    weight = torch.nn.Parameter(torch.rand(3, 4))
    state: dict[str, Any] = {
        "weight": weight,
        "shared": weight,
        "part": torch.rand(8, 8)[:2],
        "scalar": torch.tensor(3),
        "half": torch.rand(2).half(),
        "flags": torch.tensor([True]),
        "empty": torch.zeros(0, 5),
        "step": 7,
        "names": ["a", ("b", 2.5, None)],
        "nested": {0: {"exp_avg": torch.rand(2, 2)}, 1: {}},
    }
    torch.save(state, tmp_path / "model.pt")
    assert _whats(tmp_path / "model.pt") == []


def test_the_optimizer_of_a_checkpoint_passes(tmp_path: Path) -> None:
    network = torch.nn.Conv3d(1, 2, 3)
    optimizer = torch.optim.AdamW(network.parameters())
    network(torch.rand(1, 1, 3, 3, 3)).sum().backward()
    optimizer.step()
    torch.save({"model": network.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "model.pt")
    assert _whats(tmp_path / "model.pt") == []


def test_a_member_of_two_sizes_is_refused(tmp_path: Path) -> None:
    path = _archive(tmp_path / "model.pt", _state(), _0=bytes(64))
    data = path.read_bytes()
    entry = data.index(b"PK\x01\x02", data.index(b"PK\x01\x02", data.index(b"PK\x01\x02") + 1) + 1)
    changed = data[: entry + 24] + struct.pack("<I", 1 << 31) + data[entry + 28 :]
    path.write_bytes(changed)
    assert "two sizes" in _whats(path)[0]


def test_a_large_directory_is_refused(tmp_path: Path) -> None:
    size = 5 << 20
    end = b"PK\x05\x06" + struct.pack("<HHHHIIH", 0, 0, 1, 1, size, 0, 0)
    (tmp_path / "model.pt").write_bytes(bytes(size) + end)
    assert f"of {size} bytes, expected at most 4194304" in _whats(tmp_path / "model.pt")[0]


def test_a_long_header_of_safetensors_is_refused(tmp_path: Path) -> None:
    tensors = {f"t{n}": {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]} for n in range(40_000)}
    header = json.dumps(tensors).encode()
    path = tmp_path / "model.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header)
    assert f"a header of {len(header)} bytes, expected at most" in judge_safetensors(path, "m")[0].what
    path.write_bytes(struct.pack("<Q", 1 << 60))
    assert judge_safetensors(path, "m")
