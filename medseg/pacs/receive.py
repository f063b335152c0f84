"""Receiving by the DICOM network (PS3.4, C.4): by C-GET over our own association, or by C-MOVE to a port of ours.

A received file is named by the SHA-256 of its SOPInstanceUID and lies in a folder named by that of its
StudyInstanceUID: UIDs from the network are never part of a path, and the same instance sent twice is one file.
"""

from __future__ import annotations

import hashlib
import socket
import warnings
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

from pydicom import Dataset, dcmread
from pydicom.errors import InvalidDicomError

from medseg.errors import MissingDependency
from medseg.files import write_bytes
from medseg.pacs.remote import Meter, PacsError
from medseg.pacs.settings import DicomNode


def hash_uid(uid: str) -> str:
    """First 24 hex digits of the SHA-256 of a UID."""
    return hashlib.sha256(uid.encode()).hexdigest()[:24]


def store_instance(folder: Path, study_uid: str, sop_instance_uid: str, data: bytes) -> tuple[Path, bool]:
    """Write a DICOM file's bytes, whole or not at all.

    Returns the path, and whether it is new; a file that says the same is left alone, a different one under the same
    SOPInstanceUID is replaced and counts as new.
    """
    path = folder / hash_uid(study_uid) / f"{hash_uid(sop_instance_uid)}.dcm"
    if path.is_file() and _same(path.read_bytes(), data):
        return path, False
    write_bytes(path, data)
    return path, True


def _same(known: bytes, data: bytes) -> bool:
    """Whether two files hold the same instance; archives write lengths of sequences and groups in their own ways."""
    if known == data:
        return True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # odd values are no matter here
            one, other = _elements(known), _elements(data)
            return one.file_meta.TransferSyntaxUID == other.file_meta.TransferSyntaxUID and one == other
    except (InvalidDicomError, EOFError, ValueError, TypeError, LookupError, AttributeError, NotImplementedError):
        return False  # what cannot be read cannot be known to be the same


def _elements(data: bytes) -> Dataset:
    dataset: Dataset = dcmread(BytesIO(data))
    for tag in [tag for tag in dataset.keys() if tag.element == 0 or tag == 0xFFFCFFFC]:  # noqa: SIM118  a Dataset yields values
        del dataset[tag]  # lengths of groups, padding at the end
    return dataset


try:
    from pynetdicom import AE, ALL_TRANSFER_SYNTAXES, AllStoragePresentationContexts, evt
except ImportError as error:
    raise MissingDependency("pynetdicom", "pacs", "the DICOM network") from error

LABELMAP_STORAGE = "1.2.840.10008.5.1.4.1.1.66.7"
"""Label Map Segmentation Storage, which pydicom and pynetdicom do not name yet."""

_SUCCESS = 0x0000
_REFUSED = 0xA700
_WRONG_STUDY = 0xA900
_MOST_ASSOCIATIONS = 4


def no_delay(event: Any) -> None:
    """Turn Nagle's algorithm off: with delayed acknowledgements it holds DIMSE to some 13 instances a second."""
    event.assoc.dul.socket.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def identifier_of(study_uid: str, series_uid: str | None) -> Dataset:
    """What is asked for: a study, or one of its series."""
    identifier = Dataset()
    identifier.QueryRetrieveLevel = "SERIES" if series_uid else "STUDY"
    identifier.StudyInstanceUID = study_uid
    if series_uid:
        identifier.SeriesInstanceUID = series_uid
    return identifier


class Arrival:
    """Takes the instances of one study as they come in, in pynetdicom's threads, and holds them to the limits."""

    def __init__(self, study_uid: str, folder: Path, meter: Meter) -> None:
        self._study_uid, self._folder, self._meter = study_uid, folder, meter
        self._arrived: deque[Path] = deque()
        self.failure: PacsError | None = None

    def store(self, event: Any) -> int:
        """Handler of C-STORE; after a failure everything is refused, so that the peer comes to its end."""
        if self.failure is not None:
            return _REFUSED
        if str(event.dataset.get("StudyInstanceUID", "")) != self._study_uid:
            return _WRONG_STUDY
        data = event.encoded_dataset()
        try:
            self._meter.count(len(data))
            path, _ = store_instance(self._folder, self._study_uid, str(event.request.AffectedSOPInstanceUID), data)
        except PacsError as error:
            self.failure = error
            return _REFUSED
        except OSError as error:
            self.failure = PacsError(f"an instance could not be written ({error.strerror}); free space and start again")
            return _REFUSED
        self._arrived.append(path)
        return _SUCCESS

    def paths(self) -> Iterator[Path]:
        """What has come since the last call. Raises ``PacsError`` if something could not be taken."""
        while self._arrived:
            yield self._arrived.popleft()
        if self.failure is not None:
            raise self.failure


def storage_entity(ae_title: str, callers: Sequence[str], max_associations: int) -> AE:
    """Application entity that takes every kind of instance in every transfer syntax from ``callers``."""
    entity = AE(ae_title=ae_title)
    entity.require_called_aet = True
    entity.require_calling_aet = list(callers)
    entity.maximum_associations = max_associations
    entity.maximum_pdu_size = 0
    for context in AllStoragePresentationContexts:
        entity.add_supported_context(context.abstract_syntax, ALL_TRANSFER_SYNTAXES)
    return entity


@contextmanager
def receiving(node: DicomNode, arrival: Arrival) -> Iterator[None]:
    """Keep a storage node open under our AE title that only ``node`` may call, for as long as the block runs.

    Raises ``PacsError`` if the port is taken.
    """
    entity = storage_entity(node.calling_ae_title, [node.ae_title], _MOST_ASSOCIATIONS)
    try:
        server = entity.start_server(
            (node.move_host, node.move_port or 0),
            block=False,
            evt_handlers=[(evt.EVT_CONN_OPEN, no_delay), (evt.EVT_C_STORE, arrival.store)],
            ssl_context=node.tls.context(server=True) if node.tls else None,
        )
    except OSError as error:
        where = f"{node.move_host}:{node.move_port}"
        why = f"cannot listen on {where} for C-MOVE ({error.strerror})"
        raise PacsError(f"{why}; is another transfer running?") from error
    try:
        yield
    finally:
        server.shutdown()
