"""Checks against a running Orthanc; ``test_orthanc.py`` runs this file inside a namespace with loopback only."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydicom import dcmread

from medseg.errors import UsageError
from medseg.pacs.network import NetworkRemote
from medseg.pacs.nodes import DicomNode, WebNode
from medseg.pacs.remote import PacsError, Remote
from medseg.pacs.web import WebRemote
from tests.pacs.conftest import WaitUntil, answer_one, listening, make_instance, write_study

_DICOM = DicomNode("ORTHANC", "127.0.0.1", 4242, timeout_seconds=10)
_WEB = WebNode("http://127.0.0.1:8042/dicom-web")
_PLUGIN = "/usr/share/orthanc/plugins/libOrthancDicomWeb.so"


@pytest.fixture(scope="module")
def _orthanc(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    folder = tmp_path_factory.mktemp("orthanc")
    settings = {
        "StorageDirectory": str(folder / "db"),
        "IndexDirectory": str(folder / "db"),
        "RemoteAccessAllowed": True,
        "AuthenticationEnabled": False,
        "DicomPort": 4242,
        "HttpPort": 8042,
        "DicomAlwaysAllowGet": True,
        "DicomAlwaysAllowFind": True,
        "Plugins": [_PLUGIN],
        "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
    }
    (folder / "orthanc.json").write_text(json.dumps(settings))
    process = subprocess.Popen(
        ["Orthanc", str(folder / "orthanc.json")],
        env={**os.environ, "TCP_NODELAY": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        for _ in range(100):
            try:
                WebRemote(_WEB).echo()
                break
            except PacsError:
                assert process.poll() is None, "Orthanc stopped"
                time.sleep(0.2)
        yield
    finally:
        os.kill(process.pid, signal.SIGTERM)
        process.wait(30)


@pytest.fixture(params=["network", "web"])
def remote(request: pytest.FixtureRequest, _orthanc: None) -> Remote:
    return NetworkRemote(_DICOM) if request.param == "network" else WebRemote(_WEB)


def test_a_study_comes_back_equal(remote: Remote, tmp_path: Path) -> None:
    name = type(remote).__name__
    files = write_study(tmp_path / "source", name, 5)
    sent = remote.send(files)
    assert sent.failed == {}
    assert len(sent.sent) == 5
    study = str(make_instance(name, 0).StudyInstanceUID)
    found = remote.find({"StudyInstanceUID": study}, level="STUDY", limit=10)
    assert [(match.study_uid, match.modality, match.instances) for match in found] == [(study, "CT", 5)]
    fetched = list(remote.fetch(study, None, tmp_path / "fetched"))
    assert len(set(fetched)) == 5
    originals = {str(dcmread(path).SOPInstanceUID): dcmread(path) for path in files}
    for path in fetched:
        instance = dcmread(path)
        assert instance.PixelData == originals[str(instance.SOPInstanceUID)].PixelData


def test_a_series_query_finds_the_series(remote: Remote, tmp_path: Path) -> None:
    remote.send(write_study(tmp_path / "source", "series-query", 2))
    wanted = make_instance("series-query", 0)
    found = remote.find({"StudyInstanceUID": str(wanted.StudyInstanceUID)}, level="SERIES", limit=10)
    assert [(match.series_uid, match.instances) for match in found] == [(str(wanted.SeriesInstanceUID), 2)]


@pytest.mark.parametrize("destination", [_DICOM, _WEB], ids=["C-STORE", "STOW-RS"])
@pytest.mark.usefixtures("_orthanc")
def test_the_listener_sends_results_to_orthanc(
    destination: DicomNode | WebNode, tmp_path: Path, wait_until: WaitUntil
) -> None:
    name = f"loop-{type(destination).__name__}"
    with listening(tmp_path / "in", answer_one, nodes={"archive": destination}) as (listener, node):
        NetworkRemote(node).send(write_study(tmp_path / "source", name))
        wait_until(lambda: [s.state for s in listener.queue.studies()] == ["done"])
    study = str(make_instance(name, 0).StudyInstanceUID)
    assert len(WebRemote(_WEB).find({"StudyInstanceUID": study}, level="SERIES", limit=10)) == 1


@pytest.mark.usefixtures("_orthanc")
def test_orthanc_as_sender_reaches_the_listener(tmp_path: Path) -> None:
    with listening(tmp_path / "in") as (_, node):
        files = write_study(tmp_path / "source", "storescu", 6)
        subprocess.run(
            ["storescu", "-aet", "MEDSEG", "-aec", "LISTEN", "127.0.0.1", str(node.port), *map(str, files)],
            check=True,
            env={**os.environ, "TCP_NODELAY": "1"},
        )
        assert len(list((tmp_path / "in" / "studies").rglob("*.dcm"))) == 6


@pytest.mark.usefixtures("_orthanc")
def test_a_wrong_url_is_a_clear_error() -> None:
    with pytest.raises(PacsError, match="HTTP 404"):
        WebRemote(WebNode("http://127.0.0.1:8042/nothing-here")).echo()
    with pytest.raises(UsageError, match="NOT_SET"):
        WebRemote(WebNode(_WEB.url, user="me", password_env="NOT_SET"))
