"""A small complete bundle in the form of the shipped ones, for tests that change or attack it."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from monai.networks.nets import BasicUNet

from medseg.results.verdict import Thresholds
from medseg.trust.calibration import Calibration, StructureCalibration
from medseg.trust.gradient_boosting import BoostedTrees, Tree
from medseg.trust.trust_files import CALIBRATION_NAME

__all__ = ["INFERENCE", "SAMPLE_NAME", "read_config", "write_bundle", "write_config"]

SAMPLE_NAME = "sphere_mri_segmentation"

_NETWORK = {
    "_target_": "BasicUNet",
    "spatial_dims": 3,
    "in_channels": 1,
    "out_channels": 2,
    "features": [4, 4, 8, 8, 8, 4],
    "norm": "batch",
}
_ITEM = {"image": "images/case-0001.nii.gz", "label": "labels/case-0001.nii.gz", "fold": 0}
_TENSOR = {"type": "image", "format": "magnitude", "modality": "MR", "num_channels": 1, "dtype": "float32"}

METADATA: dict[str, Any] = {
    "schema": "https://github.com/Project-MONAI/MONAI-extra-test-data/releases/download/0.8.1/meta_schema_20240725.json",
    "version": "0.1.0",
    "changelog": {"0.1.0": "First version"},
    "monai_version": "1.6.1",
    "pytorch_version": "2.13.0",
    "numpy_version": "2.4.6",
    "required_packages_version": {"nibabel": "5.2.0"},
    "supported_apps": {},
    "name": "Sphere in MR",
    "task": "Segmentation of a sphere",
    "description": "A network that marks a bright sphere.",
    "authors": "The medseg developers",
    "copyright": "Copyright (c) The medseg developers",
    "data_source": "synthetic",
    "intended_use": "Tests only",
    "references": [],
    "eval_metrics": {"mean_dice": 0.9},
    "network_data_format": {
        "inputs": {
            "image": {
                **_TENSOR,
                "spatial_shape": ["16*n", "16*n", "16*n"],
                "value_range": [0, 1],
                "is_patch_data": True,
                "channel_def": {"0": "image"},
            }
        },
        "outputs": {
            "pred": {
                "type": "probabilities",
                "format": "segmentation",
                "num_channels": 2,
                "spatial_shape": ["16*n", "16*n", "16*n"],
                "dtype": "float32",
                "value_range": [0, 1],
                "is_patch_data": True,
                "channel_def": {"0": "background", "1": "sphere"},
                "segment_codes": {
                    "1": {
                        "category": ["123037004", "SCT", "Anatomical Structure"],
                        "type": ["28231008", "SCT", "Gallbladder"],
                    }
                },
            }
        },
    },
}

INFERENCE: dict[str, Any] = {
    "imports": ["$import glob"],
    "bundle_root": ".",
    "output_dir": "$@bundle_root + '/eval'",
    "dataset_dir": "data",
    "datalist": "$sorted(glob.glob(@dataset_dir + '/*.nii.gz'))",
    "device": "$torch.device('cuda:0' if torch.cuda.is_available() else 'cpu')",
    "network_def": _NETWORK,
    "network": "$@network_def.to(@device)",
    "preprocessing": {
        "_target_": "Compose",
        "transforms": [
            {"_target_": "LoadImaged", "keys": "image", "reader": "NibabelReader"},
            {"_target_": "EnsureChannelFirstd", "keys": "image"},
            {"_target_": "Orientationd", "keys": "image", "axcodes": "RAS"},
            {"_target_": "ScaleIntensityd", "keys": "image"},
        ],
    },
    "dataset": {"_target_": "Dataset", "data": "$[{'image': i} for i in @datalist]", "transform": "@preprocessing"},
    "dataloader": {"_target_": "DataLoader", "dataset": "@dataset", "batch_size": 1, "num_workers": 0},
    "inferer": {"_target_": "SlidingWindowInferer", "roi_size": [16, 16, 16], "overlap": 0.25},
    "postprocessing": {
        "_target_": "Compose",
        "transforms": [
            {"_target_": "AsDiscreted", "keys": "pred", "argmax": True},
            {"_target_": "SaveImaged", "keys": "pred", "output_dir": "@output_dir", "writer": "NibabelWriter"},
        ],
    },
    "handlers": [
        {
            "_target_": "CheckpointLoader",
            "load_path": "$@bundle_root + '/models/model.pt'",
            "load_dict": {"model": "@network"},
        },
        {"_target_": "StatsHandler", "iteration_log": False},
    ],
    "evaluator": {
        "_target_": "SupervisedEvaluator",
        "device": "@device",
        "val_data_loader": "@dataloader",
        "network": "@network",
        "inferer": "@inferer",
        "postprocessing": "@postprocessing",
        "val_handlers": "@handlers",
    },
    "initialize": ["$monai.utils.set_determinism(seed=0)"],
    "run": ["$@evaluator.run()"],
}

TRAIN: dict[str, Any] = {
    "imports": ["$import torch", "$import medseg.training"],
    "epochs": 2,
    "learning_rate": 0.001,
    "bundle_root": ".",
    "dataset_dir": "data",
    "datalist": "$monai.data.load_decathlon_datalist(@bundle_root + '/configs/datalist.json', base_dir=@dataset_dir)",
    "device": "$torch.device('cuda:0' if torch.cuda.is_available() else 'cpu')",
    "network_def": _NETWORK,
    "network": "$@network_def.to(@device)",
    "optimizer": {"_target_": "torch.optim.AdamW", "params": "$@network.parameters()", "lr": "@learning_rate"},
    "loss": {"_target_": "DiceCELoss", "to_onehot_y": True, "softmax": True},
    "train": {
        "dataset": {
            "_target_": "Dataset",
            "data": "$[item for item in @datalist if item['fold'] != 0]",
            "transform": {"_target_": "LoadImaged", "keys": ["image", "label"], "reader": "NibabelReader"},
        },
        "dataloader": {"_target_": "DataLoader", "dataset": "@train#dataset", "batch_size": 2},
        "inferer": {"_target_": "SimpleInferer"},
        "trainer": {
            "_target_": "SupervisedTrainer",
            "max_epochs": "@epochs",
            "device": "@device",
            "train_data_loader": "@train#dataloader",
            "network": "@network",
            "loss_function": "@loss",
            "optimizer": "@optimizer",
            "inferer": "@train#inferer",
        },
    },
    "initialize": ["$monai.utils.set_determinism(seed=0)"],
    "training": ["$@train#trainer.run()"],
    "run": "%training",
}

_LOGGING = """[loggers]
keys=root

[handlers]
keys=consoleHandler

[formatters]
keys=fullFormatter

[logger_root]
level=INFO
handlers=consoleHandler

[handler_consoleHandler]
class=StreamHandler
level=INFO
formatter=fullFormatter
args=(sys.stdout,)

[formatter_fullFormatter]
format=%(asctime)s - %(name)s - %(levelname)s - %(message)s
"""


def write_bundle(parent: Path, name: str = SAMPLE_NAME) -> Path:
    """Write the sample bundle with random weights below ``parent`` and return its folder."""
    folder = parent / name
    for part in ("configs", "docs", "models", "trust"):
        (folder / part).mkdir(parents=True)
    write_config(folder, "metadata", METADATA)
    write_config(folder, "inference", INFERENCE)
    write_config(folder, "train", TRAIN)
    write_config(folder, "datalist", {"training": [_ITEM]})
    (folder / "configs" / "logging.conf").write_text(_LOGGING)
    (folder / "LICENSE").write_text("Apache License, Version 2.0\n")
    (folder / "docs" / "README.md").write_text("# Sphere in MR\n")
    (folder / "docs" / "data_license.txt").write_text("The data are synthetic and free to use.\n")
    torch.manual_seed(0)
    arguments = {key: value for key, value in _NETWORK.items() if key != "_target_"}
    torch.save(BasicUNet(**arguments).state_dict(), folder / "models" / "model.pt")
    weights = hashlib.sha256((folder / "models" / "model.pt").read_bytes()).hexdigest()
    run = {
        "weights_sha256": weights,
        "model": "final",
        "epoch": 2,
        "epochs": 2,
        "iterations": 2,
        "fold": -1,
        "cases": 1,
    }
    (folder / "docs" / "training_run.json").write_text(json.dumps({**run, "cases": 1, "held_out_cases": 0}))
    unsure = Tree((0, -1, -1), (0.5, 0.0, 0.0), (1, -1, -1), (2, -1, -1), (0.0, 0.0, -7.0))  # more entropy, less Dice
    regressor = BoostedTrees(0.9, 0.1, (unsure,))
    structure = StructureCalibration(1, "sphere", ("entropy",), regressor, (0.9,), (0.1,), 1.0, 20, 20)
    Calibration(("entropy",), 0.9, weights, Thresholds(0.8, 0.5), (structure,)).write(folder / CALIBRATION_NAME)
    return folder


def read_config(folder: Path, name: str) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((folder / "configs" / f"{name}.json").read_text())
    return config


def write_config(folder: Path, name: str, config: dict[str, Any]) -> None:
    (folder / "configs" / f"{name}.json").write_text(json.dumps(config, indent=2))
