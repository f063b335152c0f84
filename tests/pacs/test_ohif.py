"""OHIF as a viewer that we did not write. The build is fetched from npm first; the rest runs with loopback only."""

from __future__ import annotations

import base64
import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import pytest

from tests.report.browser import available

_VERSION = "3.13.2"
_SHA512 = "WZdxmpmG7rqFgW9ZJLcbgr3XCtLi1KDNPoMaeY5PPe6j4G4fjEjjkycZM6C6Zk2F87BKxFfpq+jd5xXZB9E8EA=="
_UNUSED = ("package/dist/ort/", "package/dist/dicom-microscopy-viewer/")


@pytest.fixture(scope="module")
def ohif_build() -> Path:
    """Folder of the viewer's ready build, kept between runs in the user's temporary folder."""
    kept = Path(tempfile.gettempdir()) / f"medseg-ohif-{os.geteuid()}"
    kept.mkdir(mode=0o700, exist_ok=True)
    if kept.stat().st_uid != os.geteuid():
        pytest.skip(f"{kept} belongs to somebody else")
    archive = kept / f"ohif-app-{_VERSION}.tgz"
    if not archive.is_file():
        _fetch(archive)
    digest = base64.b64encode(hashlib.sha512(archive.read_bytes()).digest()).decode()
    assert digest == _SHA512, f"{archive} is not the published build; delete it"
    build = kept / _VERSION
    if not build.is_dir():
        _unpack(archive, build)
    return build


def _fetch(archive: Path) -> None:
    with tempfile.TemporaryDirectory(dir=archive.parent) as folder:
        command = ["npm", "pack", "--silent", f"@ohif/app@{_VERSION}"]
        try:
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300, check=False)
        except subprocess.TimeoutExpired:
            pytest.skip("npm did not fetch @ohif/app within 300 s")
        if done.returncode != 0:
            pytest.skip(f"npm could not fetch @ohif/app {_VERSION}: {done.stderr[-500:]}")
        (Path(folder) / archive.name).rename(archive)


def _unpack(archive: Path, build: Path) -> None:
    with tempfile.TemporaryDirectory(dir=archive.parent) as folder, tarfile.open(archive) as packed:
        wanted = [m for m in packed if m.name.startswith("package/dist/") and not m.name.startswith(_UNUSED)]
        packed.extractall(folder, wanted, filter="data")
        (Path(folder) / "package" / "dist").rename(build)


@pytest.mark.slow
@pytest.mark.skipif(
    shutil.which("Orthanc") is None, reason="Orthanc is not installed (Debian: orthanc, orthanc-dicomweb)"
)
@pytest.mark.skipif(shutil.which("npm") is None, reason="npm is not installed; it fetches the viewer")
@pytest.mark.skipif(not available(), reason="chromium and chromedriver are not installed")
@pytest.mark.skipif(shutil.which("unshare") is None or os.geteuid() != 0, reason="needs a network namespace of its own")
def test_ohif_shows_the_segmentation_in_its_place(real_data: Path, ohif_build: Path) -> None:
    checks = Path(__file__).with_name("ohif_checks.py")
    command = f"ip link set lo up && exec {sys.executable} -m pytest -q -p no:cacheprovider {checks}"
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST")}
    done = subprocess.run(
        ["unshare", "--net", "sh", "-c", command],
        capture_output=True,
        text=True,
        timeout=1800,
        env={**environment, "MEDSEG_TEST_DATA": str(real_data), "MEDSEG_TEST_OHIF": str(ohif_build)},
        check=False,
    )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    assert "passed" in done.stdout
