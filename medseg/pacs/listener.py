"""The listening node: receives studies, never blocks the sender, survives being killed.

An instance is acknowledged only after its file has its final name and the queue knows it; computing and sending
happen in another thread. What a stranger may ask of the port is bounded by :mod:`medseg.pacs.doorway`.
"""

from __future__ import annotations

import logging
import time
from contextlib import ExitStack
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
from medseg.pacs.incoming import Arrived, Incoming, clear_incoming
from medseg.pacs.queue import Queue
from medseg.pacs.receive import LABELMAP_STORAGE, hash_uid, open_port, storage_entity, store_file
from medseg.pacs.settings import PacsSettings
from medseg.pacs.study_worker import Compute, Worker, routes_kept_open

try:
    from pynetdicom import evt
    from pynetdicom.sop_class import Verification
except ImportError as error:
    raise MissingDependency("pynetdicom", "pacs", "the DICOM network") from error


_log = logging.getLogger(__name__)

_SUCCESS = 0x0000
_OUT_OF_RESOURCES = 0xA700
_ANOTHER_INSTANCE = 0xA900
_CANNOT_UNDERSTAND = 0xC000

_RESULTS = frozenset(
    {
        Comprehensive3DSRStorage,
        ComprehensiveSRStorage,
        EnhancedSRStorage,
        LABELMAP_STORAGE,
        MultiFrameTrueColorSecondaryCaptureImageStorage,
        RTStructureSetStorage,
        SecondaryCaptureImageStorage,
        SegmentationStorage,
    }
)
"""Kinds of object that are made from images, by medseg or by others."""


class Listener:
    """A DICOM storage node in front of the queue; use it as a context manager."""

    def __init__(self, settings: PacsSettings, compute: Compute | None = None) -> None:
        if settings.listener is None:
            raise UsageError("the settings have no [listener] section; add one with folder, port and allowed_callers")
        self._settings = settings.listener
        self.queue = Queue(self._settings.folder / "queue.sqlite")
        self._studies = self._settings.folder / "studies"
        self._worker = Worker(settings, self._settings, self.queue, compute or routes_kept_open())
        self._running = ExitStack()

    def __enter__(self) -> Listener:
        settings = self._settings
        for folder in self._studies.glob("*"):
            remove_leftovers(folder)
        clear_incoming(settings.folder)
        self.queue.recover()
        entity = storage_entity(settings.ae_title, settings.allowed_callers, settings.port_limits)
        entity.add_supported_context(Verification)
        with ExitStack() as running:
            running.callback(self.queue.close)
            incoming = Incoming(settings.folder, settings.max_instance_mb, settings.min_free_gb)
            self._incoming = running.enter_context(incoming)
            self._worker.start()
            running.callback(self._worker.stop)
            self._port, refused = running.enter_context(
                open_port(
                    entity,
                    (settings.host, settings.port),
                    [(evt.EVT_C_STORE, self._store), (evt.EVT_C_ECHO, lambda _: _SUCCESS)],
                    limits=settings.port_limits,
                    max_associations=settings.max_associations,
                    incoming=incoming,
                    tls=settings.tls,
                )
            )
            if settings.health_port is not None:
                self._health = HealthServer(settings, self.queue, refused.counts)
                running.enter_context(self._health)
            self._running = running.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._running.close()

    @property
    def port(self) -> int:
        """Port that the node listens on (the one chosen, when the settings say 0)."""
        return self._port

    def _store(self, event: Any) -> int:
        """Handler of C-STORE. Nothing of what came is told, since it may name a patient."""
        try:
            with self._incoming.file(event) as arrived:
                if isinstance(arrived, str):
                    _log.error("an instance was refused: %s", arrived)
                    return _OUT_OF_RESOURCES
                return self._keep(event, arrived)
        except OSError as error:
            _log.error("an instance could not be written: %s", error.strerror)
            return _OUT_OF_RESOURCES
        except Exception as error:  # noqa: BLE001  pynetdicom would log what the error says
            _log.error("an instance could not be understood: %s", type(error).__name__)
            return _CANNOT_UNDERSTAND

    def _keep(self, event: Any, arrived: Arrived) -> int:
        if not arrived.study_uid:
            return _CANNOT_UNDERSTAND
        if arrived.sop_instance_uid != str(event.request.AffectedSOPInstanceUID):
            _log.error("an instance was refused: its data set has another SOPInstanceUID than its request")
            return _ANOTHER_INSTANCE
        study, is_result = hash_uid(arrived.study_uid), event.request.AffectedSOPClassUID in _RESULTS
        if not is_result and self.queue.is_full(study, self._settings.max_open_studies):
            _log.error("an instance was refused: %d studies wait for an answer", self._settings.max_open_studies)
            return _OUT_OF_RESOURCES
        path, changed = store_file(self._studies, arrived)
        if is_result:
            return _SUCCESS  # kept, but no reason to compute: an archive that forwards our results would start a loop
        self.queue.arrived(study, path.stem, changed=changed, now=time.time())
        return _SUCCESS
