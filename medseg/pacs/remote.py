"""One face for the two ways to a PACS, the DICOM network and DICOMweb: what is asked, may fail, and may pass."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from pydicom.dataset import Dataset

from medseg.errors import CaseFailed
from medseg.pacs.settings import Limits


class PacsError(CaseFailed):
    """A peer could not be reached, refused, or answered with a failure."""


class LimitExceeded(PacsError):
    """A study is larger than the settings of its peer allow; trying again finds the same."""


class Meter:
    """Counts what passes in one transfer, and holds it to the limits.

    ``limits``: What is allowed. ``peer``: Name of the peer, for messages. ``clock`` and ``sleep``: Time in seconds and
    how to wait; for tests.
    """

    def __init__(
        self,
        limits: Limits,
        peer: str,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._limits, self._peer = limits, peer
        self._clock, self._sleep = clock, sleep
        self._begin: float | None = None
        self.instances = 0
        self.bytes = 0

    def count(self, size: int) -> None:
        """Take note of an instance of ``size`` bytes before it passes; waits where the rate demands it.

        Raises ``LimitExceeded`` if the study becomes larger than is allowed.
        """
        self.check(self.instances + 1, self.bytes + size)
        if self._begin is None:
            self._begin = self._clock()
        rate = self._limits.instances_per_second
        if rate is not None:
            self._sleep(max(0.0, self._begin + self.instances / rate - self._clock()))
        self.instances += 1
        self.bytes += size

    def check(self, instances: int, size: int = 0) -> None:
        """Refuse a study of so many instances and bytes. Raises ``LimitExceeded`` if it is larger than is allowed."""
        most, megabytes = self._limits.instances, self._limits.megabytes
        what = f"{megabytes:g} MiB that limits.megabytes" if megabytes is not None and size > megabytes * 2**20 else ""
        if most is not None and instances > most:
            what = f"{most} instances that limits.instances"
        if what:
            why = f"a study has more than the {what} of {self._peer} allows"
            raise LimitExceeded(f"{why}; raise it, or choose fewer series")


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
