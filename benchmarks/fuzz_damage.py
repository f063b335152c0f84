"""Damage to a file: bytes flipped, cut and doubled; in JSON also odd values, and keys that go, come and change."""

from __future__ import annotations

import copy
import json
import struct
from collections.abc import Callable
from typing import Any, Literal

import numpy as np

__all__ = ["Form", "damage"]

Form = Literal["bytes", "lines", "json", "safetensors"]
"""What a file is made of, so that damage gets past the first check often enough."""

_SHARE_OF_FORM = 0.8
EDGES = (
    b"\xff\xff\xff\xff",
    b"\xff\xff\xff\x7f",
    b"\x00\x00\x00\x80",
    b"\x00\x00\x00\x00",
    b"\xfe\xff\xff\xff",
    b"\xff\xff",
)
_ODD_VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 7, 2**31, 2**63, 10**40, 0.5, -0.5, 1e-300, 1e300, float("nan"), float("inf"),
    "", " ", "x", "0", "-1", "nan", "1e999", "a/b", "../x", "\x00", "\ud800", "é" * 50, "=1+1", "(", "[", "*",
    [], {}, [[]], [None], [0], ["x"], [1, 2, 3], {"x": 1}, {"": None}, {"0": "x"}, {"-1": "x"},
)  # fmt: skip
_ODD_WORDS = (
    b"",
    b"0",
    b"-1",
    b"nan",
    b"inf",
    b"1e999",
    b"99999999999999999999",
    b"x",
    b"\xff",
    b"\xc2\xb5m",
    b"none",
    b"?",
)


def damage(raw: bytes, random: np.random.Generator, form: Form = "bytes") -> bytes:
    """One to three random mutations, mostly in the header, where they do most harm."""
    shaped = _SHAPED.get(form)
    if shaped is not None and random.random() < _SHARE_OF_FORM:
        return shaped(raw, random)
    data = bytearray(raw)
    for _ in range(int(random.integers(1, 4))):
        if data:
            MUTATIONS[int(random.integers(len(MUTATIONS)))](data, random)
    return bytes(data)


def _place(data: bytearray, random: np.random.Generator) -> int:
    header = random.random() < 0.8
    return int(random.integers(min(len(data), 1500) if header else len(data)))


def _flip(data: bytearray, random: np.random.Generator) -> None:
    data[_place(data, random)] ^= 1 << int(random.integers(8))


def _set(data: bytearray, random: np.random.Generator) -> None:
    data[_place(data, random)] = int(random.integers(256))


def _edge(data: bytearray, random: np.random.Generator) -> None:
    place, value = _place(data, random), EDGES[int(random.integers(len(EDGES)))]
    data[place : place + len(value)] = value


def _cut(data: bytearray, random: np.random.Generator) -> None:
    del data[int(random.integers(len(data))) :]


def _remove(data: bytearray, random: np.random.Generator) -> None:
    place = _place(data, random)
    del data[place : place + int(random.integers(1, 64))]


def _repeat(data: bytearray, random: np.random.Generator) -> None:
    place = _place(data, random)
    data[place:place] = data[place : place + int(random.integers(1, 64))]


def _noise(data: bytearray, random: np.random.Generator) -> None:
    place = _place(data, random)
    data[place : place + 16] = random.bytes(16)


MUTATIONS: tuple[Callable[[bytearray, np.random.Generator], None], ...] = (
    _flip, _flip, _set, _edge, _edge, _cut, _remove, _repeat, _noise,
)  # fmt: skip


# --- damage that keeps a form ---------------------------------------------------------------------------------------


def _lines(raw: bytes, random: np.random.Generator) -> bytes:
    """Lines that go, come twice or change places, and words that become odd; what follows the header stays."""
    head, separator, rest = raw.partition(b"\n\n") if raw.startswith(b"NRRD") else raw.partition(b"LOCAL")
    lines = head.split(b"\n")
    for _ in range(int(random.integers(1, 4))):
        place, other = (int(n) for n in random.integers(len(lines), size=2))
        kind = int(random.integers(4))
        if kind == 0 and len(lines) > 1:
            del lines[place]
        elif kind == 1:
            lines.insert(other, lines[place])
        else:
            words = lines[place % len(lines)].split(b" ")
            words[int(random.integers(len(words)))] = _ODD_WORDS[int(random.integers(len(_ODD_WORDS)))]
            lines[place % len(lines)] = b" ".join(words)
        lines = lines or [b""]
    return b"\n".join(lines) + separator + rest


def _json(raw: bytes, random: np.random.Generator) -> bytes:
    content = copy.deepcopy(json.loads(raw))
    for _ in range(int(random.integers(1, 4))):
        content = _changed(content, random)
    return json.dumps(content).encode("utf-8", "surrogatepass")


def _changed(content: Any, random: np.random.Generator) -> Any:
    """The same content with a random node replaced, removed, doubled or renamed."""
    holders = list(_holders(content))
    if not holders or random.random() < 0.02:
        return _odd(random)
    holder = holders[int(random.integers(len(holders)))]
    keys: list[Any] = list(holder) if isinstance(holder, dict) else list(range(len(holder)))
    key = keys[int(random.integers(len(keys)))]
    kind = int(random.integers(6))
    if kind == 0:
        del holder[key]
    elif kind == 1 and isinstance(holder, list):
        holder.insert(key, copy.deepcopy(holder[key]))
    elif kind == 1:
        holder[str(_odd(random))[:20]] = holder.pop(key)
    elif kind == 2:
        other = holders[int(random.integers(len(holders)))]
        holder[key] = copy.deepcopy(other)
    else:
        holder[key] = _odd(random)
    return content


def _holders(content: Any) -> list[Any]:
    """All objects and lists that hold something."""
    found, waiting = [], [content]
    while waiting:
        node = waiting.pop()
        children = list(node.values()) if isinstance(node, dict) else node if isinstance(node, list) else []
        if children:
            found.append(node)
            waiting.extend(children)
    return found


def _odd(random: np.random.Generator) -> Any:
    return copy.deepcopy(_ODD_VALUES[int(random.integers(len(_ODD_VALUES)))])


def _safetensors(raw: bytes, random: np.random.Generator) -> bytes:
    (length,) = struct.unpack("<Q", raw[:8])
    header = _json(raw[8 : 8 + length], random)
    return struct.pack("<Q", len(header)) + header + raw[8 + length :]


_SHAPED: dict[Form, Callable[[bytes, np.random.Generator], bytes]] = {
    "lines": _lines,
    "json": _json,
    "safetensors": _safetensors,
}
