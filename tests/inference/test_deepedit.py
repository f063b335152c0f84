"""DeepEdit without clicks: MONAI's labels, and none of the bundle's code."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np

from medseg.bundle import Bundle, audit
from medseg.bundle.findings import blocks
from medseg.inference.config import read_inference_config
from tests.inference.bundles import SCORES_BACK, UNET, Design, write_bundle
from tests.inference.strangers import SHAPE, by_medseg, by_monai, read, write
from tests.inference.volumes import blobs, grid, save

TURNED = {"_target_": "scripts.transforms.OrientationGuidanceMultipleLabelDeepEditd", "label_names": "@label_names"}
LISTED = {"guidance": "guidance", "ref_image": "image"}
CLICKS = [
    {"_target_": "AddGuidanceFromPointsDeepEditd", **LISTED, "label_names": "@label_names"},
    {"_target_": "Resized", "keys": "image", "spatial_size": [16, 16, 16], "mode": "area"},
    {"_target_": "ResizeGuidanceMultipleLabelDeepEditd", **LISTED},
    {
        "_target_": "AddGuidanceSignalDeepEditd",
        "keys": "image",
        "guidance": "guidance",
        "number_intensity_ch": "@number_intensity_ch",
    },
]
SCALED = {"_target_": "ScaleIntensityRanged", "keys": "image", "a_min": 0, "a_max": 50, "b_min": 0, "b_max": 1}


def written(folder: Path, *own: dict[str, str]) -> Path:
    """A DeepEdit bundle of two labels, with steps of its own before MONAI's."""
    design = Design({**UNET, "in_channels": 3, "out_channels": 2}, post=SCORES_BACK, output_channels=2)
    bundle = write_bundle(folder, design)
    config = read(bundle)
    first, *last = config["preprocessing"]["transforms"][:2], config["preprocessing"]["transforms"][2:]
    config["basic"], config["edits"], config["extra"] = [*first, SCALED], [*own, *CLICKS], last[0]
    config["preprocessing"]["transforms"] = "$@basic + @edits + @extra"
    config.update(
        label_names={"spleen": 1, "background": 0}, number_intensity_ch=1, inferer={"_target_": "SimpleInferer"}
    )
    write(bundle, config)
    metadata = json.loads((bundle / "configs/metadata.json").read_text())
    metadata["network_data_format"]["inputs"]["image"].update(num_channels=3, channel_def={"0": "image"})
    (bundle / "configs/metadata.json").write_text(json.dumps(metadata))
    return bundle


def test_labels_are_monais_without_the_bundles_code(tmp_path: Path) -> None:
    image = save(blobs(SHAPE), grid("permuted"), tmp_path / "images" / "a.nii.gz")
    expected = by_monai(written(tmp_path / "plain"), image.parent, tmp_path / "monai")
    bundle = written(tmp_path / "own", TURNED)
    shutil.copytree(tmp_path / "plain/models", bundle / "models", dirs_exist_ok=True)
    (bundle / "scripts").mkdir()
    (bundle / "scripts/transforms.py").write_text("raise SystemExit('the code of the bundle ran')\n")
    assert not blocks(audit(bundle, "infer"))
    assert any("given no clicks" in note for note in read_inference_config(Bundle.open(bundle)).notes)
    assert Bundle.open(bundle).input_channels == 1
    assert len(np.unique(expected)) > 1, "the case would not tell a difference"
    assert np.mean(by_medseg(bundle, image) == expected) >= 0.9999


def test_another_step_of_its_own_is_refused(tmp_path: Path) -> None:
    bundle = written(tmp_path / "own", {**TURNED, "_target_": "scripts.transforms.Sharpend"})
    assert any("scripts.transforms.Sharpend" in finding.what for finding in blocks(audit(bundle, "infer")))
