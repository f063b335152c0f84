"""Every bundle takes turns by epoch, anneals over the steps it makes, and starts from other weights, run by MONAI."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser, run
from torch import Tensor, nn

from medseg.planning import create_bundle
from tests.bundles.images import BUNDLES
from tests.planning.test_create import write_dataset
from tests.training.conftest import balls

PLANNED = "planned"
SIZE = 16
IMAGES = {"volume_autoencoder_pretraining", "volume_gan_synthesis"}
"""Bundles that learn from images alone."""
WITHOUT_OPPONENT = {"volume_restoration_pretraining"}
WITH_OVERLAY = {"volume_autoencoder_pretraining": ["adversarial_train.json"]}
"""Where the opponent is laid over ``train.json``."""
OWN: dict[str, dict[str, Any]] = {
    "volume_gan_synthesis": {
        "validation_patches": 10,
        "network_def#size": [SIZE] * 3,
        "discriminator_def#size": [SIZE] * 3,
    },
}

pytestmark = [
    pytest.mark.filterwarnings("ignore:NvImgCodecPydicomReader"),  # MONAI tries all its readers in LoadImaged
    pytest.mark.filterwarnings("ignore:parsing config_file"),  # they are this project's own bundles
]


@pytest.fixture(scope="module")
def planned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp(PLANNED)
    return create_bundle("ball_mri_segmentation", write_dataset(folder / "data"), folder)[0]


def write_cases(folder: Path, config: dict[str, Any], *, labelled: bool) -> Path:
    """Two volumes of the bundle's spacing, with as many channels and structures as its network has; the datalist."""
    grid = np.diag([*config["spacing_mm"], 1.0])
    channels, classes = (config["network_def"].get(f"{side}_channels", 1) for side in ("in", "out"))
    items = []
    for number, case in enumerate(balls(2)):
        images = [f"image{number}_{channel}.nii.gz" for channel in range(channels)]
        for name in images:
            nib.save(nib.Nifti1Image(100.0 * case["image"][0].numpy(), grid), folder / name)
        item = {"image": images if channels > 1 else images[0], "fold": number}
        if labelled:
            ball = case["label"][0].numpy().astype(np.uint8)
            label = ball * (1 + np.arange(SIZE)[:, None, None] % max(1, classes - 1)).astype(np.uint8)
            nib.save(nib.Nifti1Image(label, grid), folder / f"label{number}.nii.gz")
            item["label"] = f"label{number}.nii.gz"
        items.append(item)
    (folder / "datalist.json").write_text(json.dumps({"training": items}))
    return folder / "datalist.json"


def weights_in(checkpoint: Path, *names: str) -> dict[str, Tensor]:
    part = torch.load(checkpoint, weights_only=True)
    for name in names:
        part = part[name]
    assert isinstance(part, dict)
    return part


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return all(torch.equal(value, other[name]) for name, value in one.items())


def parallel(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    """Whether the kernels of two networks point into the same directions; rescaling changes their lengths."""
    kernels = [name for name, value in one.items() if value.ndim == 5]
    return bool(kernels) and all(
        float(nn.functional.cosine_similarity(one[name].flatten(), other[name].flatten(), 0)) > 0.9999
        for name in kernels
    )


@pytest.mark.parametrize("name", [*sorted({path.name for path in BUNDLES.iterdir()} - WITHOUT_OPPONENT), PLANNED])
def test_turns_by_epoch_with_an_annealed_rate_from_other_weights(name: str, tmp_path: Path, planned: Path) -> None:
    """``python -m monai.bundle run training --init FILE --alternate epoch``: D, G, D, G, an iteration each."""
    bundle = planned if name == PLANNED else BUNDLES / name
    files = [str(bundle / "configs" / file) for file in ["train.json", *WITH_OVERLAY.get(name, [])]]
    config = ConfigParser.load_config_files(files)
    datalist = write_cases(tmp_path, config, labelled=name not in IMAGES)
    torch.manual_seed(11)
    sized = {"size": [SIZE] * 3} if "size" in config["network_def"] else {}
    network = ConfigParser({"network_def": {**config["network_def"], **sized}}).get_parsed_content("network_def")
    start = tmp_path / "start.pt"
    torch.save(network.state_dict(), start)
    opponent = {"warm_up": 0, "ramp": 0} if "warm_up" in config else {}
    windows = {"validate#inferer#roi_size": [SIZE] * 3} if name not in IMAGES else {}
    run(
        "training",
        config_file=files,
        logging_file=False,
        bundle_root=str(bundle),
        dataset_dir=str(tmp_path),
        datalist=str(datalist),
        output_dir=str(tmp_path / "out"),
        device="cpu",
        precision="fp32",
        patch_size=[SIZE] * 3,
        batch_size=2,
        epochs=4,
        iterations=1,
        val_interval=4,
        init=str(start),
        rescale=config["network_def"]["_target_"] != "DynUNet",  # whose convolutions know of no normalisation
        alternate="epoch",
        **opponent,
        **windows,
        **{"train#handlers#2#keep": 9},
        **OWN.get(name, {}),
    )
    saved = [tmp_path / "out" / "checkpoints" / f"checkpoint-{count:06d}.pt" for count in (1, 2, 3)]
    begun, taught, again = (weights_in(path, "generator", "network") for path in saved)
    assert parallel(begun, network.state_dict())  # it started from the file, and rested in the first epoch
    assert not equal(begun, taught)
    assert equal(taught, again)  # statistics rest, too
    first, second, third = (weights_in(path, "adversary", "step", "network") for path in saved)
    assert equal(first, second)
    assert not equal(second, third)
    with (tmp_path / "out" / "metrics.csv").open() as handle:
        rates = [float(row["learning_rate"]) for row in csv.DictReader(handle)]
    assert rates[0] == pytest.approx(0.05 * config["learning_rate"])  # the beginning of the cycle
    assert rates[-1] == pytest.approx(0.001 * config["learning_rate"])  # its end, after the second and last step
