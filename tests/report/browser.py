"""Headless Chromium through ChromeDriver's own protocol (W3C WebDriver over HTTP), for tests of pages on disk."""

from __future__ import annotations

import base64
import json
import shutil
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

__all__ = ["Browser", "available", "browser"]

_FLAGS = [
    "--headless=new",
    "--no-sandbox",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
    "--force-prefers-reduced-motion",
]


def available() -> bool:
    """Whether chromium and chromedriver are installed."""
    return bool(shutil.which("chromium") and shutil.which("chromedriver"))


class Browser:
    """One window."""

    def __init__(self, base: str) -> None:
        self._base = base

    def open(self, page: Path) -> None:
        self.visit(page.resolve().as_uri())

    def visit(self, url: str) -> None:
        self._post("url", {"url": url})

    def run(self, script: str, *arguments: Any) -> Any:
        """Run the body of a function and return its value."""
        return self._post("execute/sync", {"script": script, "args": list(arguments)})

    def wait(self, condition: str, seconds: float = 60.0) -> None:
        """Wait until the expression ``condition`` is true."""
        end = time.monotonic() + seconds
        while not self.run(f"return Boolean({condition})"):
            if time.monotonic() > end:
                raise TimeoutError(f"still false after {seconds} s: {condition}; console: {self.console()}")
            time.sleep(0.2)

    def console(self) -> list[str]:
        """Warnings and errors on the console since the last call."""
        entries = self._post("se/log", {"type": "browser"})
        return [entry["message"] for entry in entries if entry["level"] in ("WARNING", "SEVERE")]

    def resize(self, width: int, height: int) -> None:
        self._post(
            "goog/cdp/execute",
            {
                "cmd": "Emulation.setDeviceMetricsOverride",
                "params": {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600},
            },
        )

    def dark(self, on: bool) -> None:
        features = [{"name": "prefers-color-scheme", "value": "dark" if on else "light"}]
        self._post("goog/cdp/execute", {"cmd": "Emulation.setEmulatedMedia", "params": {"features": features}})

    def screenshot(self) -> bytes:
        data = self._get("screenshot")
        return base64.b64decode(data)

    def pdf(self) -> bytes:
        return base64.b64decode(self._post("print", {"background": False}))

    def _get(self, command: str) -> Any:
        with urllib.request.urlopen(f"{self._base}/{command}", timeout=120) as reply:
            return json.load(reply)["value"]

    def _post(self, command: str, body: dict[str, Any]) -> Any:
        request = urllib.request.Request(
            f"{self._base}/{command}", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=120) as reply:
            return json.load(reply)["value"]


@contextmanager
def browser(profile: Path, width: int = 1280, height: int = 900) -> Iterator[Browser]:
    """Start ChromeDriver and one window; both end with the block."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    driver = subprocess.Popen(
        ["nice", "-n", "15", "chromedriver", f"--port={port}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    root = f"http://127.0.0.1:{port}/session"
    try:
        _wait_for(port)
        options = {"args": [*_FLAGS, f"--user-data-dir={profile}", f"--window-size={width},{height}"]}
        body = {
            "capabilities": {"alwaysMatch": {"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}}
        }
        session = _start(root, body)
        try:
            yield Browser(f"{root}/{session}")
        finally:
            urllib.request.urlopen(urllib.request.Request(f"{root}/{session}", method="DELETE"), timeout=30).close()
    finally:
        driver.terminate()
        driver.wait(timeout=30)


def _start(root: str, body: dict[str, Any]) -> str:
    request = urllib.request.Request(root, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=120) as reply:
        return str(json.load(reply)["value"]["sessionId"])


def _wait_for(port: int) -> None:
    for _ in range(100):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    raise TimeoutError("chromedriver did not start within 10 s")
