"""Arguments that name a place, a file or a host: refused where they lead out, whatever the user gives excepted."""

from __future__ import annotations

import inspect
import json
import pydoc
import re
from pathlib import Path
from typing import Any

import pytest

from medseg.bundle import Bundle, allowlist, audit
from medseg.bundle.audit_places import REQUIRED, by_keyword_only, kind_of
from medseg.bundle.config import laid_out
from medseg.bundle.findings import blocks
from medseg.bundle.resolve import resolved
from medseg.errors import BundleError, UntrustedBundle
from tests.bundle.config_attacks import CONFIG_ATTACKS
from tests.bundle.sample import read_config, write_config

TRAINER = "medseg.training.AdversarialSegmentationTrainer"


def _change(bundle: Path, name: str, ids: dict[str, Any]) -> None:
    ids = json.loads(json.dumps(ids).replace("CANARY", "/tmp/canary"))
    if name == "train" and "evaluate" in ids:
        write_config(bundle, "evaluate", ids.pop("evaluate"))
    write_config(bundle, name, read_config(bundle, name) | ids)


@pytest.mark.parametrize("name", CONFIG_ATTACKS)
def test_a_config_that_leads_out_is_refused(name: str, bundle: Path) -> None:
    config, ids, expected = CONFIG_ATTACKS[name]
    _change(bundle, config, ids)
    found = blocks(audit(bundle))
    assert any(expected in finding.what for finding in found), found


@pytest.mark.parametrize(
    ("config", "ids"),
    [
        ("train", {"output_dir": "./eval", "handlers": [{"_target_": "MetricsSaver", "save_dir": "@output_dir"}]}),
        ("train", {"output_dir": "$os.path.join(@bundle_root, 'eval')", "imports": ["$import os"]}),
        ("train", {"name": "$'a.pt' if @epochs else 'b.pt'", "x": {"_target_": "Compose", "final_filename": "@name"}}),
        ("train", {"x": {"_target_": "TensorBoardStatsHandler", "log_dir": "$@output_dir + '/fold' + str(@epochs)"}}),
        ("train", {"imports": ["$import os"], "x": "$os.makedirs(@output_dir, exist_ok=True)"}),
        ("train", {"initialize": ["$import torch.distributed as dist"], "x": "$dist.get_rank()"}),
        ("train", {"mlflow": None, "pretrained": False, "x": {"_target_": "DenseNet121", "pretrained": "$False"}}),
        ("inference", {"x": "text", "y": "$@x.replace('a', 'b')", "z": "$[i.replace('a', 'b') for i in @datalist]"}),
        (
            "inference",
            {"imports": ["$import os", "$import glob"], "x": "$os.path.basename(@datalist[0]).replace('a', 'b')"},
        ),
        ("inference", {"saved": {"_target_": "Compose", "data_root_dir": "@dataset_dir", "output_postfix": ""}}),
    ],
)
def test_what_bundles_usually_say_is_no_alarm(config: str, ids: dict[str, Any], bundle: Path) -> None:
    _change(bundle, config, ids)
    assert audit(bundle) == []


def test_medseg_trains_below_the_output_folder_only_and_monai_in_the_bundle(bundle: Path) -> None:
    _change(bundle, "train", {"handlers": [{"_target_": "CheckpointSaver", "save_dir": "$@bundle_root + '/models'"}]})
    assert [finding.severity for finding in audit(bundle)] == ["warn"]
    assert not blocks(audit(bundle, "train"))  # MONAI's trainer: medseg train does not begin
    train = read_config(bundle, "train")
    train["train"]["trainer"]["_target_"] = TRAINER
    write_config(bundle, "train", train)
    assert [finding.place for finding in blocks(audit(bundle, "train"))] == ["handlers::0::save_dir"]
    _change(bundle, "train", {"handlers": [{"_target_": "TensorBoardStatsHandler"}]})
    assert ["current folder" in finding.what for finding in blocks(audit(bundle, "train"))] == [True]


def test_what_the_user_gives_is_the_users_own_choice(bundle: Path) -> None:
    handler = {"_target_": "medseg.training.MetricsLogger", "folder": "@output_dir", "mlflow": "@mlflow"}
    _change(bundle, "train", {"mlflow": "http://127.0.0.1:1", "output_dir": "/elsewhere", "handlers": [handler]})
    train = read_config(bundle, "train")
    train["train"]["trainer"]["_target_"] = TRAINER
    write_config(bundle, "train", train)
    opened = Bundle.open(bundle)
    given = {"mlflow": "http://here:1", "output_dir": "/mine", "train#trainer#max_epochs": 3}
    config = opened.permitted_training(given)
    assert (config["mlflow"], config["output_dir"], config["train"]["trainer"]["max_epochs"]) == (
        *list(given.values()),
    )
    with pytest.raises(UntrustedBundle, match="http://127"):
        opened.permitted_training({"output_dir": "/mine"})
    with pytest.raises(UntrustedBundle, match="/elsewhere"):
        opened.permitted_training({"mlflow": None})


def test_monai_is_given_what_was_judged(bundle: Path) -> None:
    config = laid_out({"a": {"x": "@#y", "y": [1]}, "b": "%a#y", "c": "$@#b[0] + @a#y[0]"})
    assert resolved(config) == {"a": {"x": "@a::y", "y": [1]}, "b": [1], "c": "$@b[0] + @a::y[0]"}
    with pytest.raises(BundleError, match="write the ids in full"):
        resolved({"a": {"x": "@#y", "y": 1}, "b": "%a"})
    with pytest.raises(BundleError, match="names nothing"):
        resolved({"b": "%a"})
    train = Bundle.open(bundle, "everything").permitted_training({})
    assert train["run"] == train["training"]


def _allowed() -> dict[str, Any]:
    packages, _ = allowlist._known_targets()
    names = {f"{package}.{name}" for package, listed in packages.items() for name in listed}
    names |= set(allowlist._SINGLE_TARGETS)
    names |= {f"medseg.{m}.{n}" for m in (*allowlist._MEDSEG_ROOMS, *allowlist._MEDSEG_MODULES)
              for n in allowlist._medseg_names(m)}  # fmt: skip
    return {name: found for name in sorted(names) if callable(found := pydoc.locate(name))}


LOOKS = re.compile(
    r"path|(^|_)dir|file|folder|ur[il]s?$|uri_|host|port$|addr|save_d|save_p|log_dir|download|pretrain|store|program"
    r"|command|cmd|postfix$|(^|file_|name_)prefix$|_suffix$|_ext$|pickle|hash_|formatter|layout|mlflow|comment|context$"
)
HARMLESS = frozenset(
    {
        "formatter",
        "create_dir",
        "pretrained_state_dict_key",
        "save_details",
        "separate_folder",
        "save_param",
        "directed",
        "dropout_path_rate",
        "dataset_dir",
        "meta_key_postfix",
        "bbox_key_postfix",
        "bg_postfix",
        "fg_postfix",
    }
    | {"indices_postfix", "prefix", "hash_as_key", "hash_transform", "pickle_module", "pickle_protocol", "base_dir"}
)
"""They name keys, not files; or are judged as constants; or come from the datalist, which is the user's."""


def test_every_argument_of_an_allowed_class_that_looks_like_a_place_is_in_the_table() -> None:
    unknown, handed_on, fetching = set(), set(), set()
    for full, found in _allowed().items():
        name = full.rpartition(".")[2]
        try:
            parameters = inspect.signature(found).parameters
        except (TypeError, ValueError):
            continue
        for argument, parameter in parameters.items():
            kind = kind_of(argument, name)
            if kind is None and LOOKS.search(argument) and argument not in HARMLESS:
                unknown.add(f"{full}({argument})")
            if kind in ("write", "address") and not by_keyword_only(name):
                handed_on.add(full)
            if argument == "pretrained" and parameter.default is True and name not in REQUIRED:
                fetching.add(full)
    assert (unknown, handed_on, fetching) == (set(), set(), set())
