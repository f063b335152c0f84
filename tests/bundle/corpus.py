"""A generated corpus of malicious bundles: places where a value can stand × tricks to reach something × commands.

The bundle is small and lies in memory; a variant changes a few of its files, which a :class:`Workbench` writes and puts
back. What is reached is always a *canary*: a folder outside of the bundle that holds ``victim`` (to be renamed) and
``secret`` (to be read).
"""

from __future__ import annotations

import copy
import io
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import torch

from tests.bundle.sample import INFERENCE as SAMPLE

__all__ = ["CONFIG_PLACES", "Command", "Draft", "Variant", "Workbench", "base_files"]

Command = Literal["infer", "network", "train", "evaluate", "monai"]
"""``medseg infer``, the same with ``--network-only``, ``medseg train``, MONAI's run of ``evaluate.json`` over
``train.json``, and its run of ``inference.json``."""

NAME = "cube_ct_segmentation"

_TENSOR = {"type": "image", "format": "hounsfield", "modality": "CT", "num_channels": 1, "dtype": "float32"}
_SHAPE = {"spatial_shape": [8, 8, 8], "value_range": [0, 1], "is_patch_data": True}
METADATA: dict[str, Any] = {
    "version": "0.1.0",
    "changelog": {"0.1.0": "First version"},
    "monai_version": "1.6.1",
    "pytorch_version": "2.13.0",
    "numpy_version": "2.4.6",
    "required_packages_version": {},
    "task": "Segmentation of a cube",
    "description": "A network that marks a cube.",
    "authors": "The medseg developers",
    "copyright": "Copyright (c) The medseg developers",
    "network_data_format": {
        "inputs": {"image": {**_TENSOR, **_SHAPE, "channel_def": {"0": "image"}}},
        "outputs": {
            "pred": {**_TENSOR, **_SHAPE, "num_channels": 2, "channel_def": {"0": "background", "1": "cube"}},
        },
    },
}
_NETWORK = {"_target_": "torch.nn.Conv3d", "in_channels": 1, "out_channels": 2, "kernel_size": 1}
_LOADER = {
    "_target_": "CheckpointLoader",
    "load_path": "$@bundle_root + '/models/model.pt'",
    "load_dict": {"model": "@network"},
}
INFERENCE: dict[str, Any] = {
    "imports": ["$import glob", "$import os", "$import itertools"],
    "bundle_root": ".",
    "output_dir": "$@bundle_root + '/eval'",
    "dataset_dir": "data",
    "device": "$torch.device('cpu')",
    "network_def": _NETWORK,
    "network": "$@network_def.to(@device)",
    "preprocessing": {
        "_target_": "Compose",
        "transforms": [
            {"_target_": "LoadImaged", "keys": "image", "reader": "NibabelReader"},
            {"_target_": "EnsureChannelFirstd", "keys": "image"},
            {"_target_": "ScaleIntensityd", "keys": "image"},
        ],
    },
    "dataset": {"_target_": "Dataset", "data": [], "transform": "@preprocessing"},
    "dataloader": {"_target_": "DataLoader", "dataset": "@dataset", "batch_size": 1, "num_workers": 0},
    "inferer": {"_target_": "SlidingWindowInferer", "roi_size": [8, 8, 8], "overlap": 0.25},
    "postprocessing": {
        "_target_": "Compose",
        "transforms": [
            {"_target_": "AsDiscreted", "keys": "pred", "argmax": True},
            {"_target_": "SaveImaged", "keys": "pred", "output_dir": "@output_dir"},
        ],
    },
    "handlers": [_LOADER, {"_target_": "StatsHandler", "iteration_log": False}],
    "evaluator": SAMPLE["evaluator"],
    "initialize": ["$monai.utils.set_determinism(seed=0)"],
    "run": ["$@evaluator.run()"],
}
TRAIN: dict[str, Any] = {
    "imports": ["$import glob", "$import os", "$import itertools"],
    "bundle_root": ".",
    "output_dir": "$@bundle_root + '/runs/fold0'",
    "dataset_dir": "data",
    "device": "$torch.device('cpu')",
    "network_def": _NETWORK,
    "network": "$@network_def.to(@device)",
    "optimizer": {"_target_": "torch.optim.AdamW", "params": "$@network.parameters()", "lr": 0.001},
    "loss": {"_target_": "DiceCELoss", "to_onehot_y": True, "softmax": True},
    "train": {
        "dataset": {"_target_": "Dataset", "data": [], "transform": {"_target_": "EnsureTyped", "keys": ["image"]}},
        "dataloader": {"_target_": "DataLoader", "dataset": "@train#dataset", "batch_size": 1},
        "inferer": {"_target_": "SimpleInferer"},
        "handlers": [{"_target_": "StatsHandler", "iteration_log": False}],
        "trainer": {
            "_target_": "SupervisedTrainer",
            "max_epochs": 1,
            "device": "@device",
            "train_data_loader": "@train#dataloader",
            "network": "@network",
            "loss_function": "@loss",
            "optimizer": "@optimizer",
            "inferer": "@train#inferer",
        },
    },
    "initialize": ["$monai.utils.set_determinism(seed=0)"],
    "run": ["$@train#trainer"],
}
LOGGING = """[loggers]
keys=root

[handlers]
keys=console

[formatters]
keys=full

[logger_root]
level=INFO
handlers=console

[handler_console]
class=StreamHandler
level=INFO
formatter=full
args=(sys.stdout,)

[formatter_full]
format=%(asctime)s - %(message)s
"""


def base_files() -> dict[str, bytes]:
    """The clean bundle: path inside it → content."""
    torch.manual_seed(0)
    weights = io.BytesIO()
    torch.save(torch.nn.Conv3d(1, 2, 1).state_dict(), weights)
    configs = {
        "metadata": METADATA,
        "inference": INFERENCE,
        "train": TRAIN,
        "evaluate": {"run": ["$@train#trainer"]},
        "datalist": {"training": [{"image": "i.nii.gz", "label": "l.nii.gz", "fold": 0}]},
    }
    return {
        **{f"configs/{name}.json": json.dumps(config).encode() for name, config in configs.items()},
        "configs/logging.conf": LOGGING.encode(),
        "LICENSE": b"Apache License, Version 2.0\n",
        "docs/README.md": b"# Cube in CT\n",
        "docs/data_license.txt": b"The data are synthetic and free to use.\n",
        "models/model.pt": weights.getvalue(),
    }


@dataclass
class Draft:
    """A copy of the clean bundle that a variant changes; ``canary`` is the folder that it is after."""

    files: dict[str, bytes]
    canary: Path
    bundle: Path
    changed: dict[str, bytes | None] = field(default_factory=dict)
    configs: dict[str, Any] = field(default_factory=dict)

    def text(self, text: str) -> str:
        """``CANARY`` and ``BUNDLE`` in a payload stand for the two folders."""
        return text.replace("CANARY", self.canary.as_posix()).replace("BUNDLE", self.bundle.as_posix())

    def config(self, name: str) -> dict[str, Any]:
        """A config to change in place."""
        if name not in self.configs:
            found = self.files.get(f"configs/{name}.json", b"{}")
            self.configs[name] = json.loads(found)
        config: dict[str, Any] = self.configs[name]
        return config

    def write(self, name: str, content: bytes | str | None) -> None:
        """Add or replace a file; None removes it."""
        self.changed[name] = self.text(content).encode() if isinstance(content, str) else content

    def result(self) -> dict[str, bytes | None]:
        """Every changed file."""
        dumped = {f"configs/{name}.json": self.text(json.dumps(c)).encode() for name, c in self.configs.items()}
        return {**dumped, **self.changed}


@dataclass(frozen=True)
class Variant:
    """One malicious bundle: a trick at a place, for the commands that would come to it.

    ``proof``: How a reader without an audit comes to it: an id that MONAI resolves (``"inference:note"``), or a word
    that :mod:`tests.bundle.live` knows (``"torch.load models/model.pt"``); empty if it is inert by design.
    """

    place: str
    trick: str
    commands: tuple[Command, ...]
    change: Callable[[Draft], None]
    proof: str = ""
    whole: bool = False

    @property
    def kind(self) -> str:
        """Which bundle has what its commands read."""
        commands = set(self.commands)
        if self.whole or not (commands <= set(_N) or commands <= set(_T)):
            return "whole"
        return "training" if commands <= set(_T) else "labelling"

    @property
    def name(self) -> str:
        return f"{self.place} | {self.trick}"


class Workbench:
    """Bundles on disk; variants are written into the smallest one that has what their commands read, and taken back."""

    def __init__(self, parent: Path) -> None:
        self.canary, self.files, self._parent = parent / "canary", base_files(), parent
        self.canary.mkdir()
        self._written: dict[str, bytes | None] = {}
        for kind in ("labelling", "training", "whole"):
            self._use(kind)
            for name, content in self._kept.items():
                (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
                (self.folder / name).write_bytes(content)

    def _use(self, kind: str) -> None:
        self.folder = self._parent / kind / NAME
        left_out = _LEFT_OUT.get(kind, frozenset())
        self._kept = {name: content for name, content in self.files.items() if name not in left_out}

    def apply(self, variant: Variant) -> None:
        """Write one variant in the place of the one before."""
        self.restore()
        self._use(variant.kind)
        draft = Draft(self.files, self.canary, self.folder)
        variant.change(draft)
        self._written = draft.result()
        for name, content in self._written.items():
            path = self.folder / name
            if content is None:
                path.unlink()
            else:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)

    def restore(self) -> None:
        """The clean bundle again."""
        for name in self._written:
            path = self.folder / name
            if name in self._kept:
                path.write_bytes(self._kept[name])
                continue
            path.unlink(missing_ok=True)
            for folder in path.parents:
                if folder == self.folder or any(folder.iterdir()):
                    break
                folder.rmdir()
        self._written = {}


_TRAINING = frozenset(f"configs/{name}.json" for name in ("train", "evaluate", "datalist"))
_LEFT_OUT = {
    "labelling": _TRAINING | {"docs/README.md", "docs/data_license.txt", "LICENSE", "configs/logging.conf"},
    "training": frozenset(
        {"configs/inference.json", "models/model.pt", "configs/logging.conf", "configs/datalist.json"}
    ),
}


def _at(config: str, *path: str | int) -> Callable[[Draft, Any], None]:
    """A place in a config; what is missing on the way is made."""

    def put(draft: Draft, payload: Any) -> None:
        here: Any = draft.config(config)
        for step, following in pairwise(path):
            if isinstance(here, dict):
                here = here.setdefault(step, [] if isinstance(following, int) else {})
            else:
                here = here[step]
        if isinstance(here, list) and path[-1] == len(here):
            here.append(payload)
        else:
            here[path[-1]] = payload

    return put


def _by_reference(draft: Draft, payload: Any) -> None:
    draft.config("inference")["hidden"] = payload
    draft.config("inference")["inferer"]["overlap"] = "@hidden"


def _by_macro(draft: Draft, payload: Any) -> None:
    draft.config("inference")["hidden"] = {"deep": payload}
    draft.config("inference")["inferer"]["overlap"] = "%hidden#deep"


def _yaml(name: str) -> Callable[[Draft, Any], None]:
    """The twin in YAML in the place of a JSON config."""

    def put(draft: Draft, payload: Any) -> None:
        config = copy.deepcopy(json.loads(draft.files.get(f"configs/{name}.json", b"{}")))
        config["note"] = payload
        if f"configs/{name}.json" in draft.files:
            draft.write(f"configs/{name}.json", None)
        draft.write(f"configs/{name}.yaml", json.dumps(config))

    return put


_I: tuple[Command, ...] = ("infer", "monai")
_N: tuple[Command, ...] = ("infer", "network", "monai")
_T: tuple[Command, ...] = ("train", "evaluate")
_PRE = ("preprocessing", "transforms", 2)

CONFIG_PLACES: dict[str, tuple[tuple[Command, ...], Callable[[Draft, Any], None], str]] = {
    "an id": (_I, _at("inference", "note"), "inference:note"),
    "a nested id": (_I, _at("inference", "group", "inner", "note"), "inference:group"),
    "an item of a list": (_I, _at("inference", "handlers", 2), "inference:handlers"),
    "device": (_N, _at("inference", "device"), "inference:device"),
    "dataset_dir": (_I, _at("inference", "dataset_dir"), "inference:dataset_dir"),
    "preprocessing": (_I, _at("inference", *_PRE, "factor"), "inference:preprocessing"),
    "a step of preprocessing": (_I, _at("inference", "preprocessing", "transforms", 3), "inference:preprocessing"),
    "inferer": (_I, _at("inference", "inferer", "overlap"), "inference:inferer"),
    "postprocessing": (
        _I,
        _at("inference", "postprocessing", "transforms", 0, "to_onehot"),
        "inference:postprocessing",
    ),
    "network_def": (_N, _at("inference", "network_def", "bias"), "inference:network_def"),
    "_requires_": (_N, _at("inference", "network_def", "_requires_"), "inference:network_def"),
    "_desc_": (_N, _at("inference", "network_def", "_desc_"), "inference:network_def"),
    "_disabled_": (_I, _at("inference", *_PRE, "_disabled_"), "inference:preprocessing"),
    "load_path": (_N, _at("inference", "handlers", 0, "load_path"), "inference:handlers"),
    "evaluator": (_I, _at("inference", "evaluator", "key_val_metric"), "inference:evaluator"),
    "initialize": (("monai",), _at("inference", "initialize", 1), "inference:initialize"),
    "run": (("monai",), _at("inference", "run", 0), "inference:run"),
    "by a reference": (_I, _by_reference, "inference:inferer"),
    "by a macro": (_I, _by_macro, "inference:inferer"),
    "train: an id": (_T, _at("train", "note"), "train:note"),
    "train: optimizer": (_T, _at("train", "optimizer", "lr"), "train:optimizer"),
    "train: a handler": (_T, _at("train", "train", "handlers", 1), "train:train::handlers"),
    "train: data": (_T, _at("train", "train", "dataset", "data"), "train:train::dataset"),
    "train: initialize": (_T, _at("train", "initialize", 1), "train:initialize"),
    "train: run": (_T, _at("train", "run", 0), "train:run"),
    "evaluate: a key over train": (("evaluate",), _at("evaluate", "train#inferer"), "evaluate:train::inferer"),
    "evaluate: a key that extends": (("evaluate",), _at("evaluate", "+initialize", 0), "evaluate:initialize"),
    "multi-GPU": (("monai",), _at("multi_gpu_train", "note"), "multi_gpu_train:note"),
    "metadata": (("train",), _at("metadata", "description"), "metadata:_meta_::description"),
    "deep in metadata": (("train",), _at("metadata", "changelog", "0.1.0"), "metadata:_meta_::changelog"),
    "inference.yaml": (_I, _yaml("inference"), "inference:note"),
    "train.yaml": (_T, _yaml("train"), "train:note"),
}
"""Where a value can stand: the commands that come to it, how it is put there, and what MONAI has to resolve."""


def places(count: int, turn: int) -> Iterator[str]:
    """``count`` places for a trick, others for each turn, the plain one first."""
    others = [name for name in CONFIG_PLACES if name != "an id"]
    yield "an id"
    for number in range(count - 1):
        yield others[(turn * (count - 1) + number) % len(others)]
