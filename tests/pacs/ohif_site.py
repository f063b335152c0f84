"""The viewer OHIF and an archive's DICOMweb under one origin, on loopback."""

from __future__ import annotations

import http.client
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

__all__ = ["serve"]

_CONFIG = {
    "routerBasename": None,
    "extensions": [],
    "modes": [],
    "customizationService": {},
    "showStudyList": True,
    "maxNumberOfWebWorkers": 2,
    "disableConfirmationPrompts": True,
    "investigationalUseDialog": {"option": "never"},
    "defaultDataSourceName": "orthanc",
    "dataSources": [
        {
            "namespace": "@ohif/extension-default.dataSourcesModule.dicomweb",
            "sourceName": "orthanc",
            "configuration": {
                "friendlyName": "Orthanc",
                "name": "orthanc",
                "qidoRoot": "/dicom-web",
                "wadoRoot": "/dicom-web",
                "wadoUriRoot": "/dicom-web",
                "qidoSupportsIncludeField": False,
                "imageRendering": "wadors",
                "thumbnailRendering": "wadors",
                "enableStudyLazyLoad": True,
                "supportsFuzzyMatching": False,
                "supportsWildcard": True,
                "bulkDataURI": {"enabled": True},
            },
        }
    ],
}


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128  # a browser asks for many images at once


class _Site(SimpleHTTPRequestHandler):
    """The viewer's files, its settings, and Orthanc's DICOMweb."""

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path.startswith("/dicom-web/"):
            self._forward()
        elif path == "/app-config.js":
            self._answer(200, "text/javascript", f"window.config = {json.dumps(_CONFIG)};".encode())
        else:
            if not Path(self.translate_path(path)).is_file():
                self.path = "/index.html"  # the viewer's own routes
            super().do_GET()

    def _forward(self) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", 8042, timeout=60)
        connection.request(
            "GET", self.path, headers={k: self.headers[k] for k in ("Accept", "Host") if k in self.headers}
        )
        reply = connection.getresponse()
        self._answer(reply.status, reply.headers.get("Content-Type", "text/plain"), reply.read())
        connection.close()

    def _answer(self, status: int, kind: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""


@contextmanager
def serve(build: Path) -> Iterator[str]:
    """Serve the viewer's build; the address without a slash at its end."""
    with _Server(("127.0.0.1", 0), partial(_Site, directory=str(build))) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()
