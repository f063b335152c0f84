"""A medseg bundle in MONAI Deploy's own bundle operator, on Holoscan's scheduler: as a folder and as TorchScript."""

from __future__ import annotations

import os
import shutil
import subprocess
from importlib import metadata
from pathlib import Path

import nibabel
import numpy as np
import pytest
from monai.bundle import ckpt_export

from medseg.inference import Options, run_batch
from tests.sharing.overlay import overlay

FLAGSHIP = Path(__file__).parents[2] / "bundles" / "hippocampus_mri_segmentation"
CASE = "hippocampus_204"
PACKAGES = (
    "monai-deploy-app-sdk==4.0.0",
    f"monai=={metadata.version('monai')}",  # the SDK is a folder of the monai package, which therefore lies beside it
    *("holoscan-cu13==4.6.0", "nvidia-cuda-runtime==13.5.37", "wheel-axle-runtime==0.0.13", "cloudpickle==3.1.2"),
    *("typeguard==4.6.0", "colorama==0.4.6", "tritonclient==2.73.0", "geventhttpclient==2.6.1", "gevent==26.9.0"),
    *("greenlet==3.5.6", "brotli==1.2.1", "zope.event==6.2", "zope.interface==8.7", "python-rapidjson==1.25"),
)


@pytest.fixture(scope="module")
def deploy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Python that has the SDK and its runtime, without CuPy and without a GPU."""
    return overlay(tmp_path_factory.mktemp("deploy") / "python", *PACKAGES)


def as_torchscript(folder: Path) -> Path:
    configs = FLAGSHIP / "configs"
    ckpt_export(
        net_id="network_def",
        filepath=str(folder / "model.ts"),
        ckpt_file=str(FLAGSHIP / "models" / "model.pt"),
        meta_file=str(configs / "metadata.json"),
        config_file=str(configs / "inference.json"),
        bundle_root=str(FLAGSHIP),
    )
    return folder / "model.ts"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # MONAI and torch warn about much when a whole pipeline runs
@pytest.mark.parametrize("form", ["folder", "torchscript"])
def test_the_bundle_operator_gives_the_same_segmentation(
    form: str, deploy: Path, tmp_path: Path, real_data: Path
) -> None:
    image = real_data / "msd_hippocampus" / "imagesTr" / f"{CASE}.nii.gz"
    bundle = as_torchscript(tmp_path) if form == "torchscript" else tmp_path / FLAGSHIP.name
    if form == "folder":
        shutil.copytree(FLAGSHIP, bundle, ignore=shutil.ignore_patterns("runs", "eval"))
    site = next((deploy.parents[1] / "lib").glob("python*/site-packages"))
    application = Path(__file__).with_name("monai_deploy_app.py")
    with_large_stack = ["sh", "-c", 'ulimit -s 32768; exec "$@"', "sh"]  # Holoscan wants 32 MB
    command = [str(deploy), "-W", "ignore", str(application), str(bundle), str(image), str(tmp_path / "found.npy")]
    done = subprocess.run(
        [*with_large_stack, *command],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "LD_LIBRARY_PATH": str(site / "nvidia" / "cu13" / "lib")},
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    run_batch(FLAGSHIP, [image], tmp_path / "own", Options(precision="fp32"))
    own = np.asarray(nibabel.load(tmp_path / "own" / f"{CASE}_seg.nii.gz").dataobj)
    found = np.load(tmp_path / "found.npy")
    assert own.any()
    assert found.shape == own.shape
    assert np.mean(found != own) < 1e-4
