"""Configs that would write, connect or run through what looks harmless: each is laid over a config of the sample."""

from __future__ import annotations

from typing import Any

__all__ = ["CONFIG_ATTACKS"]

_SAVER = {"_target_": "SaveImaged", "keys": "image", "output_dir": "@output_dir"}
_STEPS = {"_target_": "Compose", "transforms": [_SAVER]}
_WRITER = "torch.utils.tensorboard.SummaryWriter"


def _handler(target: str, **arguments: Any) -> dict[str, Any]:
    return {"handlers": [{"_target_": target, **arguments}]}


def _steps(*steps: Any) -> dict[str, Any]:
    return {"preprocessing": {"_target_": "Compose", "transforms": list(steps)}}


def _moved(code: str, **ids: Any) -> dict[str, Any]:
    return {**ids, "note": f"${code}.replace('a', 'CANARY') is None"}


_METRIC = {"_target_": "MeanDice"}

CONFIG_ATTACKS: dict[str, tuple[str, dict[str, Any], str]] = {
    # places that are written
    "checkpoints elsewhere": ("train", _handler("CheckpointSaver", save_dir="CANARY"), "outside"),
    "checkpoints above": ("train", _handler("CheckpointSaver", save_dir="$@output_dir + '/../x'"), "leads out"),
    "checkpoints beside": ("train", _handler("CheckpointSaver", save_dir="$@output_dir + 'x'"), "without a '/'"),
    "checkpoints in data": ("train", _handler("CheckpointSaver", save_dir="$@dataset_dir + '/x'"), "outside"),
    "checkpoints at home": ("train", _handler("CheckpointSaver", save_dir="~/x"), "leads out"),
    "joined anew": ("train", _handler("MetricsSaver", save_dir="$os.path.join(@output_dir, '/etc')"), "outside"),
    "folder by reference": ("train", {"x": "CANARY", **_handler("MetricsSaver", save_dir="@x")}, "outside"),
    "folder by macro": ("train", {"x": "CANARY", **_handler("MetricsSaver", save_dir="%x")}, "outside"),
    "folder by choice": ("train", _handler("MetricsSaver", save_dir="$'a' if @epochs else '/etc'"), "outside"),
    "folder by f-string": ("train", {"x": "..", **_handler("MetricsSaver", save_dir='$f"@x/{@x}"')}, "string"),
    "folder from a component": ("train", _handler("MetricsSaver", save_dir={"_target_": "monai.utils.first"}), "told"),
    "folder of a method": ("train", _handler("MetricsSaver", save_dir="$'|'.replace('|', '/')"), "cannot be told"),
    "own handler elsewhere": ("train", _handler("medseg.training.Samples", folder="CANARY"), "outside"),
    "cache elsewhere": (
        "train",
        {"x": {"_target_": "PersistentDataset", "data": [], "cache_dir": "CANARY"}},
        "outside",
    ),
    "output folder elsewhere": ("train", {"output_dir": "CANARY"}, "outside"),
    "bundle elsewhere": ("train", {"bundle_root": "/etc"}, "bundle_root"),
    "folder by overlay": ("train", {"evaluate": {"train#handlers": [], "loss#save_dir": "CANARY"}}, "outside"),
    "folder by position": ("train", {"x": f"${_WRITER}('CANARY')"}, "keyword"),
    "folder in a call": ("train", {"x": f"${_WRITER}(log_dir='CANARY')"}, "outside"),
    "folder handed on": ("train", {"x": f"$list(map({_WRITER}, ['CANARY']))"}, "handed on"),
    "folder of an imported name": (
        "train",
        {"imports": ["$from torch.utils.tensorboard import SummaryWriter"], "x": "$SummaryWriter('CANARY')"},
        "keyword",
    ),
    "writer as a callable": (
        "train",
        {"w": {"_target_": _WRITER, "_mode_": "callable"}, "x": "$@w('CANARY')"},
        "as a callable",
    ),
    "makedirs elsewhere": ("train", {"imports": ["$import os"], "x": "$os.makedirs('CANARY')"}, "outside"),
    "makedirs by its name": ("train", {"imports": ["$import os"], "x": "$os.makedirs(name='CANARY')"}, "by position"),
    "log of a call when labelling": ("inference", {"x": f"${_WRITER}(log_dir=@output_dir)"}, "writes"),
    "makedirs when labelling": ("inference", {"imports": ["$import os"], "x": "$os.makedirs(@output_dir)"}, "writes"),
    "log when labelling": ("inference", _handler("TensorBoardStatsHandler", log_dir="@output_dir"), "for inference"),
    "cache when labelling": ("inference", _handler("PersistentDataset", cache_dir="@output_dir"), "for inference"),
    # names of files
    "prefix that leads out": ("train", _handler("CheckpointSaver", save_dir=".", file_prefix="../x"), "file name"),
    "suffix that leads out": ("train", _handler(_WRITER, log_dir=".", filename_suffix="/../x"), "file name"),
    "comment that leads out": ("train", _handler(_WRITER, comment="/../x"), "comment must be left out"),
    "name by reference": ("train", {"x": "../x.pt", **_handler("CheckpointSaver", final_filename="@x")}, "file name"),
    "postfix that leads out": ("inference", {"postprocessing": _STEPS | {"output_postfix": "/../x"}}, "file name"),
    "metric that is a path": ("train", {"train": {"key_metric": {"../../x": _METRIC}}}, "is a path"),
    "object that is a path": ("train", _handler("CheckpointSaver", save_dict={"/etc/x": "@network"}), "is a path"),
    "object by expression": ("train", _handler("CheckpointSaver", save_dict="$dict(x=1)"), "keys become names"),
    "metric attached by a path": ("train", {"x": "$@loss.attach(@network, '../../x')"}, "attach"),
    "name by a formatter": ("inference", _handler("SaveImaged", output_name_formatter="$lambda x: x"), "left out"),
    "hash that is a path": ("train", _handler("PersistentDataset", hash_func="$lambda x: '/etc/x'"), "left out"),
    "root that leads out": ("inference", _handler("SaveImaged", data_root_dir="/a/b/c"), "not in the bundle"),
    # servers
    "tracking server": ("train", {"mlflow": "http://127.0.0.1:1"}, "address"),
    "tracking by a provider": ("train", {"mlflow": "databricks"}, "address"),
    "tracking into a database": ("train", {"mlflow": "sqlite:////etc/x.db"}, "address"),
    "address in two parts": ("train", _handler("medseg.training.MetricsLogger", mlflow="$'ht' + 'tp://x'"), "address"),
    "log over ftp": ("train", _handler("TensorBoardStatsHandler", log_dir="ftp://127.0.0.1/x"), "leads out"),
    "log to a bucket": ("train", {"x": f"${_WRITER}(log_dir='s3:' + '//x')"}, "leads out"),
    "weights by default": ("inference", {"network_def": {"_target_": "EfficientNetBN"}}, "fetches weights"),
    "weights fetched": ("inference", {"network_def": {"_target_": "DenseNet121", "pretrained": "@epochs"}}, "fetched"),
    "weights in a call": ("inference", {"x": "$monai.networks.nets.DenseNet121(pretrained=True)"}, "fetched"),
    "weights of a hub": ("train", {"x": {"_target_": "medseg.networks.pretrained", "source": "m:10"}}, "leads out"),
    "new programs": ("train", _handler("DataLoader", multiprocessing_context="spawn"), "multiprocessing_context"),
    # copies of the patient's image
    "copy before the network": ("inference", _steps(_SAVER), "outside of the postprocessing"),
    "copy by reference": ("inference", {"post": "@postprocessing", **_steps("@post")}, "saves images"),
    "copy by another name": (
        "inference",
        {"preprocessing": _STEPS, "evaluator": {"_target_": "SupervisedEvaluator", "postprocessing": "@preprocessing"}},
        "outside of the postprocessing",
    ),
    "copy by macro": ("inference", _steps("%postprocessing::transforms::1"), "saves images"),
    "copy by a call": ("inference", _steps({"_target_": "Lambda", "func": "$lambda x: @postprocessing(x)"}), "saves"),
    "copy by a step": (
        "inference",
        {"postprocessing": {"_target_": "Compose", "transforms": [{"_target_": "Lambda", "func": _SAVER}]}},
        "outside of the postprocessing",
    ),
    "copy out of a group": (
        "inference",
        {"all": {"postprocessing": _STEPS}, **_steps({"_target_": "Compose", "transforms": "$list(@all.values())"})},
        "saves images",
    ),
    # programs
    "reader from a component": (
        "inference",
        _handler("LoadImage", reader={"_target_": "monai.utils.first", "iterable": ["subprocess.Popen"]}),
        "reader is a dict",
    ),
    "mode by overlay": ("train", {"ld": {"_target_": "LoadImage"}, "evaluate": {"ld#_mode_": "callable"}}, "callable"),
    "loader called": ("inference", {"ld": {"_target_": "LoadImage"}, "x": "$@ld('/etc/x')"}, "a call of ld"),
    "loader handed on": (
        "inference",
        {"ld": {"_target_": "LoadImage"}, "x": "$list(map(@ld, [@bundle_root + '/docs/x.nii']))"},
        "a reference to ld",
    ),
    "loader as a function": (
        "inference",
        {"ld": [{"_target_": "LoadImaged"}], **_steps({"_target_": "Lambda", "func": "@ld"})},
        "a reference to ld",
    ),
    "loader in a function": (
        "inference",
        _steps({"_target_": "Lambda", "func": {"_target_": "Compose", "transforms": [{"_target_": "LoadImaged"}]}}),
        "as a function",
    ),
    "print to a writer": ("train", {"x": "$print('CANARY', file=@network)"}, "file must be left out"),
    "weights from elsewhere": ("train", {"x": "$torch.load('/etc/x', weights_only=True)"}, "not in the bundle"),
    "checkpoint from elsewhere": ("train", _handler("CheckpointLoader", load_path="/etc/x.pt"), "not in the bundle"),
    # modules in the hand of an expression
    "import in another list": ("inference", _moved("@mods::0", mods=["$import os"]), "outside of the list imports"),
    "import in metadata": ("metadata", {"mods": ["$import os"]}, "outside of the list imports"),
    "import that is renamed": (
        "inference",
        _moved("@required_packages_version::0", optional_packages_version=["$import os"]),
        "outside of the list imports",
    ),
    "import below an empty id": ("inference", _moved("@mods::0", **{"": {"mods": ["$import os"]}}), "empty"),
    "import in an overlay's list": ("train", {"g": [1], "evaluate": {"+g": [{"m": ["$import os"]}]}}, "outside"),
    "table of items": ("inference", _moved("__local_refs['imports::0']"), "own table"),
    "table in other letters": ("inference", _moved("__ｌocal_refs['imports::0']"), "own table"),
    "table in a description": ("inference", {"x": {"_target_": "Compose", "_desc_": "$__local_refs"}}, "own table"),
    "method of a component": ("inference", _moved("@preprocessing"), "sure to be a text"),
    "method of an item": ("inference", _moved("[x for x in @datalist][0]"), "sure to be a text"),
    "method of a parameter": ("inference", {"x": "$(lambda x: x.replace('a', 'b'))"}, "sure to be a text"),
    "method of what an overlay changes": (
        "train",
        {"name": "text", "x": "$@name.replace('a', 'b')", "evaluate": {"name": {"_target_": "Compose"}}},
        "sure to be a text",
    ),
    # ids, references and macros
    "macro over a line": ("inference", {"x": "%\nlarge_files.yml::x"}, "macro"),
    "macro after a return": ("inference", {"x": "%\rlarge_files.yml#x"}, "macro"),
    "macro over a page": ("inference", {"x": "%a\u2028large_files.yml::x"}, "macro"),
    "macro in a list": ("inference", {"x": [{"y": ["%\x0blarge_files.yml::x"]}]}, "macro"),
    "macro of a macro": ("inference", {"x": "%network_def", "y": "%x"}, "copies"),
    "macro of a relative id": ("inference", {"g": {"a": 1, "b": {"c": "@##a"}}, "x": "%g::b"}, "copies"),
    "reference with a tab": ("inference", {"x": "@device\t"}, "invisible"),
    "id with a line": ("inference", {"a\nb": 1}, "invisible"),
    "id with a tab in an argument": ("inference", _steps({"_target_": "Compose", "a\tb": 1}), "invisible"),
    "id with a blank": ("inference", {"device ": 1}, "invisible"),
    "separator in an argument": ("inference", {"x": {"a::b": 1}}, "no plain name"),
    "id laid twice": ("inference", {"::+device": 1}, "no plain name"),
    "id with an empty part": ("inference", {"+device::": 1}, "no plain name"),
    "id with a sign": ("inference", {"datalist::-1::a": 1}, "no plain name"),
}
"""By name: which config is changed, the ids that it gets (``evaluate`` is a config of its own), and what is found."""
