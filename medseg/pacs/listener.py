"""The listening node: receives studies, never blocks the sender, survives being killed.

An instance is acknowledged only after its file has its final name and the queue knows it; computing and sending
happen in another thread.
"""

from __future__ import annotations

import logging
import shutil
import time
from typing import Any

from pydicom.uid import (
    Comprehensive3DSRStorage,
    ComprehensiveSRStorage,
    EnhancedSRStorage,
    MultiFrameTrueColorSecondaryCaptureImageStorage,
    RTStructureSetStorage,
    SecondaryCaptureImageStorage,
    SegmentationStorage,
)

from medseg.errors import MissingDependency, UsageError
from medseg.files import remove_leftovers
from medseg.pacs.health import HealthServer
from medseg.pacs.inbox import store_instance
from medseg.pacs.nodes import PacsSettings
from medseg.pacs.queue import Queue
from medseg.pacs.work import Compute, Worker, run_route

try:
    from pynetdicom import AE, ALL_TRANSFER_SYNTAXES, AllStoragePresentationContexts, evt
    from pynetdicom.sop_class import Verification
except ImportError as error:
    raise MissingDependency("pynetdicom", "pacs", "the DICOM network") from error

from medseg.pacs.retrieve import no_delay

_log = logging.getLogger(__name__)

_SUCCESS = 0x0000
_OUT_OF_RESOURCES = 0xA700
_CANNOT_UNDERSTAND = 0xC000

_RESULTS = frozenset(
    {
        Comprehensive3DSRStorage,
        ComprehensiveSRStorage,
        EnhancedSRStorage,
        "1.2.840.10008.5.1.4.1.1.66.7",  # Label Map Segmentation Storage, which pydicom does not name yet
        MultiFrameTrueColorSecondaryCaptureImageStorage,
        RTStructureSetStorage,
        SecondaryCaptureImageStorage,
        SegmentationStorage,
    }
)
"""Kinds of object that are made from images, by medseg or by others."""


class Listener:
    """A DICOM storage node in front of the queue; use it as a context manager."""

    def __init__(self, settings: PacsSettings, compute: Compute = run_route) -> None:
        if settings.listener is None:
            raise UsageError("the settings have no [listener] section; add one with folder, port and allowed_callers")
        self._settings = settings.listener
        self.queue = Queue(self._settings.folder / "queue.sqlite")
        self._studies = self._settings.folder / "studies"
        self._worker = Worker(settings, self._settings, self.queue, compute)
        self._health = HealthServer(self._settings, self.queue) if self._settings.health_port is not None else None
        self._server: Any = None

    def __enter__(self) -> Listener:
        for folder in self._studies.glob("*"):
            remove_leftovers(folder)
        self.queue.recover()
        self._server = self._entity().start_server(
            (self._settings.host, self._settings.port),
            block=False,
            evt_handlers=[(evt.EVT_CONN_OPEN, no_delay), (evt.EVT_C_STORE, self._store), (evt.EVT_C_ECHO, _echo)],
            ssl_context=self._settings.tls.context(server=True) if self._settings.tls else None,
        )
        self._worker.start()
        if self._health:
            self._health.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._worker.stop()
        if self._health:
            self._health.stop()
        self.queue.close()

    @property
    def port(self) -> int:
        """Port that the node listens on (the one chosen, when the settings say 0)."""
        port: int = self._server.server_address[1]
        return port

    def _entity(self) -> Any:
        entity = AE(ae_title=self._settings.ae_title)
        entity.require_called_aet = True
        entity.require_calling_aet = list(self._settings.allowed_callers)
        entity.maximum_associations = self._settings.max_associations
        entity.maximum_pdu_size = 0
        entity.add_supported_context(Verification)
        for context in AllStoragePresentationContexts:
            entity.add_supported_context(context.abstract_syntax, ALL_TRANSFER_SYNTAXES)
        return entity

    def _store(self, event: Any) -> int:
        settings = self._settings
        data = event.encoded_dataset()
        if len(data) > settings.max_instance_mb * 2**20:
            return _OUT_OF_RESOURCES
        if shutil.disk_usage(settings.folder).free < settings.min_free_gb * 2**30:
            _log.error("less than %g GB are free in the listener's folder: instances are refused", settings.min_free_gb)
            return _OUT_OF_RESOURCES
        study_uid = _study_uid(event)
        if not study_uid:
            return _CANNOT_UNDERSTAND
        try:
            path, changed = store_instance(self._studies, study_uid, str(event.request.AffectedSOPInstanceUID), data)
        except OSError as error:
            _log.error("an instance could not be written: %s", error.strerror)
            return _OUT_OF_RESOURCES
        if event.request.AffectedSOPClassUID in _RESULTS:
            return _SUCCESS  # kept, but no reason to compute: an archive that forwards our results would start a loop
        self.queue.arrived(path.parent.name, path.stem, changed=changed, now=time.time())
        return _SUCCESS


def _study_uid(event: Any) -> str:
    return str(event.dataset.get("StudyInstanceUID", ""))


def _echo(_: Any) -> int:
    return _SUCCESS
