"""A stand-in for the Hugging Face hub: the two addresses that a pull asks for, on this machine; it lies if told to."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Hub:
    """Repositories by name; ``redirect``: where every file lies; ``lies``: changes what is said of a repository."""

    url: str
    repositories: dict[str, dict[str, bytes]] = field(default_factory=dict)
    redirect: str = ""
    lies: dict[str, Any] = field(default_factory=dict)
    sent: dict[str, bytes] = field(default_factory=dict)
    coding: str = ""
    pause_s: float | None = None  # between two bytes
    asked: list[tuple[str, str | None]] = field(default_factory=list)

    def answer(self, path: str) -> tuple[int, bytes, str]:
        """Status, body and place to go to."""
        parts = [unquote(part) for part in urlsplit(path).path.strip("/").split("/")]
        if parts[:2] == ["api", "models"] and (files := self.repositories.get("/".join(parts[2:4]))) is not None:
            siblings = [
                {"rfilename": name, "size": len(data), "lfs": {"sha256": hashlib.sha256(data).hexdigest()}}
                for name, data in files.items()
            ]
            return 200, json.dumps({"sha": COMMIT, "siblings": siblings, **self.lies}).encode(), ""
        if parts[2:3] == ["resolve"] and self.redirect:
            return 302, b"", self.redirect
        name = "/".join(parts[4:])
        files = self.repositories.get("/".join(parts[:2]), {})
        return (200, self.sent.get(name, files[name]), "") if name in files else (404, b"", "")


@contextmanager
def hub() -> Iterator[Hub]:
    """A hub that is there as long as the block runs."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            content.asked.append((self.path, self.headers.get("authorization")))
            status, body, place = content.answer(self.path)
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            if content.coding:
                self.send_header("Content-Encoding", content.coding)
            if place:
                self.send_header("Location", place)
            self.end_headers()
            if content.pause_s is None:
                self.wfile.write(body)
                return
            with suppress(OSError):  # nobody listens any more
                for byte in body:
                    self.wfile.write(bytes([byte]))
                    time.sleep(content.pause_s)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    content = Hub(f"http://127.0.0.1:{server.server_port}")
    thread = Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield content
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
