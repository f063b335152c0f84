"""Tricks of the corpus that are a path: how a text that looks harmless comes to a folder outside, or a file there."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from tests.bundle.corpus import Draft, Variant

__all__ = ["path_variants"]

_NOW = "datetime.datetime.now().strftime"
_UP = "/../../../canary/d"

_WRITTEN: dict[str, dict[str, Any]] = {
    "a full path": {"folder": "CANARY/d"},
    "a path that goes up": {"folder": f"$@output_dir + '{_UP}'"},
    "a path by os.path.join": {"folder": "$os.path.join(@output_dir, 'CANARY/d')"},
    "a path by normpath": {"folder": f"$os.path.normpath(@output_dir + '{_UP}')"},
    "a path of many texts": {"folder": "$@output_dir + '/' + '.' + './.' + './.' + './canary/d'"},
    "a path by joining": {"folder": "$'/'.join([@output_dir, '..', '..', '..', 'canary', 'd'])"},
    "a path by replacing": {"folder": f"$(@output_dir + '{_UP}'.replace('x', 'y'))"},
    "a path by stripping": {"folder": "$' CANARY/d'.strip()"},
    "a path out of a list": {"folder": "$['CANARY/d'][0]"},
    "a path under a condition": {"folder": "$@output_dir if 0 else 'CANARY/d'"},
    "a path by a reference": {"folder": "@other", "other": "CANARY/d"},
    "a path by two references": {"folder": "@other", "other": "@another", "another": "CANARY/d"},
    "a path by a macro": {"folder": "%other", "other": "CANARY/d"},
    "a path below a macro": {"folder": "@copy::b", "copy": "%box", "box": {"b": "CANARY/d"}},
    "a path deep below a macro": {"folder": "@copy::a::b", "copy": "%box", "box": {"a": {"b": "CANARY/d"}}},
    "a path in a list below a macro": {"folder": "@copy::a::0", "copy": "%box", "box": {"a": ["CANARY/d"]}},
    "a path below two macros": {
        "folder": "@copy::a::b",
        "copy": {"a": "%box::a"},
        "box": {"a": {"b": "CANARY/d"}},
    },
    "a path of metadata": {"folder": "@_meta_::task"},
    "a path of metadata by a macro": {"folder": "%_meta_::task"},
    "a path by the day": {"folder": f"${_NOW}(@output_dir + '/%d/../../../../canary/d')"},
    "a path by a zone without a name": {"folder": f"${_NOW}(@output_dir + '/.%Z./.%Z./.%Z./canary/d')"},
    "a path by an offset without a name": {"folder": f"${_NOW}(@output_dir + '/.%z./.%z./.%z./canary/d')"},
    "a path by letters of numbers": {
        "folder": '$f"{@output_dir}/{46:c}{46:c}/{46:c}{46:c}/{46:c}{46:c}/canary/d"',
    },
    "a path by a slash of a number": {"folder": "$f'{47:c}tmp/d'"},
    "a path by filling": {"folder": "$f'{1:/>2}/d'"},
    "a path by a conversion": {"folder": '$f"{@other!s}"', "other": "CANARY/d"},
    "a path by an own output_dir": {"folder": "@output_dir", "output_dir": "CANARY/d"},
    "a path by an own output_dir above": {"folder": "@output_dir", "output_dir": f"$@bundle_root + '{_UP}'"},
    "a path by an own root": {"folder": "@output_dir", "bundle_root": "CANARY"},
    "a path by the folder of data": {"folder": "$@dataset_dir + '/d'", "dataset_dir": "CANARY"},
    "a path at home": {"folder": "~/d"},
    "a path by a variable": {"folder": "$HOME/d"},
    "a path of another system": {"folder": "$@output_dir + '\\\\..\\\\d'"},
    "a path in percent": {"folder": "$@output_dir + '/%2e%2e/%2e%2e/d'"},
    "a server of the web": {"folder": "http://127.0.0.1:9/x"},
    "a server of files": {"folder": "ftp://127.0.0.1:9/x"},
    "a server of objects": {"folder": "s3://bucket/x"},
    "a server in two texts": {"folder": "$'ftp:/' + '/127.0.0.1:9/x'"},
    "a server by another way": {"folder": "hdfs://127.0.0.1:9/x"},
    "a share": {"folder": "//127.0.0.1/x"},
    "a share of Windows": {"folder": "\\\\127.0.0.1\\x"},
    "a file as an address": {"folder": "file://CANARY/d"},
    "memory as an address": {"folder": "memory://CANARY/d"},
}
_QUIET = frozenset(
    {"a path by an own root", "a path by a variable", "a path of another system", "a path in percent"}
    | {"a server of the web", "a server of objects", "a server by another way", "memory as an address"}
    | {"an image outside as a step", "an image outside by a function of chance", "the image in the postprocessing"}
)
"""What comes to nothing on this system, with these packages, or at this place of medseg."""
_EVENTS: dict[str, Any] = {"_target_": "TensorBoardStatsHandler", "log_dir": "@folder"}
_READ: dict[str, dict[str, Any]] = {
    "a file outside": {"note": "$torch.load('CANARY/secret', weights_only=True)"},
    "a file outside by default": {"note": "$torch.load('CANARY/secret')"},
    "a file outside by a keyword": {"note": "$torch.load(f='CANARY/secret', weights_only=True)"},
    "a file that is loaded by a map": {"note": "$list(map(torch.load, ['CANARY/secret']))"},
    "a list outside": {"note": "$monai.data.load_decathlon_datalist('CANARY/secret')"},
    "a list outside by a keyword": {"note": "$monai.data.load_decathlon_datalist(data_list_file_path='CANARY/secret')"},
    "a list outside by a map": {"note": "$list(map(monai.data.load_decathlon_datalist, ['CANARY/secret']))"},
    "a list outside by a part": {
        "note": "$list(map(functools.partial(monai.data.load_decathlon_datalist), ['CANARY/secret']))",
    },
    "a list outside by its module": {"note": "$monai.data.decathlon_datalist.load_decathlon_datalist('CANARY/secret')"},
    "a list outside by a callable": {
        "call": {"_target_": "monai.data.load_decathlon_datalist", "_mode_": "callable"},
        "note": "$@call('CANARY/secret')",
    },
    "weights outside by a callable": {
        "call": {"_target_": "medseg.networks.read_checkpoint", "_mode_": "callable"},
        "note": "$@call('CANARY/secret')",
    },
    "an image outside by a reference": {
        "call": {"_target_": "LoadImage", "reader": "PydicomReader"},
        "note": "$@call('CANARY/secret')",
    },
    "an image outside by a map": {
        "call": {"_target_": "LoadImage", "reader": "PydicomReader"},
        "note": "$list(map(@call, ['CANARY/secret']))",
    },
    "an image outside by an order": {
        "call": {"_target_": "LoadImage", "reader": "PydicomReader"},
        "note": "$sorted(['CANARY/secret'], key=@call)",
    },
    "a file that waits by an own dataset_dir": {
        "dataset_dir": "CANARY",
        "note": "$torch.load(@dataset_dir + '/fifo', weights_only=True)",
    },
}
_LOAD: dict[str, Any] = {"_target_": "LoadImaged", "keys": "path", "reader": "PydicomReader"}
_SAVE: dict[str, Any] = {"_target_": "SaveImaged", "keys": "pred", "output_dir": "CANARY/d"}
_PATH = {"_target_": "Lambda", "func": "$lambda d: {'image': d['image'], 'path': 'CANARY/secret'}"}

# name: where in inference.json, and the steps that are added there
_STEPS: dict[str, tuple[str, list[Any]]] = {
    "an image outside as a step": ("preprocessing", [_PATH, _LOAD]),
    "an image outside in one of several": ("preprocessing", [_PATH, {"_target_": "OneOf", "transforms": [_LOAD]}]),
    "an image outside in any order": ("preprocessing", [_PATH, {"_target_": "RandomOrder", "transforms": [_LOAD]}]),
    "an image outside in some of several": ("preprocessing", [_PATH, {"_target_": "SomeOf", "transforms": [_LOAD]}]),
    "an image outside by a function": (
        "preprocessing",
        [_PATH, {"_target_": "Lambdad", "keys": "path", "func": "@call"}],
    ),
    "an image outside by a function of chance": (
        "preprocessing",
        [_PATH, {"_target_": "RandLambdad", "keys": "path", "func": "@call", "prob": 1.0}],
    ),
    "a copy of the image": ("preprocessing", [{**_SAVE, "keys": "image"}]),
    "a copy of the image in one of several": (
        "preprocessing",
        [{"_target_": "OneOf", "transforms": [{**_SAVE, "keys": "image"}]}],
    ),
    "labels in one of several": ("postprocessing", [{"_target_": "OneOf", "transforms": [_SAVE]}]),
    "labels in a list of one of several": (
        "postprocessing",
        [{"_target_": "OneOf", "transforms": [{"_target_": "Compose", "transforms": [_SAVE]}]}],
    ),
    "labels in a list of any order": (
        "postprocessing",
        [{"_target_": "RandomOrder", "transforms": [{"_target_": "Compose", "transforms": [_SAVE]}]}],
    ),
    "labels by a function": (
        "postprocessing",
        [{"_target_": "Lambda", "func": {"_target_": "Compose", "transforms": [_SAVE]}}],
    ),
    "the image in the postprocessing": ("postprocessing", [{**_SAVE, "keys": ["image", "pred"]}]),
}


def _added(config: str, more: dict[str, Any]) -> Callable[[Draft], None]:
    def change(draft: Draft) -> None:
        draft.config(config).update(json.loads(json.dumps(more)))
        if config == "train":
            draft.config("metadata")["task"] = "CANARY/d"
            draft.config(config)["imports"] = [
                f"$import {n}" for n in ("glob", "os", "itertools", "datetime", "functools")
            ]

    return change


def _stepped(place: str, steps: list[Any]) -> Callable[[Draft], None]:
    def change(draft: Draft) -> None:
        config = draft.config("inference")
        config["call"] = {"_target_": "LoadImage", "reader": "PydicomReader"}
        kept = config[place]["transforms"]
        at = 1 if place == "postprocessing" else len(kept)
        kept[at:at] = json.loads(json.dumps(steps))

    return change


def path_variants() -> list[Variant]:
    """All variants of this kind."""
    found = [
        Variant(
            "a folder that is written",
            trick,
            ("train", "evaluate"),
            _added("train", {**more, "note": _EVENTS}),
            "train:note" if trick not in _QUIET else "",
        )
        for trick, more in _WRITTEN.items()
    ]
    found += [
        Variant(
            "a file that is read",
            trick,
            ("train", "evaluate"),
            _added("train", more),
            "train:note" if trick not in _QUIET else "",
        )
        for trick, more in _READ.items()
    ]
    found += [
        Variant(f"a step of {place}", trick, ("infer",), _stepped(place, steps), "infer" if trick not in _QUIET else "")
        for trick, (place, steps) in _STEPS.items()
    ]
    return found
