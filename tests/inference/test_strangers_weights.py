"""Weights are those that a bundle's own loaders name, on every path."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from medseg.bundle import Bundle, Permission
from medseg.errors import BundleError
from tests.inference.bundles import ORIENTED, UNET, Design, write_bundle
from tests.inference.strangers import (
    SHAPE,
    Change,
    Config,
    by_medseg,
    by_monai,
    read,
    set_path,
    write,
)
from tests.inference.volumes import blobs, grid, save


def _two_files(bundle: Path) -> None:
    state = torch.load(bundle / "models" / "model.pt", weights_only=True)
    torch.save({key: -value for key, value in state.items()}, bundle / "models" / "model_lowres.pt")
    torch.save({"net": {k: v * 2 for k, v in state.items()}, "optimizer": {"state": {}}}, bundle / "models" / "best.pt")


def _loader(**arguments: Any) -> Config:
    named = {"load_path": "$@bundle_root + '/models/model_lowres.pt'", "load_dict": {"model": "@network"}}
    return {"_target_": "CheckpointLoader", **named, **arguments}


def _handlers(*loaders: Config) -> Change:
    def change(config: Config) -> None:
        config["handlers"] = list(loaders)

    return change


def _in_initialize(config: Config) -> None:
    config["handlers"] = []
    config["loader"] = _loader()
    config["initialize"] = ["$@loader(@evaluator)"]


def _inline(config: Config) -> None:
    config["evaluator"]["val_handlers"] = [_loader()]


LOADERS: dict[str, Change] = {
    "another file": set_path("$@bundle_root + '/models/model_lowres.pt'"),
    "a path joined": set_path("$os.path.join(@bundle_root, 'models', 'model_lowres.pt')"),
    "a key": _handlers(_loader(load_path="$@bundle_root + '/models/best.pt'", load_dict={"net": "@network"})),
    "two loaders": _handlers(_loader(), _loader(load_path="$@bundle_root + '/models/model.pt'")),
    "a loader that is off": _handlers(_loader(load_path="@checkpoint"), _loader(_disabled_="$1 == 1")),
    "called in initialize": _in_initialize,
    "in the evaluator itself": _inline,
    "not strict": _handlers(_loader(strict=False)),
    "a place to load to": _handlers(_loader(map_location="@device")),
    "the definition": _handlers(_loader(load_dict={"model": "@network_def"})),
}


@pytest.mark.parametrize("name", LOADERS)
@pytest.mark.parametrize("permission", ["audited", "network-only"])
def test_weights_are_those_that_a_loader_names(name: str, permission: Permission, tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "stranger", Design(network=UNET, transforms=ORIENTED))
    _two_files(bundle)
    config = read(bundle)
    LOADERS[name](config)
    write(bundle, config)
    image = save(blobs(SHAPE), grid("plain"), tmp_path / "images" / "a.nii.gz")
    expected = by_monai(bundle, image.parent, tmp_path / "monai")
    assert np.mean(by_medseg(bundle, image, permission) == expected) >= 0.9999


def test_other_weights_are_another_bundle(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "stranger", Design(network=UNET))
    _two_files(bundle)
    config = read(bundle)
    config["checkpoint"] = "$@bundle_root + '/models/model_lowres.pt'"
    write(bundle, config)
    before = Bundle.open(bundle).sha256
    state = torch.load(bundle / "models" / "model_lowres.pt", weights_only=True)
    torch.save({key: value + 1 for key, value in state.items()}, bundle / "models" / "model_lowres.pt")
    assert Bundle.open(bundle).sha256 != before


WRONG_LOADERS: dict[str, tuple[Change, str]] = {
    "a missing file": (set_path("$@bundle_root + '/models/absent.pt'"), r"models/absent\.pt"),
    "outside": (set_path("$@bundle_root + '/../model.pt'"), "not in the bundle"),
    "another kind of file": (set_path("$@bundle_root + '/configs/metadata.json'"), "expected a file"),
}


@pytest.mark.parametrize("name", WRONG_LOADERS)
def test_weights_that_cannot_be_meant_are_refused(name: str, tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "stranger", Design(network=UNET))
    config = read(bundle)
    change, words = WRONG_LOADERS[name]
    change(config)
    write(bundle, config)
    with pytest.raises(BundleError, match=words):
        Bundle.open(bundle).load_network()


@pytest.mark.parametrize("permission", ["audited", "network-only"])
@pytest.mark.parametrize("wrap", ["model", "state_dict", "checkpoint"])
def test_training_checkpoints_have_one_answer_everywhere(wrap: str, permission: Permission, tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "stranger", Design(network=UNET))
    bare = Bundle.open(bundle).load_network().state_dict()
    content = {wrap: bare} if wrap != "checkpoint" else {"model": bare, "optimizer": {"state": {}}, "epoch": 3}
    torch.save(content, bundle / "models" / "model.pt")
    found = Bundle.open(bundle, permission).load_network().state_dict()
    assert all(torch.equal(found[key], bare[key]) for key in bare)
