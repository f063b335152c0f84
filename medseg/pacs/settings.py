"""The systems medseg talks to, and the one small TOML file that names them.

::

    [nodes.archive]                     # a DICOM node
    ae_title = "ORTHANC"
    host = "10.0.0.5"
    port = 4242
    tls = { ca = "ca.pem", cert = "me.pem", key = "me.key" }        # optional
    limits = { studies = 50, instances = 5000, megabytes = 4096, instances_per_second = 100 }      # optional
    retrieve = "move"                   # C-MOVE to a port of ours that the peer knows; C-GET if left out
    move_port = 11113

    [nodes.web]                         # a DICOMweb server
    url = "https://archive.example/dicom-web"
    user = "medseg"
    password_env = "MEDSEG_ARCHIVE_PASSWORD"                        # secrets never stand in the file

    [listener]                          # see medseg.pacs.listener
    [run]                               # see medseg.pacs.study_loop
    [[routes]]
"""

from __future__ import annotations

import os
import ssl
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from medseg.bundle.find import find_bundle
from medseg.errors import UsageError
from medseg.json_shape import FLAG, LARGEST_BYTES, TEXT, Spec, misfit, number, read_bounded, whole

DEFAULT_AE_TITLE = "MEDSEG"
_LONGEST_AE_TITLE = 16


def _check_positive(record: Any, where: str, *names: str) -> None:
    """Raise ``UsageError`` unless every number of a record, or those named, is above 0; None is no limit."""
    for name in names or [entry.name for entry in fields(record)]:
        value = getattr(record, name)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float) or not value > 0):
            raise UsageError(f"{where}.{name} is {value!r}, expected a positive number")


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
class Limits:
    """Limits of one peer; None is no limit."""

    studies: int | None = None  # studies that one ``medseg pacs run`` takes from the peer
    instances: int | None = None  # instances of one study, fetched, or sent in one go
    megabytes: float | None = None  # their size in MiB
    instances_per_second: float | None = None  # rate that is kept to on average from the first instance on

    def __post_init__(self) -> None:
        _check_positive(self, "limits")


@dataclass(frozen=True)
class DicomNode:
    """A DICOM application entity on the network.

    ``retrieve`` says how studies are fetched from it: ``"get"`` over our own connection, or ``"move"`` to a port that
    is open for as long as the transfer takes. The peer must know that port under ``calling_ae_title``.
    """

    ae_title: str
    host: str
    port: int
    calling_ae_title: str = DEFAULT_AE_TITLE
    tls: Tls | None = None
    timeout_seconds: float = 30.0
    retrieve: Literal["get", "move"] = "get"
    move_host: str = "127.0.0.1"
    move_port: int | None = None
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        if self.retrieve not in ("get", "move"):
            raise UsageError(f"retrieve of {self} is {self.retrieve!r}, expected get or move")
        if self.retrieve == "move" and self.move_port is None:
            raise UsageError(f"retrieve of {self} is move; state move_port, the port of ours that it knows")
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
    max_instance_mb: int = 2048  # an instance that comes larger ends the transfer
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        _check_positive(self, f"nodes {self.url}", "timeout_seconds", "max_instance_mb")

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
    """What the listener does with a study: which series go through which bundle, on what, and where the results go.

    ``device``, ``precision`` and ``locate`` are as for ``medseg infer``.
    """

    name: str
    bundle: Path
    write: tuple[str, ...]
    send_to: tuple[str, ...]
    select: Path | None = None
    device: str = "auto"
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    locate: str | None = None


@dataclass(frozen=True)
class PortLimits:
    """What a port that listens bears from whoever finds it; a connection waits until its AE titles are accepted."""

    max_waiting: int = 256  # connections that wait; the oldest makes room for a new one
    max_waiting_per_host: int = 128  # of these, from one host
    first_pdu_seconds: float = 5.0  # until something of the association request has come, a TLS handshake included
    request_seconds: float = 10.0  # until all of it has come
    max_request_kb: int = 512  # size of an association request; 128 SOP classes with 40 transfer syntaxes take 150
    max_associations_per_minute: int = 600  # of one host
    max_pdu_kb: int = 1024  # size of a P-DATA PDU: what is agreed on, and what is taken
    idle_seconds: float = 60.0  # an association in which nothing comes for so long ends
    crowded_idle_seconds: float = 5.0  # the same while all places are taken and another caller waits
    min_kb_per_second: float = 1.0  # a message that comes slower, on average over idle_seconds, ends its association

    def __post_init__(self) -> None:
        _check_positive(self, "listener.port_limits")


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
    max_open_studies: int = 10_000  # studies that are not answered yet; while there are so many, none is begun
    min_free_gb: float = 2.0
    attempts: int = 3
    retry_seconds: float = 30.0
    tls: Tls | None = None
    port_limits: PortLimits = field(default_factory=PortLimits)

    def __post_init__(self) -> None:
        if not self.allowed_callers:
            raise UsageError("the listener's allowed_callers is empty; name the AE titles that may send to it")
        _check_positive(self, "listener", "max_associations", "max_instance_mb", "max_open_studies")
        if not isinstance(self.port_limits, PortLimits):
            raise UsageError(f"listener.port_limits is {self.port_limits!r}, expected a table of limits")


@dataclass(frozen=True)
class RunSettings:
    """Which studies of a node ``medseg pacs run`` answers, and where it keeps what it knows of them."""

    source: str  # name of the node that is searched and fetched from
    folder: Path  # studies, queue and results; not the listener's
    where: Mapping[str, str] = field(default_factory=dict)  # DICOM keywords and values that studies must match
    modalities: tuple[str, ...] = ()  # fetch only series of these; everything if empty
    keep_images: bool = False  # keep fetched images after their study is answered; results are always kept
    min_free_gb: float = 2.0  # fetch nothing while less is free in ``folder``
    attempts: int = 3  # attempts and retry_seconds: how often, and how far apart, a study is tried
    retry_seconds: float = 30.0


@dataclass(frozen=True)
class PacsSettings:
    """The whole settings file."""

    nodes: Mapping[str, DicomNode | WebNode] = field(default_factory=dict)
    listener: ListenerSettings | None = None
    routes: tuple[Route, ...] = ()
    run: RunSettings | None = None

    def __post_init__(self) -> None:
        for route in self.routes:
            if missing := sorted(set(route.send_to) - set(self.nodes)):
                why = f"route {route.name!r} sends to {missing}"
                raise UsageError(f"{why}, expected names of [nodes]: {sorted(self.nodes)}")
        if self.run is None:
            return
        if self.run.source not in self.nodes:
            raise UsageError(f"run.source is {self.run.source!r}, expected a name of [nodes]: {sorted(self.nodes)}")
        if self.listener and self.listener.folder == self.run.folder:
            raise UsageError(f"[listener] and [run] both keep their queue in {self.run.folder}; give each its own")


_NESTED: Mapping[str, type[Any]] = {"tls": Tls, "limits": Limits, "port_limits": PortLimits}


def _build(kind: type[Any], where: str, table: Mapping[str, Any]) -> Any:
    values = dict(table)
    for key, nested in _NESTED.items():
        if isinstance(values.get(key), dict):
            values[key] = _build(nested, f"{where}.{key}", values[key])
    known = set(kind.__dataclass_fields__)
    if unknown := sorted(set(values) - known):
        raise UsageError(f"[{where}] has unknown keys {unknown}; known are {sorted(known)}")
    try:
        return kind(**{key: tuple(v) if isinstance(v, list) else v for key, v in values.items()})
    except TypeError as error:
        raise UsageError(f"[{where}] is incomplete: {error}") from error


def _route(base: Path, table: Mapping[str, Any]) -> Route:
    paths = {key: base / table[key] for key in ("select",) if key in table}
    if "bundle" in table:
        paths["bundle"] = find_bundle(table["bundle"], base)
    route: Route = _build(Route, "routes", {**table, **paths})
    return route


_LONGEST_S = 7 * 86400.0
_PORT, _SECONDS = whole(0, 65535), number(0.0, _LONGEST_S)
_TLS = {"ca": TEXT, "cert": TEXT, "key": TEXT}
_SETTINGS: Spec = {
    "nodes": {
        "*": {
            **dict.fromkeys(("ae_title", "host", "calling_ae_title", "retrieve", "move_host", "url", "user"), TEXT),
            **dict.fromkeys(("password_env", "token_env", "ca"), TEXT),
            **dict.fromkeys(("port", "move_port"), _PORT),
            "tls": _TLS,
            "limits": {"studies": whole(0), "instances": whole(0), "*": number(0.0, 1e12)},
            "timeout_seconds": _SECONDS,
        }
    },
    "listener": {
        **dict.fromkeys(("folder", "ae_title", "host"), TEXT),
        **dict.fromkeys(("port", "health_port"), _PORT),
        **dict.fromkeys(("quiet_seconds", "retry_seconds"), _SECONDS),
        **dict.fromkeys(("max_associations", "max_instance_mb", "attempts"), whole(1)),
        "allowed_callers": [TEXT],
        "min_free_gb": number(0.0, 1e9),
        "tls": _TLS,
    },
    "run": {
        **dict.fromkeys(("source", "folder"), TEXT),
        "where": {"*": TEXT},
        "modalities": [TEXT],
        "keep_images": FLAG,
        "min_free_gb": number(0.0, 1e9),
        "attempts": whole(1),
        "retry_seconds": _SECONDS,
    },
    "routes": [
        {
            **dict.fromkeys(("name", "bundle", "select", "device", "precision", "locate"), TEXT),
            "write": [TEXT],
            "send_to": [TEXT],
        }
    ],
}
"""The kinds of the values; which keys there are and which must be there the records themselves say."""


def read_settings(path: str | os.PathLike[str]) -> PacsSettings:
    """Read the settings file; relative paths in it start at its own folder.

    Raises ``UsageError`` if the file is missing, is not TOML, or has unknown, missing or contradicting keys.
    """
    file = Path(path)
    try:
        content = tomllib.loads(read_bounded(file, LARGEST_BYTES).decode("utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"the settings {file} cannot be read: {error}; write TOML as docs/pacs.md shows") from error
    if wrong := misfit(content, _SETTINGS):
        raise UsageError(f"the settings {file}: {wrong}; correct it")
    if unknown := sorted(set(content) - {"nodes", "listener", "routes", "run"}):
        raise UsageError(f"{file} has unknown sections {unknown}; known are nodes, listener, routes, run")
    base = file.parent.resolve()
    nodes = {
        name: _build(WebNode if "url" in table else DicomNode, f"nodes.{name}", table)
        for name, table in content.get("nodes", {}).items()
    }
    routes = tuple(_route(base, table) for table in content.get("routes", []))
    listener, run = (
        _build(kind, name, {**content[name], "folder": base / content[name].get("folder", f"medseg-{folder}")})
        if name in content
        else None
        for kind, name, folder in ((ListenerSettings, "listener", "inbox"), (RunSettings, "run", "run"))
    )
    return PacsSettings(nodes, listener, routes, run)
