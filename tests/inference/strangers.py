"""Bundles as others write them, and what MONAI's own evaluator makes of them."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from monai.bundle import ConfigParser

from medseg.bundle import Bundle, Permission
from medseg.inference import Predictor
from tests.inference.bundles import UNET, Design, write_bundle
from tests.inference.volumes import blobs, grid, load, meta_tensor, save

Config = dict[str, Any]
Change = Callable[[Config], None]

SHAPE = (27, 22, 19)
ONE_CHANNEL = {**UNET, "out_channels": 1}


def activation(**arguments: Any) -> Config:
    return {"_target_": "Activationsd", "keys": "pred", **arguments}


def discrete(**arguments: Any) -> Config:
    return {"_target_": "AsDiscreted", "keys": "pred", **arguments}


def invert(nearest: bool = False, **arguments: Any) -> Config:
    return {
        "_target_": "Invertd",
        "keys": "pred",
        "transform": "@preprocessing",
        "orig_keys": "image",
        "nearest_interp": nearest,
        **arguments,
    }


SOFTMAX, SIGMOID, ARGMAX, THRESHOLD = (
    activation(softmax=True),
    activation(sigmoid=True),
    discrete(argmax=True),
    discrete(threshold=0.5),
)
FILL = {"_target_": "FillHolesd", "keys": "pred", "applied_labels": [1]}
FILTER = {"_target_": "LabelFilterd", "keys": "pred", "applied_labels": [2]}
THRESHOLD_TOP = {"_target_": "Lambdad", "keys": "pred", "func": "$lambda x: (x[[1]] > 0.4) * 1.0"}
RENUMBERED = {"_target_": "Lambdad", "keys": "pred", "func": "$lambda x: (x == 2) * 4.0"}
SUMMED = {"_target_": "Lambdad", "keys": "pred", "func": "$lambda x: x[[0]] + 2 * x[[1]] + 4 * x[[2]]"}
LAMBDA = {"_target_": "Lambdad", "keys": "pred", "func": "$lambda x: x * (x > 1)"}


def read(bundle: Path) -> Config:
    config: Config = json.loads((bundle / "configs" / "inference.json").read_text())
    return config


def write(bundle: Path, config: Config) -> None:
    (bundle / "configs" / "inference.json").write_text(json.dumps(config))


def by_monai(bundle: Path, images: Path, output: Path) -> np.ndarray:
    """The label map that ``python -m monai.bundle run`` writes, in this process."""
    parser = ConfigParser()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        parser.read_config(bundle / "configs" / "inference.json")
        parser.update({"bundle_root": str(bundle), "dataset_dir": str(images), "output_dir": str(output)})
        for entry in ("initialize", "run"):
            if entry in parser:
                parser.get_parsed_content(entry)
    return np.asarray(load(output / "a_seg.nii.gz")[0])


def by_medseg(bundle: Path, image: Path, permission: Permission = "audited") -> np.ndarray:
    stored = nib.load(image)
    volume = meta_tensor(np.asarray(stored.dataobj, dtype=np.float32), stored.affine)
    predictor = Predictor(Bundle.open(bundle, permission), precision="fp32")
    return np.asarray(predictor.predict(volume).label_map)


def agree(tmp_path: Path, design: Design, change: Change | None = None, kind: str = "oblique") -> Path:
    """Write a bundle, let both label one image, and compare."""
    bundle = write_bundle(tmp_path / "stranger", design)
    if change is not None:
        config = read(bundle)
        change(config)
        write(bundle, config)
    image = save(blobs(SHAPE), grid(kind), tmp_path / "images" / "a.nii.gz")
    expected = by_monai(bundle, image.parent, tmp_path / "monai")
    found = by_medseg(bundle, image)
    assert len(np.unique(expected)) > 1, "the case would not tell a difference"
    assert found.shape == expected.shape
    assert np.mean(found == expected) >= 0.9999
    return bundle


def set_path(path: str) -> Change:
    def change(config: Config) -> None:
        config["checkpoint"] = path

    return change
