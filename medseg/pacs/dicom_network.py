"""The DICOM network (PS3.4, PS3.7) through pynetdicom: C-ECHO, C-FIND, C-GET or C-MOVE, C-STORE."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError

from medseg.errors import MissingDependency
from medseg.pacs.receive import LABELMAP_STORAGE, Arrival, identifier_of, no_delay, receiving
from medseg.pacs.remote import LimitExceeded, Meter, PacsError, SendResult, StudyMatch
from medseg.pacs.settings import DicomNode

try:
    from pynetdicom import AE, Association, StoragePresentationContexts, build_context, build_role, evt
    from pynetdicom.pdu import A_ASSOCIATE_RJ
    from pynetdicom.sop_class import (
        PatientRootQueryRetrieveInformationModelFind,
        StudyRootQueryRetrieveInformationModelFind,
        StudyRootQueryRetrieveInformationModelGet,
        StudyRootQueryRetrieveInformationModelMove,
        Verification,
    )
except ImportError as error:
    raise MissingDependency("pynetdicom", "pacs", "the DICOM network") from error

_SUCCESS = 0x0000
_PENDING = (0xFF00, 0xFF01)
_WARNINGS = (0xB000, 0xB006, 0xB007)
_MOST_CONTEXTS = 128  # per association (PS3.8 9.3.2.2)
_ALWAYS = {"StudyInstanceUID": "", "StudyDescription": ""}
_OF_A_STUDY = {**_ALWAYS, "ModalitiesInStudy": "", "NumberOfStudyRelatedInstances": None}
_OF_A_SERIES = {
    **_ALWAYS,
    **dict.fromkeys(("SeriesInstanceUID", "Modality", "SeriesDescription"), ""),
    "NumberOfSeriesRelatedInstances": None,
}
"""What a query asks to be told, by DICOM keyword."""


class _NothingAccepted(PacsError):
    """The peer answered, and wants nothing of what was proposed."""


class NetworkRemote:
    """Client of one DICOM node."""

    def __init__(self, node: DicomNode) -> None:
        self._node = node

    @contextmanager
    def _associate(
        self, contexts: Iterable[Any], handlers: Sequence[Any] = (), roles: Sequence[Any] = ()
    ) -> Iterator[Association]:
        node = self._node
        entity = AE(ae_title=node.calling_ae_title)
        entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = node.timeout_seconds
        entity.connection_timeout = node.timeout_seconds
        rejections: list[int] = []

        def note_rejection(event: Any) -> None:
            if isinstance(event.pdu, A_ASSOCIATE_RJ):
                rejections.append(event.pdu.result)

        association = entity.associate(
            node.host,
            node.port,
            contexts=list(contexts),
            ae_title=node.ae_title,
            ext_neg=list(roles),
            evt_handlers=[(evt.EVT_CONN_OPEN, no_delay), (evt.EVT_PDU_RECV, note_rejection), *handlers],
            tls_args=(node.tls.context(server=False), node.host) if node.tls else None,
        )
        if not association.is_established:
            # pynetdicom takes a rejection that comes while it still sees to its request for a failed connection
            rejected = association.is_rejected or bool(rejections)
            if association.rejected_contexts and not rejected:
                raise _NothingAccepted(f"{node} accepts neither these SOP classes nor their transfer syntaxes")
            why = "rejected the association (unknown AE title?)" if rejected else "did not answer"
            raise PacsError(f"{node} {why}; check AE titles, host and port on both sides")
        try:
            yield association
        except BaseException:
            association.abort()  # whatever the peer is still sending, nobody waits for it
            raise
        else:
            if association.is_established:
                association.release()

    def echo(self) -> float:
        """Seconds that a C-ECHO takes."""
        with self._associate([build_context(Verification)]) as association:
            begin = time.perf_counter()
            self._check(association.send_c_echo(), "C-ECHO")
            return time.perf_counter() - begin

    def find(self, query: Mapping[str, str], *, level: str = "STUDY", limit: int = 100) -> list[StudyMatch]:
        """Studies or series that match; at most ``limit``."""
        identifier = Dataset()
        identifier.QueryRetrieveLevel = level
        for keyword, value in {**(_OF_A_SERIES if level == "SERIES" else _OF_A_STUDY), **query}.items():
            setattr(identifier, keyword, value)
        model = StudyRootQueryRetrieveInformationModelFind
        if level == "PATIENT":
            model = PatientRootQueryRetrieveInformationModelFind
        matches: list[StudyMatch] = []
        with self._associate([build_context(model)]) as association:
            for status, answer in association.send_c_find(identifier, model):
                if status and status.Status in _PENDING and answer is not None:
                    matches.append(StudyMatch.of(answer))
                    if len(matches) == limit:
                        association.send_c_cancel(1, query_model=model)
                        break
                else:
                    self._check(status, "C-FIND")
        return matches

    def fetch(
        self, study_uid: str, series_uid: str | None, folder: Path, *, meter: Meter | None = None
    ) -> Iterator[Path]:
        """Bring a study or series by C-GET, which needs no port of our own, or by C-MOVE if the node wants that."""
        arrival = Arrival(study_uid, folder, meter or self.meter())
        bring = self._move if self._node.retrieve == "move" else self._get
        with arrival.incoming:
            yield from bring(identifier_of(study_uid, series_uid), arrival)

    def meter(self) -> Meter:
        """Counter of one transfer under this node's limits."""
        return Meter(self._node.limits, str(self._node))

    def _get(self, identifier: Dataset, arrival: Arrival) -> Iterator[Path]:
        storage = [*StoragePresentationContexts, build_context(LABELMAP_STORAGE)]
        roles = [build_role(context.abstract_syntax, scp_role=True) for context in storage]
        model = StudyRootQueryRetrieveInformationModelGet
        handlers = [(evt.EVT_C_STORE, arrival.store)]
        with self._associate([build_context(model), *storage], handlers, roles) as association:
            yield from self._arriving(association.send_c_get(identifier, model), arrival, "C-GET")

    def _move(self, identifier: Dataset, arrival: Arrival) -> Iterator[Path]:
        model = StudyRootQueryRetrieveInformationModelMove
        with receiving(self._node, arrival), self._associate([build_context(model)]) as association:
            title = self._node.calling_ae_title
            yield from self._arriving(association.send_c_move(identifier, title, model), arrival, "C-MOVE")

    def _arriving(self, answers: Iterable[Any], arrival: Arrival, operation: str) -> Iterator[Path]:
        for status, _ in answers:
            yield from arrival.paths()
            if not (status and status.Status in _PENDING):
                self._check(status, operation)
        yield from arrival.paths()

    def send(self, files: Sequence[Path]) -> SendResult:
        """Store files by C-STORE; presentation contexts are those of the files themselves."""
        sent: list[Path] = []
        failed: dict[Path, str] = {}
        kinds: dict[tuple[str, str], list[Path]] = {}
        for path in files:
            try:
                meta = dcmread(path, stop_before_pixels=True, specific_tags=["SOPClassUID"])
                kinds.setdefault((str(meta.SOPClassUID), str(meta.file_meta.TransferSyntaxUID)), []).append(path)
            except (OSError, InvalidDicomError, AttributeError) as error:
                failed[path] = f"not a DICOM file that can be sent: {error}"
        groups = list(kinds.items())
        for start in range(0, len(groups), _MOST_CONTEXTS):
            some = groups[start : start + _MOST_CONTEXTS]
            try:
                self._send_group(some, sent, failed)
            except _NothingAccepted as error:
                failed |= {path: str(error) for _, paths in some for path in paths}
        return SendResult(tuple(sent), failed)

    def _send_group(
        self, groups: Sequence[tuple[tuple[str, str], list[Path]]], sent: list[Path], failed: dict[Path, str]
    ) -> None:
        contexts = [build_context(sop_class, syntax) for (sop_class, syntax), _ in groups]
        meter = self.meter()
        with self._associate(contexts) as association:
            for path in (path for _, paths in groups for path in paths):
                if reason := self._store(association, path, meter):
                    failed[path] = reason
                else:
                    sent.append(path)

    def _store(self, association: Association, path: Path, meter: Meter) -> str | None:
        if not association.is_established:
            return f"{self._node} closed the connection"
        try:
            meter.count(path.stat().st_size)
            status = association.send_c_store(path)
        except ValueError:
            return f"{self._node} accepts neither this SOP class nor its transfer syntax"
        except (LimitExceeded, RuntimeError, AttributeError) as error:
            return str(error)
        if status and (status.Status == _SUCCESS or status.Status in _WARNINGS):
            return None
        return f"C-STORE answered 0x{status.Status:04X}" if status else f"{self._node} did not answer C-STORE"

    def _check(self, status: Dataset, operation: str) -> None:
        if not status:
            raise PacsError(f"{self._node} did not answer {operation} within {self._node.timeout_seconds:g} s")
        if status.Status != _SUCCESS:
            failed = status.get("NumberOfFailedSuboperations")
            lost = f"; {failed} instances did not come" if failed else ""
            raise PacsError(f"{self._node} answered {operation} with status 0x{status.Status:04X}{lost}")
