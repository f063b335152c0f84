"""The listening node as a command of its own: behind its wall it receives, labels and sends on, and no more."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from pydicom import dcmread

pytest.importorskip("pynetdicom", reason="the extra pacs is not installed")

from medseg.confinement import landlock_version
from medseg.pacs.dicom_network import NetworkRemote
from medseg.pacs.settings import DicomNode
from medseg.phantom import make_patient, write_dicom
from tests.pacs.conftest import WaitUntil, listening

BUNDLE = Path(__file__).parents[2] / "bundles" / "phantom_ct_segmentation"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


@pytest.mark.slow
@pytest.mark.skipif(landlock_version() < 4, reason="needs Landlock 4 (Linux 6.7)")
def test_a_study_is_answered_from_behind_the_wall(tmp_path: Path, wait_until: WaitUntil) -> None:
    node = DicomNode("LISTEN", "127.0.0.1", _free_port(), timeout_seconds=10)
    patient = make_patient(0, shape=(48, 48, 32))
    write_dicom(patient, tmp_path / "source", thin=False)
    with listening(tmp_path / "archive") as (_, archive):
        settings = tmp_path / "pacs.toml"
        settings.write_text(
            f"""
[nodes.archive]
ae_title = "LISTEN"
host = "127.0.0.1"
port = {archive.port}
[listener]
folder = "inbox"
ae_title = "LISTEN"
port = {node.port}
allowed_callers = ["MEDSEG"]
quiet_seconds = 1.0
min_free_gb = 0.0
[[routes]]
name = "phantom"
bundle = {json.dumps(str(BUNDLE))}
write = ["seg"]
send_to = ["archive"]
"""
        )
        with subprocess.Popen([sys.executable, "-m", "medseg", "pacs", "listen", str(settings)], text=True) as process:
            wait_until(lambda: _answers(node))
            assert Path(f"/proc/{process.pid}/status").read_text().split("NoNewPrivs:")[1].split()[0] == "1"
            sent = NetworkRemote(node).send([path for path in (tmp_path / "source").rglob("*") if path.is_file()]).sent
            assert sent
            wait_until(lambda: any((tmp_path / "archive" / "studies").rglob("*.dcm")))
            os.kill(process.pid, signal.SIGTERM)
            process.wait(60)
    results = list((tmp_path / "archive" / "studies").rglob("*.dcm"))
    assert {str(dcmread(path, specific_tags=["Modality"]).Modality) for path in results} == {"SEG"}


def _answers(node: DicomNode) -> bool:
    try:
        NetworkRemote(node).echo()
    except Exception:  # noqa: BLE001  not there yet
        return False
    return True
