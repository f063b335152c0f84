"""From one site to another: packed and signed here, used there with MONAI alone and with medseg, with one result."""

from __future__ import annotations

import os
import subprocess
import venv
import zipfile
from pathlib import Path

import nibabel
import numpy as np
import pytest

from medseg.bundle import Bundle
from medseg.bundle.findings import blocks
from medseg.evaluation import evaluate_folders
from medseg.inference import run_batch
from medseg.sharing import create_key_pair, pack, unpack, verify

ROOT = Path(__file__).parents[2]
FLAGSHIP = ROOT / "bundles" / "hippocampus_mri_segmentation"
CASES = ("hippocampus_001", "hippocampus_006", "hippocampus_204")


@pytest.fixture(scope="module")
def python_with_monai_alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Python whose environment holds ``monai[fire,ignite,nibabel]`` and nothing of medseg."""
    folder = tmp_path_factory.mktemp("monai_alone")
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    wanted = ["-c", str(ROOT / "constraints.txt"), "monai[fire,ignite,nibabel]", "torch"]
    install = [str(python), "-m", "pip", "install", "--quiet", "--no-compile", *wanted]
    done = subprocess.run(install, capture_output=True, text=True, check=False, timeout=900)
    if done.returncode:
        pytest.skip(f"an environment with MONAI alone cannot be installed here: {done.stderr.strip()[-200:]}")
    return python


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = os.environ.get("MEDSEG_TEST_DATA")
    if not root:
        pytest.skip("MEDSEG_TEST_DATA does not say where the test data is")
    folder = tmp_path_factory.mktemp("cases")
    for kind in ("imagesTr", "labelsTr"):
        (folder / kind).mkdir()
        for case in CASES:
            (folder / kind / f"{case}.nii.gz").symlink_to(Path(root) / "msd_hippocampus" / kind / f"{case}.nii.gz")
    return folder


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # MONAI and torch warn about much when a whole pipeline runs
def test_a_stranger_gets_the_same_result_with_and_without_medseg(
    python_with_monai_alone: Path, data: Path, tmp_path: Path
) -> None:
    private, public = create_key_pair(tmp_path / "site.key")
    archive = pack(FLAGSHIP, tmp_path / "flagship.zip", key=private).path
    images, references = data / "imagesTr", data / "labelsTr"

    with zipfile.ZipFile(archive) as source:
        source.extractall(tmp_path / "alone")
    options = ["--config_file", "configs/inference.json", "--bundle_root", ".", "--dataset_dir", str(data)]
    subprocess.run(
        [str(python_with_monai_alone), "-W", "ignore", "-m", "monai.bundle", "run", *options, "--output_dir", "found"],
        cwd=tmp_path / "alone" / FLAGSHIP.name,
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
        check=True,
        timeout=600,
    )

    received = unpack(archive, tmp_path / "receiver", key=public).path
    assert not blocks(verify(received))
    assert Bundle.open(received).version == Bundle.open(FLAGSHIP).version
    run_batch(FLAGSHIP, [images], tmp_path / "sent")
    run_batch(received, [images], tmp_path / "received")
    alone = tmp_path / "alone" / FLAGSHIP.name / "found"
    for case in CASES:
        sent, found, without = (
            np.asarray(nibabel.load(folder / f"{case}_seg.nii.gz").dataobj).squeeze()
            for folder in (tmp_path / "sent", tmp_path / "received", alone)
        )
        assert sent.any()
        assert np.array_equal(sent, found)
        assert np.mean(sent != without) < 1e-4

    figures = [
        evaluate_folders(folder, references, tmp_path / "figures" / folder.name).results
        for folder in (tmp_path / "sent", tmp_path / "received")
    ]
    assert figures[0] == figures[1]
    assert min(row.values["dice"] or 0.0 for row in figures[0]) > 0.7
