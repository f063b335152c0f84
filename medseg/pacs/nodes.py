"""The systems medseg talks to, and the one small TOML file that names them.

::

    [nodes.archive]                     # a DICOM node
    ae_title = "ORTHANC"
    host = "10.0.0.5"
    port = 4242
    tls = { ca = "ca.pem", cert = "me.pem", key = "me.key" }        # optional

    [nodes.web]                         # a DICOMweb server
    url = "https://archive.example/dicom-web"
    user = "medseg"
    password_env = "MEDSEG_ARCHIVE_PASSWORD"                        # secrets never stand in the file

    [listener]                          # see medseg.pacs.listener
    [[routes]]
"""

from __future__ import annotations

import os
import ssl
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medseg.errors import UsageError

__all__ = ["DicomNode", "ListenerSettings", "PacsSettings", "Route", "Tls", "WebNode", "parse_node", "read_settings"]

DEFAULT_AE_TITLE = "MEDSEG"
_LONGEST_AE_TITLE = 16


@dataclass(frozen=True)
class Tls:
    """Certificate files of a DICOM connection over TLS (PEM)."""

    ca: str
    cert: str | None = None
    key: str | None = None

    def context(self, *, server: bool) -> ssl.SSLContext:
        """TLS context; a server asks its callers for a certificate of the same authority."""
        purpose = ssl.Purpose.CLIENT_AUTH if server else ssl.Purpose.SERVER_AUTH
        context = ssl.create_default_context(purpose, cafile=self.ca)
        if server:
            context.verify_mode = ssl.CERT_REQUIRED
        if self.cert:
            context.load_cert_chain(self.cert, self.key)
        return context


@dataclass(frozen=True)
class DicomNode:
    """A DICOM application entity on the network."""

    ae_title: str
    host: str
    port: int
    calling_ae_title: str = DEFAULT_AE_TITLE
    tls: Tls | None = None
    timeout_seconds: float = 30.0

    def __post_init__(self) -> None:
        for title in (self.ae_title, self.calling_ae_title):
            if not 0 < len(title.strip()) <= _LONGEST_AE_TITLE or not title.isascii():
                raise UsageError(f"found AE title {title!r}, expected 1 to {_LONGEST_AE_TITLE} ASCII characters")

    def __str__(self) -> str:
        return f"{self.ae_title}@{self.host}:{self.port}"


@dataclass(frozen=True)
class WebNode:
    """A DICOMweb server; the password or token is read from the environment at the time of use."""

    url: str
    user: str | None = None
    password_env: str | None = None
    token_env: str | None = None
    ca: str | None = None
    timeout_seconds: float = 60.0

    def secret(self, variable: str | None) -> str | None:
        """Value of an environment variable that the settings name."""
        if variable is None:
            return None
        if variable not in os.environ:
            raise UsageError(f"the settings of {self.url} read {variable} from the environment, where it is not set")
        return os.environ[variable]

    def __str__(self) -> str:
        return self.url


@dataclass(frozen=True)
class Route:
    """What the listener does with a study: which series go through which bundle, and where the results go."""

    name: str
    bundle: Path
    write: tuple[str, ...]
    send_to: tuple[str, ...]
    select: Path | None = None


@dataclass(frozen=True)
class ListenerSettings:
    """How the listening node appears to its senders, and where it keeps what it receives."""

    folder: Path
    ae_title: str = DEFAULT_AE_TITLE
    host: str = "127.0.0.1"
    port: int = 11112
    allowed_callers: tuple[str, ...] = ()
    quiet_seconds: float = 30.0
    health_port: int | None = None
    max_associations: int = 16
    max_instance_mb: int = 2048
    min_free_gb: float = 2.0
    attempts: int = 3
    retry_seconds: float = 30.0
    tls: Tls | None = None

    def __post_init__(self) -> None:
        if not self.allowed_callers:
            raise UsageError("the listener's allowed_callers is empty; name the AE titles that may send to it")


@dataclass(frozen=True)
class PacsSettings:
    """The whole settings file."""

    nodes: Mapping[str, DicomNode | WebNode] = field(default_factory=dict)
    listener: ListenerSettings | None = None
    routes: tuple[Route, ...] = ()


def _build(kind: type[Any], where: str, table: Mapping[str, Any]) -> Any:
    values = dict(table)
    if isinstance(values.get("tls"), dict):
        values["tls"] = _build(Tls, f"{where}.tls", values["tls"])
    known = set(kind.__dataclass_fields__)
    if unknown := sorted(set(values) - known):
        raise UsageError(f"[{where}] has unknown keys {unknown}; known are {sorted(known)}")
    try:
        return kind(**{key: tuple(v) if isinstance(v, list) else v for key, v in values.items()})
    except TypeError as error:
        raise UsageError(f"[{where}] is incomplete: {error}") from error


def _node(name: str, table: Mapping[str, Any]) -> DicomNode | WebNode:
    node: DicomNode | WebNode = _build(WebNode if "url" in table else DicomNode, f"nodes.{name}", table)
    return node


def _route(base: Path, table: Mapping[str, Any]) -> Route:
    paths = {key: base / table[key] for key in ("bundle", "select") if key in table}
    route: Route = _build(Route, "routes", {**table, **paths})
    return route


def read_settings(path: str | os.PathLike[str]) -> PacsSettings:
    """Read the settings file; relative paths in it start at its own folder.

    Raises
    ------
    UsageError
        The file is missing, is not TOML, or has unknown, missing or contradicting keys.
    """
    file = Path(path)
    try:
        content = tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UsageError(f"the settings {file} cannot be read: {error}") from error
    if unknown := sorted(set(content) - {"nodes", "listener", "routes"}):
        raise UsageError(f"{file} has unknown sections {unknown}; known are nodes, listener, routes")
    base = file.parent.resolve()
    nodes = {name: _node(name, table) for name, table in content.get("nodes", {}).items()}
    routes = tuple(_route(base, table) for table in content.get("routes", []))
    for route in routes:
        if missing := sorted(set(route.send_to) - set(nodes)):
            raise UsageError(f"route {route.name!r} sends to {missing}, expected names of [nodes]: {sorted(nodes)}")
    listener = None
    if "listener" in content:
        table = content["listener"]
        listener = _build(ListenerSettings, "listener", {**table, "folder": base / table.get("folder", "medseg-inbox")})
    return PacsSettings(nodes, listener, routes)


def parse_node(text: str, settings: PacsSettings | None = None) -> DicomNode | WebNode:
    """Turn what a person types into a node: a name from the settings, ``AET@host:port`` or an ``http(s)`` URL."""
    if settings and text in settings.nodes:
        return settings.nodes[text]
    if text.startswith(("http://", "https://")):
        return WebNode(text.rstrip("/"))
    title, _, address = text.partition("@")
    host, _, port = address.rpartition(":")
    if not title or not host or not port.isdigit():
        known = f" or one of {sorted(settings.nodes)}" if settings and settings.nodes else ""
        raise UsageError(f"found {text!r}, expected AET@host:port, a DICOMweb URL{known}")
    return DicomNode(title, host, int(port))
