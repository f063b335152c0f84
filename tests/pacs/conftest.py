"""Small valid instances and a listening node on loopback."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom import Dataset, dcmread
from pydicom.dataset import FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

pytest.importorskip("pynetdicom", reason="the extra pacs is not installed")

from medseg.pacs.listener import Listener
from medseg.pacs.settings import DicomNode, ListenerSettings, PacsSettings, Route, WebNode
from medseg.pacs.study_worker import Compute


def make_instance(study: str, number: int, *, series: str = "s") -> Dataset:
    """One 8×8 CT slice; UIDs follow from the names."""
    instance = Dataset()
    instance.file_meta = FileMetaDataset()
    instance.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    instance.SOPClassUID = instance.file_meta.MediaStorageSOPClassUID = CTImageStorage
    uid = generate_uid(entropy_srcs=[study, series, str(number)])
    instance.SOPInstanceUID = instance.file_meta.MediaStorageSOPInstanceUID = uid
    instance.StudyInstanceUID = generate_uid(entropy_srcs=[study])
    instance.SeriesInstanceUID = generate_uid(entropy_srcs=[study, series])
    instance.PatientName, instance.PatientID, instance.Modality = "Phantom^One", "P1", "CT"
    instance.StudyDate, instance.StudyTime, instance.AccessionNumber, instance.StudyID = "20200101", "120000", "", "1"
    instance.InstanceNumber = number
    instance.Rows = instance.Columns = 8
    instance.SamplesPerPixel, instance.PhotometricInterpretation = 1, "MONOCHROME2"
    instance.BitsAllocated = instance.BitsStored = 16
    instance.HighBit, instance.PixelRepresentation = 15, 0
    instance.PixelData = np.full((8, 8), number, np.uint16).tobytes()
    return instance


def write_study(folder: Path, study: str, count: int = 3) -> list[Path]:
    """``count`` slices of one study as files."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for number in range(count):
        path = folder / f"{study}-{number}.dcm"
        make_instance(study, number).save_as(path, enforce_file_format=True)
        paths.append(path)
    return paths


@contextmanager
def listening(
    folder: Path,
    compute: Compute | None = None,
    *,
    nodes: dict[str, DicomNode | WebNode] | None = None,
    **options: Any,
) -> Iterator[tuple[Listener, DicomNode]]:
    """A listener on a free port that answers each study with one result per route."""
    quick: dict[str, Any] = {"port": 0, "quiet_seconds": 0.3, "retry_seconds": 0.1, "min_free_gb": 0.0, **options}
    listener = ListenerSettings(folder=folder, ae_title="LISTEN", allowed_callers=("MEDSEG",), **quick)
    routes = (Route("r", Path("bundle"), ("seg",), tuple(nodes)),) if nodes else ()
    settings = PacsSettings(nodes or {}, listener, routes)
    with Listener(settings, compute or answer_nothing) as running:
        yield running, DicomNode("LISTEN", "127.0.0.1", running.port, timeout_seconds=10)


def answer_nothing(route: Route, study: Path, output: Path) -> Sequence[Path]:
    return []


def answer_one(route: Route, study: Path, output: Path) -> Sequence[Path]:
    """A result derived from the first slice: same study, another series."""
    first = dcmread(min(study.glob("*.dcm")))
    first.SeriesInstanceUID = generate_uid(entropy_srcs=["result", str(first.StudyInstanceUID)])
    first.SOPInstanceUID = generate_uid(entropy_srcs=["result", str(first.StudyInstanceUID), "1"])
    first.file_meta.MediaStorageSOPInstanceUID = first.SOPInstanceUID
    output.mkdir(parents=True, exist_ok=True)
    path = output / "result.dcm"
    first.save_as(path, enforce_file_format=True)
    return [path]


@pytest.fixture
def study_files(tmp_path: Path) -> list[Path]:
    return write_study(tmp_path / "source", "a", 4)


WaitUntil = Callable[..., None]


@pytest.fixture
def wait_until() -> WaitUntil:
    import time

    def wait(condition: Callable[[], bool], seconds: float = 60.0) -> None:
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, "waited in vain"
            time.sleep(0.05)

    return wait
