"""Fetching by the DICOM network (PS3.4, C.4): C-GET over our own association, or C-MOVE to a port of ours."""

from __future__ import annotations

import socket
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydicom.dataset import Dataset

from medseg.errors import MissingDependency
from medseg.pacs.failures import PacsError
from medseg.pacs.inbox import store_instance
from medseg.pacs.limits import Meter
from medseg.pacs.nodes import DicomNode

try:
    from pynetdicom import AE, ALL_TRANSFER_SYNTAXES, AllStoragePresentationContexts, evt
except ImportError as error:
    raise MissingDependency("pynetdicom", "pacs", "the DICOM network") from error

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
        """What has come since the last call.

        Raises
        ------
        PacsError
            If something could not be taken.
        """
        while self._arrived:
            yield self._arrived.popleft()
        if self.failure is not None:
            raise self.failure


@contextmanager
def receiving(node: DicomNode, arrival: Arrival) -> Iterator[None]:
    """Keep a storage node open under our AE title that only ``node`` may call, for as long as the block runs.

    Raises
    ------
    PacsError
        If the port is taken.
    """
    entity = AE(ae_title=node.calling_ae_title)
    entity.require_called_aet = True
    entity.require_calling_aet = [node.ae_title]
    entity.maximum_associations = _MOST_ASSOCIATIONS
    entity.maximum_pdu_size = 0
    for context in AllStoragePresentationContexts:
        entity.add_supported_context(context.abstract_syntax, ALL_TRANSFER_SYNTAXES)
    try:
        server = entity.start_server(
            (node.move_host, node.move_port or 0),
            block=False,
            evt_handlers=[(evt.EVT_CONN_OPEN, no_delay), (evt.EVT_C_STORE, arrival.store)],
            ssl_context=node.tls.context(server=True) if node.tls else None,
        )
    except OSError as error:
        where = f"{node.move_host}:{node.move_port}"
        raise PacsError(
            f"cannot listen on {where} for C-MOVE ({error.strerror}); is another transfer running?"
        ) from error
    try:
        yield
    finally:
        server.shutdown()
