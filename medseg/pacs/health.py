"""How the listener is, over HTTP on loopback: ``/health`` as JSON, ``/metrics`` for Prometheus.

Shows counts, never identities. A connection has a few seconds in all, and only a few are open at once: the oldest makes
room for a new one.
"""

from __future__ import annotations

import json
import shutil
import socket
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from medseg.pacs.queue import Queue
from medseg.pacs.settings import ListenerSettings

_MOST_CONNECTIONS = 32
_MOST_SECONDS = 5.0
_STOP_SECONDS = 5.0


class _Server(ThreadingHTTPServer):
    """Threads in bounded number, for bounded time."""

    request_queue_size = 64

    def __init__(self, port: int, handler: type[BaseHTTPRequestHandler]) -> None:
        self._open: dict[Any, float] = {}  # in the order they came
        self._lock = threading.Lock()
        super().__init__(("127.0.0.1", port), handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._lock:
            if len(self._open) >= _MOST_CONNECTIONS:
                self._cut(next(iter(self._open)))
            self._open[request] = time.monotonic()
        super().process_request(request, client_address)

    def service_actions(self) -> None:
        self.cut_older_than(_MOST_SECONDS)

    def cut_older_than(self, seconds: float) -> None:
        """End connections that were opened longer ago."""
        end = time.monotonic() - seconds
        with self._lock:
            for request in [request for request, begin in self._open.items() if begin <= end]:
                self._cut(request)

    def _cut(self, request: Any) -> None:
        """End the reading of the thread that has it, which then closes it."""
        self._open.pop(request)
        with suppress(OSError):  # the peer was faster
            request.shutdown(socket.SHUT_RDWR)

    def shutdown_request(self, request: Any) -> None:
        with self._lock:
            self._open.pop(request, None)
        super().shutdown_request(request)

    def handle_error(self, *_: object) -> None:
        """A connection that ends early is the matter of its peer."""


class HealthServer:
    """Answers on 127.0.0.1 only; ``refused`` gives how many the DICOM port refused, by reason."""

    def __init__(self, settings: ListenerSettings, queue: Queue, refused: Callable[[], Mapping[str, int]]) -> None:
        class Handler(BaseHTTPRequestHandler):
            """Answers /health and /metrics."""

            server_version, sys_version = "medseg", ""
            timeout = _MOST_SECONDS

            def do_GET(self) -> None:
                free = shutil.disk_usage(settings.folder).free
                if self.path == "/health":
                    healthy = free >= settings.min_free_gb * 2**30
                    body = json.dumps({"status": "ok" if healthy else "disk-full", "studies": queue.counts()})
                    self._answer(200 if healthy else 503, "application/json", body)
                elif self.path == "/metrics":
                    lines = [f'medseg_studies{{state="{state}"}} {count}' for state, count in queue.counts().items()]
                    lines += [f'medseg_refused{{reason="{why}"}} {count}' for why, count in refused().items()]
                    self._answer(200, "text/plain; version=0.0.4", "\n".join([*lines, f"medseg_free_bytes {free}", ""]))
                else:
                    self._answer(404, "text/plain", "found are /health and /metrics\n")

            def send_error(self, code: int, *_: object) -> None:
                """Tell nothing of the request back."""
                self._answer(code, "text/plain", "only GET is answered, and only short requests\n")

            def _answer(self, status: int, kind: str, body: str) -> None:
                data = body.encode()
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: object) -> None:
                """Stay silent: a probe every few seconds would fill the log."""

        self._server = _Server(settings.health_port or 0, Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, name="medseg-health", daemon=True)

    @property
    def port(self) -> int:
        """Port that is really listened on."""
        return self._server.server_port

    def __enter__(self) -> HealthServer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.cut_older_than(0)
        self._server.server_close()
        self._thread.join()
