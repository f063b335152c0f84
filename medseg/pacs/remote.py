"""One face for the two ways to a PACS: the DICOM network and DICOMweb."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from pydicom.dataset import Dataset

from medseg.pacs.limits import Meter
from medseg.pacs.nodes import DicomNode, WebNode


@dataclass(frozen=True)
class StudyMatch:
    """A study or series that a query found; identity is left on the server."""

    study_uid: str
    series_uid: str | None
    modality: str
    description: str
    instances: int | None

    @classmethod
    def of(cls, answer: Dataset) -> StudyMatch:
        """Read one answer of C-FIND or QIDO-RS."""
        count = answer.get("NumberOfSeriesRelatedInstances") or answer.get("NumberOfStudyRelatedInstances")
        modality = answer.get("Modality") or answer.get("ModalitiesInStudy") or ""
        return cls(
            study_uid=str(answer.get("StudyInstanceUID", "")),
            series_uid=str(answer.SeriesInstanceUID) if answer.get("SeriesInstanceUID") else None,
            modality=modality if isinstance(modality, str) else "/".join(modality),
            description=str(answer.get("SeriesDescription") or answer.get("StudyDescription") or ""),
            instances=int(count) if count else None,
        )


@dataclass(frozen=True)
class SendResult:
    """What became of the files given to :meth:`Remote.send`."""

    sent: tuple[Path, ...]
    failed: Mapping[Path, str]


class Remote(Protocol):
    """What medseg asks of a PACS. Every method raises :class:`PacsError` when the peer cannot be used."""

    def echo(self) -> float:
        """Seconds that a C-ECHO, or the smallest query of a DICOMweb server, takes."""

    def find(self, query: Mapping[str, str], *, level: str, limit: int) -> list[StudyMatch]:
        """Studies or series (``level`` "STUDY" or "SERIES") that match DICOM keywords → values."""

    def meter(self) -> Meter:
        """Counter of one transfer under the limits of this peer."""

    def fetch(
        self, study_uid: str, series_uid: str | None, folder: Path, *, meter: Meter | None = None
    ) -> Iterator[Path]:
        """Bring the instances of a study or series into ``folder``; yields each file when it is whole.

        A ``meter`` that several calls share holds all of them together to the limits.
        """

    def send(self, files: Sequence[Path]) -> SendResult:
        """Store files at the peer; one bad file does not stop the others."""


def open_remote(node: DicomNode | WebNode) -> Remote:
    """Client for a node; imports pynetdicom or dicomweb-client, whichever it needs."""
    if isinstance(node, WebNode):
        from medseg.pacs.web import WebRemote

        return WebRemote(node)
    from medseg.pacs.network import NetworkRemote

    return NetworkRemote(node)
