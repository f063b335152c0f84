"""Receiving by the DICOM network (PS3.4, C.4): by C-GET over our own association, or by C-MOVE to a port of ours.

A received file is named by the SHA-256 of its SOPInstanceUID and lies in a folder named by that of its
StudyInstanceUID: UIDs from the network are never part of a path, and the same instance sent twice is one file.
"""

from __future__ import annotations

import filecmp
import hashlib
import logging
import socket
import struct
import threading
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

from pydicom import Dataset, dcmread
from pydicom.errors import InvalidDicomError

from medseg.errors import MissingDependency
from medseg.files import atomic_path, write_bytes
from medseg.ingest.dicom_elements import DEFLATED
from medseg.pacs.doorway import Doorway, Refusals
from medseg.pacs.incoming import Arrived, Incoming
from medseg.pacs.remote import Meter, PacsError
from medseg.pacs.settings import DicomNode, PortLimits, Tls


def hash_uid(uid: str) -> str:
    """First 24 hex digits of the SHA-256 of a UID."""
    return hashlib.sha256(uid.encode()).hexdigest()[:24]


def store_instance(folder: Path, study_uid: str, sop_instance_uid: str, data: bytes) -> tuple[Path, bool]:
    """Write a DICOM file's bytes, whole or not at all.

    Returns the path, and whether it is new; a file that says the same is left alone, a different one under the same
    SOPInstanceUID is replaced and counts as new.
    """
    path = _place(folder, study_uid, sop_instance_uid)
    if path.is_file() and _same(path.read_bytes(), data):
        return path, False
    write_bytes(path, data)
    return path, True


def store_file(folder: Path, arrived: Arrived) -> tuple[Path, bool]:
    """As :func:`store_instance`, by moving a file of the same file system."""
    path = _place(folder, arrived.study_uid, arrived.sop_instance_uid)
    with _COMPARING:
        if path.is_file() and _same_file(path, arrived.path):
            return path, False
    with atomic_path(path) as partial:
        arrived.path.replace(partial)
    return path, True


def _place(folder: Path, study_uid: str, sop_instance_uid: str) -> Path:
    return folder / hash_uid(study_uid) / f"{hash_uid(sop_instance_uid)}.dcm"


def _same_file(known: Path, other: Path) -> bool:
    if filecmp.cmp(known, other, shallow=False):
        return True
    small = max(known.stat().st_size, other.stat().st_size) <= _COMPARED_BYTES
    return small and _same(known.read_bytes(), other.read_bytes())


def _same(known: bytes, data: bytes) -> bool:
    """Whether two files hold the same instance; archives write lengths of sequences and groups in their own ways."""
    if known == data:
        return True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # odd values are no matter here
            one, other = _elements(known), _elements(data)
            return one.file_meta.TransferSyntaxUID == other.file_meta.TransferSyntaxUID and one == other
    except (InvalidDicomError, EOFError, ValueError, TypeError, LookupError, AttributeError, struct.error):
        return False  # what cannot be read cannot be known to be the same
    except RuntimeError:  # nested too deep, or not implemented
        return False


def _elements(data: bytes) -> Dataset:
    if DEFLATED.encode() in data[:_META_BYTES]:
        raise ValueError("inflated, it may be of any size")
    dataset: Dataset = dcmread(BytesIO(data))
    for tag in [tag for tag in dataset.keys() if tag.element == 0 or tag == 0xFFFCFFFC]:  # noqa: SIM118  a Dataset yields values
        del dataset[tag]  # lengths of groups, padding at the end
    return dataset


try:
    from pynetdicom import AE, ALL_TRANSFER_SYNTAXES, AllStoragePresentationContexts, evt
except ImportError as error:
    raise MissingDependency("pynetdicom", "pacs", "the DICOM network") from error

_log = logging.getLogger(__name__)

LABELMAP_STORAGE = "1.2.840.10008.5.1.4.1.1.66.7"
"""Label Map Segmentation Storage, which pydicom and pynetdicom do not name yet."""

_SUCCESS = 0x0000
_REFUSED = 0xA700
_WRONG_STUDY = 0xA900
_MOST_ASSOCIATIONS = 4
_PLACES_ARE_COUNTED_BEFORE = 10_000
_COMPARED_BYTES = 64 * 2**20
"""Largest file that is compared element by element with what is known under its name."""
_META_BYTES = 1024
_COMPARING = threading.Lock()


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
        self.incoming = Incoming(folder)
        self.failure: PacsError | None = None

    def store(self, event: Any) -> int:
        """Handler of C-STORE; after a failure everything is refused, so that the peer comes to its end."""
        if self.failure is not None:
            return _REFUSED
        try:
            with self.incoming.file(event) as arrived:
                if isinstance(arrived, str):
                    raise PacsError(f"an instance was refused: {arrived}")
                if arrived.study_uid != self._study_uid:
                    return _WRONG_STUDY
                self._meter.count(arrived.path.stat().st_size)
                named = replace(arrived, sop_instance_uid=str(event.request.AffectedSOPInstanceUID))
                path, _ = store_file(self._folder, named)
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


def storage_entity(ae_title: str, callers: Sequence[str], limits: PortLimits) -> AE:
    """Application entity that takes every kind of instance in every transfer syntax from ``callers``."""
    entity = AE(ae_title=ae_title)
    entity.require_called_aet = True
    entity.require_calling_aet = list(callers)
    entity.maximum_associations = _PLACES_ARE_COUNTED_BEFORE
    entity.maximum_pdu_size = int(limits.max_pdu_kb * 2**10)
    entity.network_timeout = limits.idle_seconds
    for context in AllStoragePresentationContexts:
        entity.add_supported_context(context.abstract_syntax, ALL_TRANSFER_SYNTAXES)
    return entity


def _contain(event: Any) -> None:
    """Let the two threads of an association end without a word of what the peer sent, whatever it has led them to."""
    association, connection = event.assoc, event.assoc.dul.socket.socket
    association.run = partial(_run_contained, association.run, connection.close)
    association.dul.run = partial(_run_contained, association.dul.run, lambda: None)


def _run_contained(run: Callable[[], None], then: Callable[[], None]) -> None:
    try:
        run()
    except Exception as error:  # noqa: BLE001  pynetdicom raises in states that a hostile peer can bring about
        _log.warning("an association ended by %s", type(error).__name__)
    finally:
        then()


@contextmanager
def open_port(
    entity: AE,
    address: tuple[str, int],
    handlers: Sequence[Any],
    *,
    limits: PortLimits,
    max_associations: int,
    incoming: Incoming,
    tls: Tls | None,
) -> Iterator[tuple[int, Refusals]]:
    """Let the callers of ``entity`` in at ``address`` for as long as the block runs.

    Gives the port, and what counts the connections that were refused. Raises ``OSError`` if the port is taken.
    """
    log = logging.getLogger("pynetdicom")
    if log.level == logging.NOTSET:
        log.setLevel(logging.CRITICAL + 1)  # it tells AE titles and UIDs as they came, line breaks included
    context = tls.context(server=True) if tls else None
    server = entity.make_server(address, evt_handlers=[(evt.EVT_CONN_OPEN, _contain), *handlers])
    doorway = Doorway(
        server,
        entity.require_calling_aet,
        limits=limits,
        max_associations=max_associations,
        incoming=incoming,
        tls=context,
    )
    doorway.start()
    try:
        yield int(server.server_address[1]), doorway.refusals
    finally:
        doorway.stop()


@contextmanager
def receiving(node: DicomNode, arrival: Arrival) -> Iterator[None]:
    """Keep a storage node open under our AE title that only ``node`` may call, for as long as the block runs.

    Raises ``PacsError`` if the port is taken.
    """
    limits = PortLimits()
    with ExitStack() as stack:
        try:
            stack.enter_context(
                open_port(
                    storage_entity(node.calling_ae_title, [node.ae_title], limits),
                    (node.move_host, node.move_port or 0),
                    [(evt.EVT_C_STORE, arrival.store)],
                    limits=limits,
                    max_associations=_MOST_ASSOCIATIONS,
                    incoming=arrival.incoming,
                    tls=node.tls,
                )
            )
        except OSError as error:
            where = f"{node.move_host}:{node.move_port}"
            why = f"cannot listen on {where} for C-MOVE ({error.strerror})"
            raise PacsError(f"{why}; is another transfer running?") from error
        yield
