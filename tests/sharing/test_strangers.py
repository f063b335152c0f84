"""From one site to another: packed and signed here, used there with MONAI alone and with medseg, with one result."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser

from medseg.bundle import Bundle
from medseg.inference import run_batch
from medseg.sharing import create_bundle, create_key_pair, pack, unpack
from tests.sharing.test_new import write_dataset

_MONAI = """
import sys
sys.modules["medseg"] = None  # a site without medseg
from monai.bundle import run
run(config_file="configs/inference.json", dataset_dir=sys.argv[1], images="case*_0.nii.gz", output_dir=sys.argv[2])
"""


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # MONAI and torch warn about much when a whole pipeline runs
def test_a_stranger_gets_the_same_result_with_and_without_medseg(tmp_path: Path) -> None:
    data = write_dataset(tmp_path / "data", cases=5)
    folder, _ = create_bundle("ball_mri_segmentation", data, tmp_path / "sender")
    torch.manual_seed(0)
    network = ConfigParser(Bundle.open(folder).config("inference")).get_parsed_content("network_def")
    torch.save(network.state_dict(), folder / "models" / "model.pt")
    private, public = create_key_pair(tmp_path / "site.key")
    archive = pack(folder, tmp_path / "ball.zip", key=private).path

    with zipfile.ZipFile(archive) as source:
        source.extractall(tmp_path / "stranger")
    there = tmp_path / "stranger" / folder.name
    command = [sys.executable, "-W", "ignore", "-c", _MONAI, str(tmp_path / "data"), str(tmp_path / "monai")]
    subprocess.run(command, cwd=there, check=True, timeout=300)

    received = unpack(archive, tmp_path / "receiver", key=public).path
    cases = sorted((tmp_path / "data").glob("case*_0.nii.gz"))
    for bundle, output in ((folder, "sent"), (received, "received")):
        run_batch(bundle, cases, tmp_path / output)
    for case in cases:
        name = f"{case.name.removesuffix('.nii.gz')}_seg.nii.gz"
        sent, found = (np.asarray(nibabel.load(tmp_path / part / name).dataobj) for part in ("sent", "received"))
        alone = np.asarray(nibabel.load(tmp_path / "monai" / name).dataobj).reshape(sent.shape)
        assert np.array_equal(sent, found)
        assert np.mean(sent != alone) < 1e-4
