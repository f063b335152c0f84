"""Health and metrics of the listener over HTTP on loopback: ``/health`` as JSON, ``/metrics`` for Prometheus."""

from __future__ import annotations

import json
import shutil
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import get_args

from medseg.pacs.nodes import ListenerSettings
from medseg.pacs.queue import Queue, State


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
