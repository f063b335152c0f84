"""Checks against a running Orthanc; ``test_orthanc.py`` runs this file inside a namespace with loopback only."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import highdicom as hd
import nibabel as nib
import numpy as np
import pytest
import requests
from numpy.typing import NDArray
from pydicom import Dataset, dcmread
from pydicom.uid import UID

from medseg.bundle import Bundle
from medseg.errors import UsageError
from medseg.geometry import lps_to_ras
from medseg.pacs.dicom_network import NetworkRemote
from medseg.pacs.dicomweb import WebRemote
from medseg.pacs.remote import PacsError, Remote
from medseg.pacs.settings import DicomNode, Route, WebNode
from medseg.pacs.study_worker import run_route
from tests.pacs.conftest import WaitUntil, answer_one, listening, make_instance, write_study

_DICOM = DicomNode("ORTHANC", "127.0.0.1", 4242, timeout_seconds=10)
_WEB = WebNode("http://127.0.0.1:8042/dicom-web")
_REST = "http://127.0.0.1:8042"
_BUNDLE = Path(__file__).parents[2] / "bundles" / "hippocampus_mri_segmentation"
_KINDS = ("seg", "sr", "rtstruct")
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


# --- the clinical loop on a real study -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped bundle without what training runs have left in it."""
    folder = tmp_path_factory.mktemp("bundle") / _BUNDLE.name
    shutil.copytree(_BUNDLE, folder, ignore=shutil.ignore_patterns("runs"))
    return folder


@pytest.fixture(scope="module")
def study(real_data: Path) -> Path:
    """A brain study of three series; the bundle accepts one, the other two lie outside its training range."""
    return real_data / "brain_mr_dicom" / "Study1"


@pytest.fixture(scope="module")
def inferred(bundle: Path, study: Path, tmp_path_factory: pytest.TempPathFactory) -> nib.Nifti1Image:
    """The label map that ``medseg infer`` writes for the accepted series."""
    output = tmp_path_factory.mktemp("infer")
    code = "from medseg.cli.main import main; main()"
    series = str(study / "13_HCropVolume")
    subprocess.run([sys.executable, "-c", code, "infer", str(bundle), series, "-o", str(output)], check=True)
    (path,) = output.glob("*_seg.nii.gz")
    return nib.Nifti1Image.from_filename(path)


@pytest.fixture
def _empty_orthanc(_orthanc: None) -> None:
    for identifier in requests.get(f"{_REST}/studies", timeout=10).json():
        requests.delete(f"{_REST}/studies/{identifier}", timeout=10).raise_for_status()


def _orthanc_sends_everything_to(node: DicomNode) -> None:
    peer = {"AET": node.ae_title, "Host": node.host, "Port": node.port}
    requests.put(f"{_REST}/modalities/listener", json=peer, timeout=10).raise_for_status()
    studies = requests.get(f"{_REST}/studies", timeout=10).json()
    order = {"Resources": studies, "LocalAet": "MEDSEG", "Synchronous": True}
    requests.post(f"{_REST}/modalities/listener/store", json=order, timeout=60).raise_for_status()


def _instances_in_orthanc() -> int:
    return len(requests.get(f"{_REST}/instances", timeout=10).json())


def _on_grid(segmentation: Path, reference: nib.Nifti1Image, labels: dict[int, str]) -> NDArray[np.uint8]:
    """The segments as highdicom reads them, put on the grid of a NIfTI image by the two affines alone."""
    read = hd.seg.segread(segmentation)
    volume = read.get_volume(combine_segments=True, skip_overlap_checks=False)
    affine = lps_to_ras(volume.affine)
    indices = np.indices(volume.array.shape).reshape(3, -1)
    to_grid = np.linalg.inv(reference.affine) @ affine
    exact = to_grid[:3, :3] @ indices + to_grid[:3, 3:]
    places = np.rint(exact).astype(int)
    assert np.abs(exact - places).max() < 0.02
    label_of = {name: label for label, name in labels.items()}
    table = np.zeros(read.number_of_segments + 1, np.uint8)
    for number in read.segment_numbers:
        table[number] = label_of[read.get_segment_description(number).segment_label]
    grid = np.zeros(reference.shape, np.uint8)
    grid[tuple(places)] = table[volume.array.reshape(-1)]
    return grid


def _referenced(dataset: Dataset) -> set[str]:
    return {str(e.value) for e in dataset.iterall() if e.keyword == "ReferencedSOPInstanceUID"}


def _check_references(results: dict[str, Dataset], source: Sequence[Dataset]) -> None:
    images = {str(image.SOPInstanceUID) for image in source}
    segmentation = str(results["SEG"].SOPInstanceUID)
    assert _referenced(results["SEG"]) <= images
    assert segmentation in _referenced(results["SR"])
    assert _referenced(results["SR"]) <= images | {segmentation}
    assert _referenced(results["RTSTRUCT"]) == images | {str(source[0].StudyInstanceUID)}
    structures = results["RTSTRUCT"].ReferencedFrameOfReferenceSequence[0]
    (series,) = structures.RTReferencedStudySequence[0].RTReferencedSeriesSequence
    assert series.SeriesInstanceUID == source[0].SeriesInstanceUID
    frame = source[0].FrameOfReferenceUID
    assert structures.FrameOfReferenceUID == results["SEG"].FrameOfReferenceUID == frame
    for result in results.values():
        for keyword in ("PatientID", "StudyInstanceUID", "AccessionNumber", "StudyDate"):
            assert result.get(keyword) == source[0].get(keyword)


def _fetched(remote: Remote, study_uid: str, folder: Path) -> tuple[dict[str, Path], Counter[str]]:
    """The results (files by modality), and how many instances of each modality came."""
    files = list(remote.fetch(study_uid, None, folder))
    modalities = [str(dcmread(path, specific_tags=["Modality"]).Modality) for path in files]
    return dict(zip(modalities, files, strict=True)), Counter(modalities)


@pytest.mark.parametrize("destination", [_DICOM, _WEB], ids=["C-STORE", "STOW-RS"])
@pytest.mark.usefixtures("_empty_orthanc")
def test_a_real_study_goes_to_the_listener_and_comes_back_labelled(
    destination: DicomNode | WebNode,
    study: Path,
    bundle: Path,
    inferred: nib.Nifti1Image,
    tmp_path: Path,
    wait_until: WaitUntil,
) -> None:
    files = sorted(study.rglob("*.dcm"))
    source = [dcmread(path, stop_before_pixels=True) for path in sorted((study / "13_HCropVolume").glob("*.dcm"))]
    runs: list[str] = []

    def compute(route: Route, received: Path, output: Path) -> Sequence[Path]:
        runs.append(received.name)
        real = Route(route.name, bundle, _KINDS, route.send_to)
        return run_route(real, received, output)

    assert len(NetworkRemote(_DICOM).send(files).sent) == len(files)
    options: dict[str, Any] = {"nodes": {"archive": destination}, "quiet_seconds": 2}
    with listening(tmp_path / "in", compute, **options) as (listener, node):
        _orthanc_sends_everything_to(node)
        wait_until(lambda: [s.state for s in listener.queue.studies()] == ["done"], 120)
        assert _instances_in_orthanc() == len(files) + len(_KINDS)
        for name, remote in (("dimse", NetworkRemote(_DICOM)), ("web", WebRemote(_WEB))):
            found, count = _fetched(remote, str(source[0].StudyInstanceUID), tmp_path / name)
            assert count == {"MR": len(files), "SEG": 1, "SR": 1, "RTSTRUCT": 1}
            labels = _on_grid(found["SEG"], inferred, dict(Bundle.open(bundle).labels))
            assert labels.any()
            assert np.array_equal(labels, np.asarray(inferred.dataobj))
            _check_references({kind: dcmread(found[kind]) for kind in ("SEG", "SR", "RTSTRUCT")}, source)
        assert len(NetworkRemote(node).send(files).sent) == len(files)  # the same study once more
        time.sleep(4)
        assert [(s.state, s.revision) for s in listener.queue.studies()] == [("done", len(files))]
    assert len(runs) == 1
    assert _instances_in_orthanc() == len(files) + len(_KINDS)
    sent = sqlite3.connect(tmp_path / "in" / "queue.sqlite").execute("SELECT count(*) FROM sent").fetchone()
    assert sent == (len(_KINDS),)


@pytest.mark.usefixtures("_empty_orthanc")
def test_a_real_study_in_which_nothing_fits_is_done_with_the_reason(
    study: Path, bundle: Path, tmp_path: Path, wait_until: WaitUntil
) -> None:
    def compute(route: Route, received: Path, output: Path) -> Sequence[Path]:
        return run_route(Route(route.name, bundle, _KINDS, route.send_to), received, output)

    with listening(tmp_path / "in", compute, nodes={"archive": _DICOM}, quiet_seconds=2) as (listener, node):
        NetworkRemote(node).send(sorted((study / "12-T1post-05670").glob("*.dcm")))
        wait_until(lambda: [s.state for s in listener.queue.studies()] == ["done"], 120)
        assert "outside-training-range" in listener.queue.studies()[0].message
    assert _instances_in_orthanc() == 0


@pytest.mark.usefixtures("_orthanc")
def test_what_orthanc_does_not_take_does_not_stop_the_others(remote: Remote, tmp_path: Path) -> None:
    good = write_study(tmp_path, f"mixed-{type(remote).__name__}", 2)
    bad = tmp_path / "bad.dcm"
    bad.write_bytes(b"not dicom" * 100)
    lost = make_instance("mixed", 8)
    del lost.StudyInstanceUID
    lost.save_as(tmp_path / "lost.dcm", enforce_file_format=True)
    odd = make_instance("mixed", 9)
    odd.file_meta.TransferSyntaxUID = UID("1.2.826.0.1.3680043.8.498.1")
    odd.save_as(tmp_path / "odd.dcm", implicit_vr=False, little_endian=True, enforce_file_format=True)
    refused = {bad, tmp_path / "lost.dcm"}
    if isinstance(remote, NetworkRemote):  # by STOW-RS Orthanc keeps what it cannot decode
        refused.add(tmp_path / "odd.dcm")
    result = remote.send([bad, tmp_path / "lost.dcm", tmp_path / "odd.dcm", *good])
    assert set(result.failed) == refused
    assert set(good) <= set(result.sent)
    assert set(remote.send([tmp_path / "lost.dcm"]).failed) == {tmp_path / "lost.dcm"}
