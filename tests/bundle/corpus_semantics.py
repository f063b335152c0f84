"""Tricks of the corpus that are a whole config: what MONAI makes of keys, ids, overlays and macros."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from tests.bundle.corpus import Command, Draft, Variant

__all__ = ["semantic_variants"]

_MOVE = ".replace('CANARY/victim', 'CANARY/moved')"
_EVIL = {"_target_": "os.mkdir", "path": "CANARY/x"}
_GOOD = {"_target_": "StatsHandler"}
_OS = ["$import os"]
_TEXT = ["a text"]

_IN: tuple[Command, ...] = ("infer", "monai")

# name: the ids that are added to inference.json; "note" is what is resolved
_INFERENCE: dict[str, dict[str, Any]] = {
    "an import under another id": {"mods": _OS, "note": f"$@mods::0{_MOVE}"},
    "an import inside a component": {
        "made": {"_target_": "monai.utils.first", "iterable": _OS},
        "note": f"$@made{_MOVE}",
    },
    "an import in an argument": {
        "box": {"_target_": "Lambda", "func": {"_target_": "monai.utils.first", "iterable": _OS}},
        "note": f"$@box::func{_MOVE}",
    },
    "an import in _requires_": {"box": {**_GOOD, "_requires_": _OS}, "note": f"$@box::_requires_::0{_MOVE}"},
    "an import in _desc_": {"box": {**_GOOD, "_desc_": "$import os"}, "note": f"$@box::_desc_{_MOVE}"},
    "an import as a value": {"module": "$import os", "note": f"$@module{_MOVE}"},
    "an import by a macro": {"copy": "%imports", "note": f"$@copy::1{_MOVE}"},
    "an import by a macro of an item": {"copy": "%imports#1", "note": f"$@copy{_MOVE}"},
    "an import by a reference": {"copy": "@imports", "note": f"$@copy[1]{_MOVE}"},
    "an import by a relative reference": {"box": {"m": _OS, "v": f"$@::m::0{_MOVE}"}, "note": "@box"},
    "an import two levels up": {"box": {"m": _OS, "in": {"v": f"$@::::m::0{_MOVE}"}}, "note": "@box"},
    "an import under an id with a number": {"a0": {"0": "$import os"}, "note": f"$@a0::0{_MOVE}"},
    "an import under a renamed id": {
        "optional_packages_version": _OS,
        "note": f"$@required_packages_version::0{_MOVE}",
    },
    "an import below an empty key": {"": {"mods": _OS}, "note": f"$@mods::0{_MOVE}"},
    "an import as an empty key": {"box": {"": "$import os"}, "note": f"$@box::{_MOVE}"},
    "an import below two empty keys": {"": {"": {"mods": _OS}}, "note": f"$@mods::0{_MOVE}"},
    "an import over a text": {"box": {"m": _TEXT}, "box::m": _OS, "note": f"$@box::m::0{_MOVE}"},
    "an import over an item": {"box": [{"m": _TEXT}], "box::0::m": _OS, "note": f"$@box::0::m::0{_MOVE}"},
    "an import over a negative index": {"box": [{"m": _TEXT}], "box::-1::m": _OS, "note": f"$@box::0::m::0{_MOVE}"},
    "an import over an index with a blank": {
        "box": [{"m": _TEXT}],
        "box:: 0::m": _OS,
        "note": f"$@box::0::m::0{_MOVE}",
    },
    "an import over an index with a sign": {"box": [{"m": _TEXT}], "box::+0::m": _OS, "note": f"$@box::0::m::0{_MOVE}"},
    "an import over an index with a line": {
        "box": [{"m": _TEXT}],
        "box::0_0::m": _OS,
        "note": f"$@box::0::m::0{_MOVE}",
    },
    "an import over an id with a blank": {"box": {"m": _TEXT}, "box ::m": _OS, "note": f"$@box::m::0{_MOVE}"},
    "an import over an id with a new line": {"box": {"m": _TEXT}, "box\n::m": _OS, "note": f"$@box::m::0{_MOVE}"},
    "an import that extends": {"box": {"m": _TEXT}, "+box::m": _OS, "note": f"$@box::m::1{_MOVE}"},
    "an import that extends, in order": {"+box": [{"m": _OS}], "note": f"$@box::0::m::0{_MOVE}"},
    "an import after a new line": {"mods": ["$\nimport os"], "note": f"$@mods::0{_MOVE}"},
    "an import of two": {"mods": ["$import glob, os"], "note": "$os.mkdir('CANARY/x')"},
    "an import under another name": {"mods": ["$import os as monai"], "note": "$monai.mkdir('CANARY/x')"},
    "an import under the name of a function": {"mods": ["$import os as len"], "note": "$len.mkdir('CANARY/x')"},
    "an import of a function": {"mods": ["$from os import mkdir"], "note": "$mkdir('CANARY/x')"},
    "an import of a function under a name": {"mods": ["$from os import mkdir as glob"], "note": "$glob('CANARY/x')"},
    "an import of all": {"mods": ["$from os import *"], "note": "$os.mkdir('CANARY/x')"},
    "an import of a hidden module": {"mods": ["$import os.path as osp"], "note": "$osp.os.mkdir('CANARY/x')"},
    "an import of subprocess": {"mods": ["$import subprocess"], "note": "$subprocess.Popen(['touch', 'CANARY/x'])"},
    "an import of pickle": {"mods": ["$import pickle"], "note": "$pickle.dump(1, open('CANARY/x', 'wb'))"},
    "an import of importlib": {
        "mods": ["$import importlib"],
        "note": "$importlib.import_module('os').mkdir('CANARY/x')",
    },
    "covered by a key of the root": {"note": _EVIL, "::+note": _GOOD},
    "covered by a number sign": {"note": _EVIL, "#+note": _GOOD},
    "covered below an empty end": {"note": {"sub": _EVIL}, "+note::": {"sub": _GOOD}},
    "covered by a number sign at the end": {"note": {"sub": _EVIL}, "+note#": {"sub": _GOOD}},
    "uncovered by a key with a blank": {"note": {"sub": _GOOD}, "note ::sub": _EVIL},
    "uncovered by a target": {
        "note": {"_target_": "torch.nn.Identity", "path": "CANARY/x"},
        "note#_target_": "os.mkdir",
    },
    "a reader by a key over it": {
        "note": {"_target_": "LoadImage", "args": ["touch", "CANARY/x"]},
        "note#reader": "subprocess.Popen",
    },
    "a mode by a key over it": {
        "call": {"_target_": "LoadImage"},
        "call#_mode_": "callable",
        "note": "$@call('subprocess.Popen', args=['touch', 'CANARY/x'])",
    },
    "a loader as a callable": {
        "call": {"_target_": "LoadImage", "_mode_": "callable"},
        "note": "$@call('subprocess.Popen', args=['touch', 'CANARY/x'])",
    },
    "a writer as a callable": {
        "call": {"_target_": "TensorBoardStatsHandler", "_mode_": "callable"},
        "note": "$@call(log_dir='CANARY/d')",
    },
    "a writer that is called": {
        "call": {"_target_": "SaveImage", "output_dir": "CANARY/d"},
        "note": "$@call(torch.zeros(1, 2, 2, 2))",
    },
    "a writer handed on": {
        "call": {"_target_": "SaveImage", "output_dir": "CANARY/d"},
        "note": "$list(map(@call, [torch.zeros(1, 2, 2, 2)]))",
    },
    "a writer in a lambda": {
        "call": {"_target_": "SaveImage", "output_dir": "CANARY/d"},
        "func": "$lambda x: @call(x)",
        "note": "$@func(torch.zeros(1, 2, 2, 2))",
    },
    "a writer of another folder by a text": {
        "call": {"_target_": "SaveImage", "output_dir": "$@output_dir + '/../../canary/d'"},
        "note": "$@call(torch.zeros(1, 2, 2, 2))",
    },
    "a writer above by its ending": {
        "call": {"_target_": "SaveImage", "output_dir": "$@output_dir", "output_postfix": "/../../../canary/x"},
        "note": "$@call(torch.zeros(1, 2, 2, 2))",
    },
    "a cache that is read": {
        "call": {"_target_": "PersistentDataset", "data": [{"a": 1}], "transform": [], "cache_dir": "CANARY/d"},
        "note": "$next(iter(@call))",
    },
    "a callback of a seed": {
        "func": "$lambda seed: torch.os.mkdir('CANARY/x')",
        "note": {"_target_": "monai.utils.set_determinism", "additional_settings": "@func"},
    },
    "processes": {
        "call": {"_target_": "DataLoader", "dataset": [1, 2], "num_workers": 2, "multiprocessing_context": "spawn"},
        "note": "$next(iter(@call))",
    },
    "a macro with a new line": {"note": "%\nBUNDLE/docs/extra.json::evil"},
    "a macro with a tab": {"note": "%\textra.json::evil"},
    "a macro with a carriage return": {"note": "%\rextra.json::evil"},
    "a macro with a line separator": {"note": "%\u2028extra.json::evil"},
    "a macro with a blank": {"note": "% extra.json::evil"},
    "a macro of a file by a detour": {"note": "%docs/../docs/extra.json#evil"},
    "a macro of a file": {"note": "%BUNDLE/docs/extra.json::evil"},
    "a macro by a relative id": {"box": {"note": "%::evil", "evil": _EVIL}, "note": "@box"},
    "an id as code": {"note": {"a": 0, "a or open('CANARY/x', 'w')[b": {"v": "$@#w]", "w": 1}}},
    "a text that a reference opens": {"in": 1, "note": "$'@in ' + str(open('CANARY/x', 'w')) + ' @in'"},
    "a module out of a list": {"mods": _OS, "note": "$[m.replace('CANARY/victim', 'CANARY/moved') for m in @mods]"},
    "a function as a callable": {
        "call": {"_target_": "os.mkdir", "_mode_": "callable"},
        "note": "$@call('CANARY/x')",
    },
    "a switch that is evaluated": {"note": {**_EVIL, "_disabled_": "$False"}},
    "a switch by a text": {"note": {**_EVIL, "_disabled_": "false"}},
    "a component in a component": {"note": {"_target_": "Compose", "transforms": [_EVIL]}},
    "a deep component": {"note": [[[[[[[[[[{"a": {"b": _EVIL}}]]]]]]]]]]},
}
_EXTRA = json.dumps({"evil": _EVIL})

# name: what is added to train.json, and evaluate.json over it
_OVERLAYS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "a mode": (
        {"call": {"_target_": "LoadImage"}},
        {"call#_mode_": "callable", "note": "$@call('subprocess.Popen', args=['touch', 'CANARY/x'])"},
    ),
    "a mode that extends": (
        {"call": {"_target_": "LoadImage"}},
        {"+call": {"_mode_": "callable"}, "note": "$@call('subprocess.Popen', args=['touch', 'CANARY/x'])"},
    ),
    "a target": ({"note": {"_target_": "Identity", "path": "CANARY/x"}}, {"note#_target_": "os.mkdir"}),
    "arguments of a reader": (
        {"note": {"_target_": "LoadImage", "args": ["touch", "CANARY/x"]}},
        {"note#reader": "subprocess.Popen"},
    ),
    "a list that is extended": ({"box": [{"m": _TEXT}]}, {"+box": [{"m": _OS}], "note": f"$@box::1::m::0{_MOVE}"}),
    "a dictionary that is extended": ({"box": {"m": _TEXT}}, {"+box": {"m": _OS}, "note": f"$@box::m::0{_MOVE}"}),
    "an import over train's text": ({"box": {"m": _TEXT}}, {"box#m": _OS, "note": f"$@box::m::0{_MOVE}"}),
    "an import over a negative index": ({"box": [{"m": 1}]}, {"box#-1#m": _OS, "note": f"$@box::0::m::0{_MOVE}"}),
    "an import over a blank": ({"box": {"m": 1}}, {"box #m": _OS, "note": f"$@box::m::0{_MOVE}"}),
    "a reference to train's module": ({"mods": _OS}, {"note": f"$@mods::0{_MOVE}"}),
    "a component over a text": ({"note": {"sub": 1}}, {"note#sub": _EVIL}),
    "covered by an empty end": ({"note": {"sub": _EVIL}}, {"+note#": {"sub": _GOOD}}),
    "a relative reference": ({"box": {"m": _OS}}, {"box#v": f"$@::m::0{_MOVE}", "note": "@box"}),
    "a folder of checkpoints": (
        {"keep": {"_target_": "CheckpointSaver", "save_dir": ".", "save_dict": {"m": "@network"}, "save_final": True}},
        {"keep#save_dir": "CANARY/d", "note": "$@keep.attach(@train#trainer)"},
    ),
    "events": (
        {"events": {"_target_": "TensorBoardStatsHandler", "log_dir": "@output_dir"}},
        {"events#log_dir": "CANARY/d", "note": "@events"},
    ),
}


def _added(config: str, more: dict[str, Any]) -> Callable[[Draft], None]:
    def change(draft: Draft) -> None:
        draft.config(config).update(json.loads(json.dumps(more)))
        text = str(more.get("note", ""))
        if "extra.json" in json.dumps(more):
            own = text.startswith(("%\t", "%\r", "%\u2028", "% "))
            draft.write(text[1:].partition(":")[0] if own and "BUNDLE" not in text else "docs/extra.json", _EXTRA)

    return change


def _laid(first: dict[str, Any], second: dict[str, Any]) -> Callable[[Draft], None]:
    def change(draft: Draft) -> None:
        _added("train", first)(draft)
        _added("evaluate", second)(draft)

    return change


def _metadata(more: dict[str, Any], note: str) -> Callable[[Draft], None]:
    def change(draft: Draft) -> None:
        _added("metadata", more)(draft)
        for config in ("inference", "train"):
            draft.config(config)["note"] = note

    return change


def _twice_resolved(draft: Draft) -> None:
    """A macro copies a text with a relative reference, which the second parsing resolves at its new place."""
    more = {"note": {"copy": "%later#text", "m": _OS}, "later": {"text": f"$@::m::0{_MOVE}", "m": _TEXT}}
    draft.config("train").update(json.loads(json.dumps(more)))


_METADATA: dict[str, tuple[dict[str, Any], str]] = {
    "an import": ({"mods": _OS}, f"$@_meta_::mods::0{_MOVE}"),
    "an import under a renamed id": (
        {"optional_packages_version": {"a": "$import os"}},
        f"$@_meta_::required_packages_version::a{_MOVE}",
    ),
    "an import below an empty key": ({"": {"mods": _OS}}, f"$@_meta_::::mods::0{_MOVE}"),
    "an import over a key of the root": ({"::mods": _OS}, f"$@_meta_::mods::0{_MOVE}"),
    "a component": ({"evil": _EVIL}, "@_meta_::evil"),
    "a component by a macro": ({"evil": _EVIL}, "%_meta_::evil"),
    "a text by a macro": ({"text": "$open('CANARY/x', 'w')"}, "%_meta_#text"),
    "a macro": ({"text": "%BUNDLE/docs/extra.json::evil"}, "@_meta_::text"),
}


def semantic_variants() -> list[Variant]:
    """All variants of this kind."""
    found = [
        Variant("the config for inference", trick, _IN, _added("inference", more), "inference:note")
        for trick, more in _INFERENCE.items()
    ]
    found += [
        Variant("the config for training", trick, ("train", "evaluate"), _added("train", more), "train:note")
        for trick, more in _INFERENCE.items()
    ]
    found += [
        Variant("a config over another", trick, ("evaluate",), _laid(*both), "evaluate:note")
        for trick, both in _OVERLAYS.items()
    ]
    found += [
        Variant("metadata", trick, ("train", "monai"), _metadata(*both), "inference:note")
        for trick, both in _METADATA.items()
    ]
    found.append(Variant("the config for training", "resolved twice", ("train",), _twice_resolved, "train:note"))
    return found
