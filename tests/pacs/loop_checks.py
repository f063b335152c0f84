"""C-MOVE and the loop against Orthanc and dcmtk; ``test_orthanc.py`` runs this file inside a namespace."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import requests
from pydicom import dcmread

from medseg.bundle import Bundle
from medseg.pacs.dicom_network import NetworkRemote
from medseg.pacs.dicomweb import WebRemote
from medseg.pacs.remote import LimitExceeded, PacsError, Remote
from medseg.pacs.settings import DicomNode, Limits, Route, WebNode, read_settings
from medseg.pacs.study_loop import answer_studies
from tests.pacs import orthanc_checks
from tests.pacs.conftest import answer_one, make_instance, write_study

orthanc = orthanc_checks._orthanc
empty_orthanc = orthanc_checks._empty_orthanc
_orthanc, bundle, study, inferred = orthanc, orthanc_checks.bundle, orthanc_checks.study, orthanc_checks.inferred

_REST = orthanc_checks._REST
_MOVE_PORT, _DCMTK_PORT = 11113, 11115
_MOVE: dict[str, Any] = {"retrieve": "move", "move_port": _MOVE_PORT}
_SETTINGS = """
[nodes.get]
ae_title = "ORTHANC"
host = "127.0.0.1"
port = 4242
limits = { instances = 1000, instances_per_second = 500 }

[nodes.move]
ae_title = "ORTHANC"
host = "127.0.0.1"
port = 4242
retrieve = "move"
move_port = 11113

[nodes.web]
url = "http://127.0.0.1:8042/dicom-web"

[run]
source = "SOURCE"
folder = "run"
where = { StudyDate = "20200101-" }
min_free_gb = 0.1
retry_seconds = 0.1

[[routes]]
name = "r"
bundle = "BUNDLE"
write = ["seg", "sr"]
send_to = ["SENDTO"]
"""


@pytest.fixture
def known_to_orthanc(empty_orthanc: None) -> None:
    """Orthanc knows where MEDSEG listens during a C-MOVE."""
    peer = {"AET": "MEDSEG", "Host": "127.0.0.1", "Port": _MOVE_PORT}
    requests.put(f"{_REST}/modalities/medseg", json=peer, timeout=10).raise_for_status()


@pytest.fixture
def dcmqrscp(tmp_path: Path) -> Iterator[DicomNode]:
    """dcmtk's archive, which knows MEDSEG too."""
    (tmp_path / "qr").mkdir()
    (tmp_path / "qr.cfg").write_text(
        f"NetworkTCPPort = {_DCMTK_PORT}\nMaxPDUSize = 16384\nMaxAssociations = 16\n"
        f"HostTable BEGIN\nmedseg = (MEDSEG, 127.0.0.1, {_MOVE_PORT})\nHostTable END\n"
        "VendorTable BEGIN\nVendorTable END\n"
        f"AETable BEGIN\nDCMTK {tmp_path / 'qr'} RW (200, 1024mb) ANY\nAETable END\n"
    )
    process = subprocess.Popen(["dcmqrscp", "-c", str(tmp_path / "qr.cfg")], env={**os.environ, "TCP_NODELAY": "1"})
    node = DicomNode("DCMTK", "127.0.0.1", _DCMTK_PORT, timeout_seconds=10)
    try:
        for _ in range(100):
            try:
                NetworkRemote(node).echo()
                break
            except PacsError:
                assert process.poll() is None, "dcmqrscp stopped"
                time.sleep(0.2)
        yield node
    finally:
        process.terminate()
        process.wait(30)


def _moving(node: DicomNode, **more: Any) -> NetworkRemote:
    return NetworkRemote(DicomNode(**{**vars(node), **_MOVE, **more}))


def _fetch_and_compare(sender: Remote, fetcher: Remote, folder: Path, name: str) -> None:
    files = write_study(folder / "source", name, 5)
    assert sender.send(files).failed == {}
    fetched = list(fetcher.fetch(str(make_instance(name, 0).StudyInstanceUID), None, folder / "fetched"))
    originals = {str(dcmread(path).SOPInstanceUID): dcmread(path) for path in files}
    found = {str(dcmread(path).SOPInstanceUID): dcmread(path) for path in fetched}
    assert {uid: instance.PixelData for uid, instance in found.items()} == {
        uid: instance.PixelData for uid, instance in originals.items()
    }


@pytest.mark.usefixtures("known_to_orthanc")
def test_a_study_comes_from_orthanc_by_c_move(tmp_path: Path) -> None:
    remote = _moving(orthanc_checks._DICOM)
    _fetch_and_compare(remote, remote, tmp_path, "moved")


@pytest.mark.parametrize("retrieve", ["get", "move"])
def test_a_study_comes_from_dcmtk(dcmqrscp: DicomNode, retrieve: str, tmp_path: Path) -> None:
    _fetch_and_compare(NetworkRemote(dcmqrscp), _moving(dcmqrscp, retrieve=retrieve), tmp_path, "qr")
    uid = str(make_instance("qr", 0).StudyInstanceUID)
    found = NetworkRemote(dcmqrscp).find({"StudyInstanceUID": uid}, level="STUDY", limit=10)
    assert [match.study_uid for match in found] == [uid]


@pytest.mark.usefixtures("known_to_orthanc")
def test_a_move_to_somebody_orthanc_does_not_know_is_a_clear_error(tmp_path: Path) -> None:
    NetworkRemote(orthanc_checks._DICOM).send(write_study(tmp_path / "source", "stranger", 1))
    remote = _moving(orthanc_checks._DICOM, calling_ae_title="STRANGER")
    with pytest.raises(PacsError, match="C-MOVE"):
        list(remote.fetch(str(make_instance("stranger", 0).StudyInstanceUID), None, tmp_path / "fetched"))


@pytest.mark.usefixtures("known_to_orthanc")
@pytest.mark.parametrize("kind", ["get", "move", "web"])
def test_a_study_over_the_limit_is_not_fetched_further(kind: str, tmp_path: Path) -> None:
    files = write_study(tmp_path / "source", f"limit-{kind}", 6)
    NetworkRemote(orthanc_checks._DICOM).send(files)
    limits = Limits(instances=4)
    remote: Remote
    if kind == "web":
        remote = WebRemote(WebNode(orthanc_checks._WEB.url, limits=limits))
    else:
        remote = _moving(orthanc_checks._DICOM, retrieve=kind, limits=limits)
    with pytest.raises(LimitExceeded, match=r"limits\.instances"):
        list(remote.fetch(str(dcmread(files[0]).StudyInstanceUID), None, tmp_path / "fetched"))
    assert len(list((tmp_path / "fetched").rglob("*.dcm"))) == 4
    sent = remote.send(files)
    assert len(sent.sent) == 4
    assert all("limits.instances" in reason for reason in sent.failed.values())


@pytest.mark.usefixtures("empty_orthanc")
@pytest.mark.parametrize("kind", ["network", "web"])
def test_the_rate_of_sending_is_kept(kind: str, tmp_path: Path) -> None:
    limits = Limits(instances_per_second=20)
    files = write_study(tmp_path / "source", f"rate-{kind}", 21)
    web = WebRemote(WebNode(orthanc_checks._WEB.url, limits=limits))
    remote: Remote = web if kind == "web" else _moving(orthanc_checks._DICOM, limits=limits)
    begin = time.monotonic()
    assert remote.send(files).failed == {}
    assert time.monotonic() - begin >= 1.0


def _write_settings(folder: Path, source: str, send_to: str, bundle: Path = Path("bundle")) -> Path:
    path = folder / "pacs.toml"
    text = _SETTINGS.replace("SOURCE", source).replace("SENDTO", send_to).replace("BUNDLE", str(bundle))
    path.write_text(text)
    return path


def run_slowly(settings: str) -> None:
    """One run that takes time to compute and notes what it computed; started as a process of its own, to be killed."""

    def compute(route: Route, study: Path, output: Path) -> Sequence[Path]:
        time.sleep(0.2)
        done = answer_one(route, study, output)
        with (Path(settings).parent / "computed.txt").open("a") as notes:
            notes.write(f"{study.name}\n")
        return done

    answer_studies(read_settings(settings), compute=compute)


def _start(settings: Path) -> subprocess.Popen[bytes]:
    code = f"from tests.pacs.loop_checks import run_slowly; run_slowly({str(settings)!r})"
    return subprocess.Popen([sys.executable, "-c", code])


@pytest.mark.usefixtures("known_to_orthanc")
@pytest.mark.parametrize(("source", "send_to"), [("get", "get"), ("move", "web"), ("web", "web")])
def test_killed_again_and_again_the_loop_answers_every_study_once(source: str, send_to: str, tmp_path: Path) -> None:
    names, slices = [f"{source}-{n}" for n in range(6)], 4
    for name in names:
        NetworkRemote(orthanc_checks._DICOM).send(write_study(tmp_path / "source", name, slices))
    settings = _write_settings(tmp_path, source, send_to)
    notes, run = tmp_path / "computed.txt", tmp_path / "run"
    kills = 0
    for reached in (
        lambda: len(list((run / "studies").rglob("*.dcm"))) >= 2,
        lambda: notes.is_file() and len(notes.read_text().split()) >= 2,
        lambda: _results() >= 4,
    ):
        process = _start(settings)
        while process.poll() is None and not reached():
            time.sleep(0.01)
        kills += process.poll() is None
        process.kill()
        process.wait(10)
    assert kills == 3, "each run was cut off in the middle"
    assert _start(settings).wait(120) == 0
    assert _results() == len(names)
    assert orthanc_checks._instances_in_orthanc() == len(names) * (slices + 1)
    computed = notes.read_text().split()
    assert len(set(computed)) == len(names)
    assert len(computed) <= len(names) + kills
    last = answer_studies(read_settings(settings), compute=lambda *_: pytest.fail("all are answered"))
    assert (last.found, last.known, last.done, last.failed) == (len(names), len(names), {}, {})


def _results() -> int:
    """Series in Orthanc beyond the one that each study was sent with."""
    counts = [requests.get(f"{_REST}/{level}", timeout=10).json() for level in ("series", "studies")]
    return len(counts[0]) - len(counts[1])


@pytest.mark.usefixtures("empty_orthanc")
def test_the_command_answers_a_real_study(study: Path, bundle: Path, inferred: nib.Nifti1Image, tmp_path: Path) -> None:
    files = sorted(study.rglob("*.dcm"))
    assert len(NetworkRemote(orthanc_checks._DICOM).send(files).sent) == len(files)
    settings = _write_settings(tmp_path, "web", "get", bundle)
    settings.write_text(settings.read_text().replace('where = { StudyDate = "20200101-" }', 'modalities = ["MR"]'))
    command = [sys.executable, "-c", "from medseg.cli.main import main; main()", "pacs", "run", str(settings), "--json"]
    answers = [
        json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, timeout=300).stdout) for _ in range(2)
    ]
    assert [(one["found"], one["known"], len(one["done"]), one["failed"]) for one in answers] == [
        (1, 0, 1, {}),
        (1, 1, 0, {}),
    ]
    uid = str(dcmread(files[0], specific_tags=["StudyInstanceUID"]).StudyInstanceUID)
    found, count = orthanc_checks._fetched(WebRemote(orthanc_checks._WEB), uid, tmp_path / "back")
    assert count == {"MR": len(files), "SEG": 1, "SR": 1}
    labels = orthanc_checks._on_grid(found["SEG"], inferred, dict(Bundle.open(bundle).labels))
    assert labels.any()
    assert np.array_equal(labels, np.asarray(inferred.dataobj))
