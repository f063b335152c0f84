"""The listening node: receives studies, never blocks the sender, survives being killed.

An instance is acknowledged only after its file has its final name and the queue knows it; computing and sending
happen in another thread. Health and metrics are told over HTTP on loopback: ``/health`` as JSON, ``/metrics`` for
Prometheus.
"""

from __future__ import annotations

import json
import logging
import shutil
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, get_args

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
from medseg.pacs.queue import Queue, State
from medseg.pacs.receive import LABELMAP_STORAGE, no_delay, storage_entity, store_instance
from medseg.pacs.settings import ListenerSettings, PacsSettings
from medseg.pacs.study_worker import Compute, Worker, routes_kept_open

try:
    from pynetdicom import evt
    from pynetdicom.sop_class import Verification
except ImportError as error:
    raise MissingDependency("pynetdicom", "pacs", "the DICOM network") from error


_log = logging.getLogger(__name__)

_SUCCESS = 0x0000
_OUT_OF_RESOURCES = 0xA700
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
        self._health = HealthServer(self._settings, self.queue) if self._settings.health_port is not None else None
        self._server: Any = None

    def __enter__(self) -> Listener:
        for folder in self._studies.glob("*"):
            remove_leftovers(folder)
        self.queue.recover()
        settings = self._settings
        entity = storage_entity(settings.ae_title, settings.allowed_callers, settings.max_associations)
        entity.add_supported_context(Verification)
        self._server = entity.start_server(
            (settings.host, settings.port),
            block=False,
            evt_handlers=[
                (evt.EVT_CONN_OPEN, no_delay),
                (evt.EVT_C_STORE, self._store),
                (evt.EVT_C_ECHO, lambda _: _SUCCESS),
            ],
            ssl_context=settings.tls.context(server=True) if settings.tls else None,
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
        return int(self._server.server_address[1])

    def _store(self, event: Any) -> int:
        settings = self._settings
        data = event.encoded_dataset()
        if len(data) > settings.max_instance_mb * 2**20:
            return _OUT_OF_RESOURCES
        if shutil.disk_usage(settings.folder).free < settings.min_free_gb * 2**30:
            _log.error("less than %g GB are free in the listener's folder: instances are refused", settings.min_free_gb)
            return _OUT_OF_RESOURCES
        study_uid = str(event.dataset.get("StudyInstanceUID", ""))
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


class HealthServer:
    """Answers on 127.0.0.1 only; shows counts, never identities."""

    def __init__(self, settings: ListenerSettings, queue: Queue) -> None:
        def counts() -> dict[str, int]:
            found = Counter(study.state for study in queue.studies())
            return {state: found.get(state, 0) for state in get_args(State)}

        class Handler(BaseHTTPRequestHandler):
            """Answers /health and /metrics."""

            def do_GET(self) -> None:
                free = shutil.disk_usage(settings.folder).free
                if self.path == "/health":
                    healthy = free >= settings.min_free_gb * 2**30
                    body = json.dumps({"status": "ok" if healthy else "disk-full", "studies": counts()})
                    self._answer(200 if healthy else 503, "application/json", body)
                elif self.path == "/metrics":
                    lines = [f'medseg_studies{{state="{state}"}} {count}' for state, count in counts().items()]
                    self._answer(200, "text/plain; version=0.0.4", "\n".join([*lines, f"medseg_free_bytes {free}", ""]))
                else:
                    self._answer(404, "text/plain", "found are /health and /metrics\n")

            def _answer(self, status: int, kind: str, body: str) -> None:
                data = body.encode()
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: object) -> None:
                """Stay silent: a probe every few seconds would fill the log."""

        self._server = ThreadingHTTPServer(("127.0.0.1", settings.health_port or 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, name="medseg-health", daemon=True)

    @property
    def port(self) -> int:
        """Port that is really listened on."""
        return self._server.server_port

    def start(self) -> None:
        """Start answering."""
        self._thread.start()

    def stop(self) -> None:
        """Stop answering and free the port."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
