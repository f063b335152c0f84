"""Small bundles for the tests of this room, written to disk as MONAI bundles."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigParser

THRESHOLDS = (10.0, 30.0)
"""The thresholding network labels 1 above the first and 2 above the second value."""

CONVOLUTION = {
    "_target_": "monai.networks.blocks.Convolution",
    "spatial_dims": 3,
    "in_channels": 1,
    "out_channels": 3,
    "kernel_size": 1,
    "conv_only": True,
}

UNET = {
    "_target_": "monai.networks.nets.UNet",
    "spatial_dims": 3,
    "in_channels": 1,
    "out_channels": 3,
    "channels": [4, 8, 8],
    "strides": [2, 2],
}

SCORES_BACK = (
    {"_target_": "Activationsd", "keys": "pred", "softmax": True},
    {
        "_target_": "Invertd",
        "keys": "pred",
        "transform": "@preprocessing",
        "orig_keys": "image",
        "nearest_interp": False,
        "to_tensor": True,
    },
    {"_target_": "AsDiscreted", "keys": "pred", "argmax": True},
)

LABELS_BACK = (
    {"_target_": "AsDiscreted", "keys": "pred", "argmax": True},
    {
        "_target_": "Invertd",
        "keys": "pred",
        "transform": "@preprocessing",
        "orig_keys": "image",
        "nearest_interp": True,
        "to_tensor": True,
    },
)


@dataclass(frozen=True)
class Design:
    """What differs between the tests' bundles."""

    network: Mapping[str, Any] = field(default_factory=lambda: CONVOLUTION)
    transforms: Sequence[Mapping[str, Any]] = ()
    post: Sequence[Mapping[str, Any]] = SCORES_BACK
    roi_size: tuple[int, int, int] = (16, 16, 16)
    overlap: float = 0.5
    mode: str = "gaussian"
    training_range: Mapping[str, Any] | None = None
    input_channels: int = 1
    output_channels: int = 3


ORIENTED = ({"_target_": "Orientationd", "keys": "image", "axcodes": "RAS"},)
RESAMPLED = (
    *ORIENTED,
    {"_target_": "Spacingd", "keys": "image", "pixdim": [1.5, 1.2, 2.0], "mode": "bilinear"},
)
NORMALISED = (*RESAMPLED, {"_target_": "NormalizeIntensityd", "keys": "image", "nonzero": True})
CROPPED = (
    *RESAMPLED,
    {"_target_": "CropForegroundd", "keys": "image", "source_key": "image", "margin": 1, "allow_smaller": True},
    {"_target_": "NormalizeIntensityd", "keys": "image"},
)


def _inference(design: Design) -> dict[str, Any]:
    load = {"_target_": "LoadImaged", "keys": "image", "reader": "NibabelReader", "image_only": True}
    save = {
        "_target_": "SaveImaged",
        "keys": "pred",
        "output_dir": "@output_dir",
        "output_postfix": "seg",
        "separate_folder": False,
        "resample": False,
        "output_dtype": "$numpy.uint8",
        "print_log": False,
    }
    return {
        "imports": ["$import glob", "$import numpy", "$import os", "$import torch"],
        "bundle_root": ".",
        "dataset_dir": "data",
        "output_dir": "out",
        "device": "cpu",
        "datalist": "$sorted(glob.glob(os.path.join(@dataset_dir, '*.nii.gz')))",
        "network_def": dict(design.network),
        "network": "$@network_def.to(@device)",
        "preprocessing": {
            "_target_": "Compose",
            "transforms": [
                load,
                {"_target_": "EnsureChannelFirstd", "keys": "image"},
                *design.transforms,
                {"_target_": "EnsureTyped", "keys": "image", "dtype": "$torch.float32"},
            ],
        },
        "dataset": {
            "_target_": "Dataset",
            "data": "$[{'image': i} for i in @datalist]",
            "transform": "@preprocessing",
        },
        "dataloader": {"_target_": "DataLoader", "dataset": "@dataset", "batch_size": 1, "num_workers": 0},
        "inferer": {
            "_target_": "SlidingWindowInferer",
            "roi_size": list(design.roi_size),
            "sw_batch_size": 2,
            "overlap": design.overlap,
            "mode": design.mode,
        },
        "postprocessing": {"_target_": "Compose", "transforms": [*design.post, save]},
        "handlers": [
            {"_target_": "CheckpointLoader", "load_path": "@checkpoint", "load_dict": {"model": "@network"}},
        ],
        "checkpoint": "$@bundle_root + '/models/model.pt'",
        "evaluator": {
            "_target_": "SupervisedEvaluator",
            "device": "@device",
            "val_data_loader": "@dataloader",
            "network": "@network",
            "inferer": "@inferer",
            "postprocessing": "@postprocessing",
            "val_handlers": "@handlers",
        },
        "run": ["$@evaluator.run()"],
    }


def _metadata(design: Design) -> dict[str, Any]:
    names = ["background", "small", "large"][: max(design.output_channels, 2)]
    metadata: dict[str, Any] = {
        "version": "0.0.1",
        "network_data_format": {
            "inputs": {"image": {"num_channels": design.input_channels}},
            "outputs": {
                "pred": {
                    "num_channels": design.output_channels,
                    "channel_def": {str(i): name for i, name in enumerate(names)},
                }
            },
        },
    }
    if design.training_range:
        metadata["training_range"] = dict(design.training_range)
    return metadata


def _thresholding(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Scores 0, x − 10 and 2x − 40: the largest is the background below 10, label 1 to 30, label 2 above."""
    low, high = THRESHOLDS
    weight = next(key for key in state if key.endswith("weight"))
    bias = next(key for key in state if key.endswith("bias"))
    return {
        weight: torch.tensor([0.0, 1.0, 2.0]).reshape(3, 1, 1, 1, 1),
        bias: torch.tensor([0.0, -low, -low - high]),
    }


def write_bundle(
    folder: Path,
    design: Design | None = None,
    weights: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]] | None = None,
) -> Path:
    """Write a bundle; the thresholding network if nothing else is asked for, else random weights."""
    design = design or Design()
    torch.manual_seed(3)
    network = ConfigParser({"net": dict(design.network)}).get_parsed_content("net")
    state = network.state_dict()
    if weights is not None:
        state = weights(state)
    elif design.network is CONVOLUTION:
        state = _thresholding(state)
    for name in ("configs", "models"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    (folder / "configs" / "metadata.json").write_text(json.dumps(_metadata(design)))
    (folder / "configs" / "inference.json").write_text(json.dumps(_inference(design)))
    torch.save(state, folder / "models" / "model.pt")
    return folder


def run_monai(bundle: Path, images: Path, output: Path) -> None:
    """The bundle's own evaluator, as ``python -m monai.bundle run`` would run it."""
    parser = ConfigParser(json.loads((bundle / "configs" / "inference.json").read_text()))
    parser["bundle_root"] = str(bundle)
    parser["dataset_dir"] = str(images)
    parser["output_dir"] = str(output)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # MONAI warns about readers and parsing: not what is tested here
        parser.get_parsed_content("run")
