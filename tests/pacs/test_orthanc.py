"""Real Orthanc and dcmtk as peers. Orthanc binds every interface, so it runs where there is only loopback."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
@pytest.mark.parametrize("checks", ["orthanc_checks.py", "loop_checks.py"])
@pytest.mark.skipif(
    shutil.which("Orthanc") is None, reason="Orthanc is not installed (Debian: orthanc, orthanc-dicomweb)"
)
@pytest.mark.skipif(shutil.which("storescu") is None, reason="dcmtk is not installed")
@pytest.mark.skipif(shutil.which("unshare") is None or os.geteuid() != 0, reason="needs a network namespace of its own")
def test_orthanc_and_dcmtk_understand_us(checks: str) -> None:
    file = Path(__file__).with_name(checks)
    command = f"ip link set lo up && exec {sys.executable} -m pytest -q -p no:cacheprovider {file}"
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST")}
    done = subprocess.run(
        ["unshare", "--net", "sh", "-c", command],
        capture_output=True,
        text=True,
        timeout=1800,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
