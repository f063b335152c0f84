"""Tricks of the corpus that are a file: weights, logging, what lies beside, names, encodings, kinds of configs."""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import zipfile
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import torch
from monai.utils.misc import run_cmd

from tests.bundle.corpus import LOGGING, Command, Draft, Variant

__all__ = ["file_variants"]

_ALL: tuple[Command, ...] = ("infer", "network", "train", "evaluate", "monai")
_LABEL: tuple[Command, ...] = ("infer", "network", "monai")
_INFER: tuple[Command, ...] = ("infer", "monai")
_TRAIN: tuple[Command, ...] = ("train", "evaluate")
_MONAI: tuple[Command, ...] = ("monai",)
_WEIGHTS = "models/model.pt"
_LOAD = "torch.load models/model.pt"
_OPEN = "open('CANARY/x', 'w')"


class _Call:
    """Calls a function when it is unpickled."""

    def __init__(self, function: Callable[..., Any], *arguments: Any, state: Any = None) -> None:
        self.reduced = (function, arguments) if state is None else (function, arguments, state)

    def __reduce__(self) -> tuple[Any, ...]:
        return self.reduced


def _saved(value: Any, **more: Any) -> bytes:
    stream = io.BytesIO()
    torch.save(value, stream, **more)
    return stream.getvalue()


def _repacked(change: Callable[[zipfile.ZipFile, str, dict[str, bytes]], None]) -> bytes:
    """The sound archive, written anew with a change."""
    stream = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(_saved(torch.nn.Conv3d(1, 2, 1).state_dict()))) as source:
        members = {info.filename: source.read(info) for info in source.infolist()}
    root = next(iter(members)).partition("/")[0]
    with zipfile.ZipFile(stream, "w") as target:
        change(target, root, members)
    return stream.getvalue()


def _with_pickle(data: Callable[[bytes], bytes]) -> bytes:
    def change(target: zipfile.ZipFile, root: str, members: dict[str, bytes]) -> None:
        for name, content in members.items():
            target.writestr(name, data(content) if name == f"{root}/data.pkl" else content)

    return _repacked(change)


def _with_member(name: str, content: bytes) -> bytes:
    def change(target: zipfile.ZipFile, root: str, members: dict[str, bytes]) -> None:
        for member, data in members.items():
            target.writestr(member, data)
        target.writestr(f"{root}/{name}", content)

    return _repacked(change)


def _compressed() -> bytes:
    def change(target: zipfile.ZipFile, root: str, members: dict[str, bytes]) -> None:
        for name, data in members.items():
            target.writestr(name, data, zipfile.ZIP_DEFLATED)

    return _repacked(change)


def _shared_members() -> bytes:
    """Many members at one place: torch reads each of them, the file is small."""
    state = {f"w{i}": torch.zeros(1 << 12) for i in range(64)}
    stream = io.BytesIO(_saved(state))
    with zipfile.ZipFile(stream) as archive:
        infos = {info.filename: info for info in archive.infolist()}
        storage = [info for name, info in infos.items() if "/data/" in name and not name.endswith("_id")]
        data = stream.getvalue()
        end = archive.start_dir
        central = data[end:]
    first = storage[0].header_offset
    for info in storage[1:]:
        at = central.index(info.filename.encode()) - 46
        central = central[: at + 42] + struct.pack("<I", first) + central[at + 46 :]
    return data[:end] + central


_RUNS = frozenset(
    {"os.mkdir", "builtins.exec", "a state that is set", "MONAI's run_cmd", "a newer protocol", "an older protocol"}
    | {"an instance of old", "a bare pickle", "the old format", "a tag of Python", "two documents"}
    | {"a key that stands twice", "a text in blocks", "a merge that hides a target"}
)
"""What runs where nothing is judged; the others mislead a reader, or cost it time and memory."""


def _safetensors(header: Any, body: bytes = bytes(8)) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


_F32 = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@cache
def _archives(canary: str) -> dict[str, bytes]:
    touch = _Call(os.mkdir, f"{canary}/x")
    weight = torch.zeros(2)
    memo = b"\x80\x02]" + b"]" * 10 + b"e"
    return {
        "os.mkdir": _saved({"weight": weight, "bad": touch}),
        "builtins.exec": _saved({"bad": _Call(eval, f"open('{canary}/x', 'w')")}),
        "a state that is set": _saved({"bad": _Call(torch.nn.Identity, state={"__dict__": touch})}),
        "MONAI's run_cmd": _saved({"bad": _Call(run_cmd, ["touch", f"{canary}/x"])}),
        "a newer protocol": _with_pickle(lambda _: pickle.dumps({"bad": touch}, protocol=4)),
        "an older protocol": _with_pickle(lambda _: pickle.dumps({"bad": touch}, protocol=0)),
        "an extension": _with_pickle(lambda data: b"\x80\x02\x82\x01" + data[2:]),
        "an instance of old": _with_pickle(lambda _: f"(S'{canary}/x'\nios\nmkdir\n.".encode()),
        "a persistent id as text": _with_pickle(lambda _: b"Pstorage\n."),
        "a pickle behind the pickle": _with_pickle(lambda data: data + pickle.dumps(touch)),
        "a bare pickle": pickle.dumps(touch),
        "the old format": _saved({"bad": touch}, _use_new_zipfile_serialization=False),
        "a second pickle": _with_member("other.pkl", pickle.dumps(touch)),
        "a pickle in other letters": _with_member("DATA.PKL", pickle.dumps(touch)),
        "code": _with_member("code/__torch__.py", b"def forward(self):\n  pass\n"),
        "constants": _with_member("constants.pkl", pickle.dumps(())),
        "a member above": _with_member("../data.pkl", pickle.dumps(touch)),
        "a comment before": b"# text\n" + _saved({"weight": weight}),
        "compressed members": _compressed(),
        "an empty file": b"",
        "lists in lists": _with_pickle(lambda _: memo),
        "a cut archive": _saved({"weight": weight})[:-30],
        "members at one place": _shared_members(),
    }


_SAFETENSORS: dict[str, bytes] = {
    "a header that is too long": struct.pack("<Q", 1 << 40) + b"{}",
    "tensors that overlap": _safetensors({"a": _F32, "b": _F32}),
    "a hole": _safetensors({"a": {**_F32, "data_offsets": [8, 16]}}, bytes(16)),
    "more than the header says": _safetensors({"a": _F32}, bytes(32)),
    "less than the header says": _safetensors({"a": {**_F32, "shape": [9]}}),
    "an offset below zero": _safetensors({"a": {**_F32, "data_offsets": [-8, 0]}}),
    "a shape without end": _safetensors({"a": {**_F32, "shape": [10**300] * 9}}),
    "a shape of zeros and much": _safetensors({"a": {**_F32, "shape": [0, 2**62, 2**62]}}),
    "metadata that is a list": _safetensors(b'{"__metadata__":[1]}'),
    "no offsets": _safetensors({"a": {**_F32, "data_offsets": []}}),
    "doubled names": _safetensors(b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"a":1}'),
    "a header that is no JSON": _safetensors(b"{"),
    "an unknown type": _safetensors({"a": {**_F32, "dtype": "PICKLE"}}),
    "an empty file": b"",
}
_LOGGING: dict[str, tuple[str, str]] = {
    "arguments": ("args=(sys.stdout,)", f"args=({_OPEN},)"),
    "arguments by keyword": ("args=(sys.stdout,)", f"args=(sys.stdout,)\nkwargs={{'stream': {_OPEN}}}"),
    "a class": ("class=StreamHandler", f"class={_OPEN}"),
    "a handler of files": (
        "class=StreamHandler\nlevel=INFO\nformatter=full\nargs=(sys.stdout,)",
        "class=FileHandler\nargs=('CANARY/x',)",
    ),
    "a handler of sockets": ("class=StreamHandler", "class=handlers.SocketHandler"),
    "a class of a formatter": ("[formatter_full]", "[formatter_full]\nclass=os.symlink\ndatefmt=CANARY/x"),
    "interpolation": ("args=(sys.stdout,)", f"evil={_OPEN}\nargs=(%(evil)s,)"),
    "defaults": ("args=(sys.stdout,)", f"[DEFAULT]\nargs=({_OPEN},)"),
    "a line that goes on": ("args=(sys.stdout,)", f"args=(sys.stdout,\n  {_OPEN})"),
    "capitals": ("args=(sys.stdout,)", f"ARGS=({_OPEN},)"),
    "a second handler": (
        "keys=console",
        f"keys=console,other\n[handler_other]\nclass=StreamHandler\nargs=({_OPEN},)\n[x]",
    ),
    "no logging at all": (LOGGING, "\x00\x01"),
}
_QUIET = frozenset({"a handler of sockets", "no logging at all"})
_BESIDE: dict[str, tuple[tuple[Command, ...], bytes]] = {
    "glob.py": (_TRAIN, b"open('CANARY/x', 'w')"),
    "configs/os.py": (_MONAI, b"open('CANARY/x', 'w')"),
    "scripts/__init__.py": (_MONAI, b"open('CANARY/x', 'w')"),
    "sitecustomize.py": (_TRAIN, b"open('CANARY/x', 'w')"),
    "torch/__init__.py": (_TRAIN, b"open('CANARY/x', 'w')"),
    "glob.PY": (_MONAI, b""),
    "glob.pyc": (_TRAIN, b""),
    "__pycache__/glob.cpython-311.pyc": (_TRAIN, b""),
    "glob.cpython-311-x86_64-linux-gnu.so": (_TRAIN, b""),
    "models/ops.dll": (_MONAI, b""),
    "evil.pth": (_TRAIN, b"import os; os.mkdir('CANARY/x')"),
    "models/model.ts": (_MONAI, b""),
    "models/model.onnx": (_MONAI, b""),
    "models/model.xml": (_MONAI, b""),
    "models/model.pkl": (_MONAI, b""),
    "models/model.bin": (_MONAI, b""),
    "models/model.pt.gz": (_MONAI, b""),
    "data/cache.npy": (_MONAI, b""),
    "data/cache.npz": (_MONAI, b""),
    "data/image.mhd": (_MONAI, b"ElementDataFile = /etc/passwd"),
    "data/image.nhdr": (_MONAI, b"data file: /etc/passwd"),
    "data/image.hdr": (_MONAI, b""),
    "data/lmdb/data.mdb": (_MONAI, b""),
    "docs/notes.ipynb": (_MONAI, b"{}"),
    "docs/index.html": (_MONAI, b"<script></script>"),
    "docs/run.sh": (_MONAI, b"touch CANARY/x"),
    "Makefile": (_MONAI, b"all:\n\ttouch CANARY/x\n"),
    "conftest.py": (_TRAIN, b"open('CANARY/x', 'w')"),
    "pyproject.toml": (_MONAI, b"[build-system]"),
    ".env": (_MONAI, b"PYTHONSTARTUP=x"),
    ".git/hooks/post-checkout": (_MONAI, b"touch CANARY/x"),
    "configs/.hidden": (_MONAI, b""),
    "configs/inferenc\u0435.json": (_ALL, b"{}"),
    "configs/inference\u200b.json": (_ALL, b"{}"),
    "configs/Inference.json": (_ALL, b"{}"),
    "configs\\inference.json": (_ALL, b"{}"),
    "models/MODEL.PT": (_ALL, b""),
    "docs/new\nline.md": (_ALL, b""),
    "docs/\x1b[2J.md": (_ALL, b""),
    "LICENSE.": (_MONAI, b""),
    "docs/README.md ": (_MONAI, b""),
    "docs/..md": (_MONAI, b""),
}
"""Files beside the rest, with the commands that could come to them."""

_CONFIG: dict[str, tuple[str, bytes]] = {
    "a key that stands twice": ("inference", b'{"output_dir": "$open(\'CANARY/x\', \'w\')", "output_dir": "a", '),
    "a key in two writings": ("inference", b'{"a#b": 1, "a::b": 2, '),
    "a key that is extended and stated": ("inference", b'{"a": 1, "+a": 2, '),
    "a mark of byte order": ("inference", b"\xef\xbb\xbf{"),
    "nothing but a mark": ("train", b"\xef\xbb\xbf"),
    "a comment": ("inference", b"// $open('CANARY/x', 'w')\n{"),
    "quotes of Python": ("inference", b"{'a': 1, "),
    "an end too many": ("inference", b"}{"),
    "nested deeply": ("inference", b'{"a": ' + b"[" * 5000 + b"]" * 5000 + b", "),
    "a number of a million digits": ("inference", b'{"a": ' + b"9" * 1_000_000 + b", "),
    "not UTF-8": ("inference", b'{"a": "\xff\xfe", '),
}
_YAML: dict[str, str] = {
    "a tag of Python": "a: !!python/object/apply:os.mkdir ['CANARY/x']",
    "a tag of a name": "a: !!python/name:os.mkdir",
    "a tag of a module": "a: !!python/module:antigravity",
    "a tag of its own": "a: !evil x",
    "aliases that grow": "a: &a [1,1,1,1,1]\nb: &b [*a,*a,*a,*a]\nc: [*b,*b,*b,*b]",
    "a merge of an alias": "a: &a {b: 1}\nc:\n  <<: *a",
    "two documents": "a: 1\n---\nb: $open('CANARY/x', 'w')",
    "a key that stands twice": "a: 1\na: $open('CANARY/x', 'w')",
    "a key that is a list": "? [a]\n: 1",
    "a date": "a: 2020-01-01",
    "a set": "a: !!set {b, c}",
    "bytes": "a: !!binary aGVsbG8=",
    "a text in blocks": "note: >-\n  $open('CANARY/x',\n  'w')",
    "a merge that hides a target": "note:\n  <<: {_target_: os.mkdir}\n  path: CANARY/x",
    "nested deeply": "a: " + "[" * 3000 + "]" * 3000,
}
_LARGE: dict[str, str] = {
    "over http": "large_files:\n- path: models/a.pt\n  url: http://127.0.0.1:9/a.pt\n",
    "a file of this machine": "large_files:\n- path: models/a.pt\n  url: file:///etc/passwd\n",
    "outside": "- path: ../../.bashrc\n  url: https://example.org/a\n",
    "by a full path": "- path: /etc/cron.d/a\n  url: https://example.org/a\n",
    "a script": "- path: scripts/a.py\n  url: https://example.org/a\n",
    "a config": "- path: configs/inference.json\n  url: https://example.org/a\n",
    "two lines in one": '- path: "models/a.pt\\n../../x.pt"\n  url: https://example.org/a\n',
    "an address with a blank": '- path: models/a.pt\n  url: "https://example.org/a --output x"\n',
    "code in the sum": "- path: models/a.pt\n  url: https://example.org/a\n  hash_val: $open('CANARY/x', 'w')\n",
    "another key": "- path: models/a.pt\n  url: https://example.org/a\n  command: touch CANARY/x\n",
    "a tag": "- path: !!python/name:os.system\n",
    "no list": "large_files: models/a.pt\n",
}
_INERT: dict[str, str] = {
    "LICENSE": "$open('CANARY/x', 'w')",
    "docs/README.md": "```python\nopen('CANARY/x', 'w')\n```",
    "docs/data_license.txt": "%CANARY/secret",
    "docs/table.csv": "=cmd|'/c touch CANARY/x'!A1\n",
    ".gitattributes": "* filter=evil\n",
    "CITATION.cff": "message: !!python/name:os.mkdir\n",
}
"""Files that nothing evaluates: they pass, and nothing may come of them."""


def _file(name: str, content: bytes | str) -> Callable[[Draft], None]:
    def change(draft: Draft) -> None:
        own = content if isinstance(content, str) else content.replace(b"CANARY", str(draft.canary).encode())
        draft.write(name, own)

    return change


def _archive(trick: str, path: str = _WEIGHTS, text: str | None = None) -> Callable[[Draft], None]:
    def change(draft: Draft) -> None:
        draft.write(path, _archives(draft.canary.as_posix())[trick])
        if text is not None:
            draft.config("inference")["handlers"][0]["load_path"] = text

    return change


def _logged(line: str, replacement: str) -> Callable[[Draft], None]:
    assert line in LOGGING
    return _file("configs/logging.conf", LOGGING.replace(line, replacement))


def _config(name: str, start: bytes) -> Callable[[Draft], None]:
    def change(draft: Draft) -> None:
        file = f"configs/{name}.json"
        draft.write(file, start.replace(b"CANARY", str(draft.canary).encode()) + draft.files[file][1:])

    return change


def _in_yaml(name: str, text: str) -> Callable[[Draft], None]:
    def change(draft: Draft) -> None:
        if f"configs/{name}.json" in draft.files:
            draft.write(f"configs/{name}.json", None)
        draft.write(f"configs/{name}.yaml", text)

    return change


def _pickled_array(draft: Draft) -> None:
    stream = io.BytesIO()
    np.save(stream, np.array([_Call(os.mkdir, f"{draft.canary}/x")], dtype=object), allow_pickle=True)
    draft.write("docs/x.npy", stream.getvalue())
    draft.config("train")["note"] = {"_target_": "LoadImage", "allow_pickle": True}
    draft.config("train")["train"]["dataset"]["data"] = "$[@note(@bundle_root + '/docs/x.npy')]"


def _detached(draft: Draft) -> None:
    """An image header in the bundle whose voxels are another file's bytes."""
    header = "ObjectType = Image\nNDims = 3\nDimSize = 4 4 1\nElementType = MET_UCHAR\nElementSpacing = 1 1 1\n"
    draft.write("docs/x.mhd", header + "ElementDataFile = CANARY/secret\n")
    config = draft.config("inference")
    config["loader"] = {"_target_": "LoadImage", "reader": "ITKReader"}
    step = {"_target_": "Lambdad", "keys": "image", "func": "$lambda x: @loader(@bundle_root + '/docs/x.mhd')"}
    config["preprocessing"]["transforms"].append(step)
    config["note"] = "$@loader(@bundle_root + '/docs/x.mhd')"


def file_variants() -> list[Variant]:
    """All variants of this kind."""
    archives = list(_archives("unused"))
    hidden = "$@bundle_root + '/models/' + 'deep.pt'"
    found = [Variant("weights", t, _LABEL, _archive(t), _LOAD if t in _RUNS else "") for t in archives]
    found += [
        Variant("weights under another name", t, _LABEL, _archive(t, "models/deep.pt", hidden)) for t in archives[:4]
    ]
    found += [
        Variant("safetensors", trick, _LABEL, _file("models/model.safetensors", data), "")
        for trick, data in _SAFETENSORS.items()
    ]
    found += [
        Variant("logging.conf", trick, _MONAI, _logged(*both), "logging" if trick not in _QUIET else "", whole=True)
        for trick, both in _LOGGING.items()
    ]
    found += [
        Variant(
            "a file beside",
            repr(name),
            commands,
            _file(name, data),
            "import glob" if name == "glob.py" else "",
            whole=True,
        )
        for name, (commands, data) in _BESIDE.items()
    ]
    found += [
        Variant(f"{name}.json", trick, ("train", "evaluate") if name == "train" else _INFER, _config(name, start), "")
        for trick, (name, start) in _CONFIG.items()
    ]
    for name, commands in (("inference", _INFER), ("train", _TRAIN), ("evaluate", _MONAI), ("metadata", _MONAI)):
        found += [
            Variant(f"{name}.yaml", t, commands, _in_yaml(name, text), f"yaml {name}" if t in _RUNS else "", whole=True)
            for t, text in _YAML.items()
            if t != "nested deeply" or name == "inference"  # it takes long
        ]
    found += [
        Variant("large_files.yml", trick, _MONAI, _file("large_files.yml", text)) for trick, text in _LARGE.items()
    ]
    found += [Variant("an inert file", name, _ALL, _file(name, text)) for name, text in _INERT.items()]
    found.append(Variant("a file beside", "a pickle as an array", ("train",), _pickled_array, "train:train::dataset"))
    found.append(Variant("a file beside", "a detached image", ("infer",), _detached, "inference:note"))
    return found
