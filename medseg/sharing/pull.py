"""Bundles fetched from the Hugging Face hub and from OCI registries, then unpacked like any other archive.

The only connection is to the server that the reference names (plain http on this machine alone), and to hosts that the
caller allows: hubs keep large files elsewhere and redirect there. What comes is counted against the size that the
server states, and against the limit, before it is kept; nothing is unpacked but by :func:`~medseg.sharing.unpack`.
"""

from __future__ import annotations

import hashlib
import re
import secrets
import shutil
import zipfile
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import IO, Any
from urllib.parse import quote, urlsplit

from medseg.bundle.find import METADATA
from medseg.bundle.unpacking import MOST_FILES
from medseg.errors import MissingDependency, UntrustedBundle, UsageError
from medseg.files import arriving
from medseg.json_shape import TEXT, Spec, misfit, parse_json, whole
from medseg.sharing.archive import PARTIAL, Unpacked, unpack
from medseg.sharing.archive_reader import LARGEST_MANIFEST

_HUB = re.compile(r"hf://([\w.-]+/[\w.-]+)(?:@([\w./-]+))?", re.ASCII)
_REGISTRY = re.compile(
    r"oci://([\w.-]+(?::\d{1,5})?)/([a-z0-9][a-z0-9._/-]*)(?::([\w.-]+))?(?:@(sha256:[0-9a-f]{64}))?", re.ASCII
)
_DIGEST = re.compile(r"sha256:([0-9a-f]{64})")
_HERE = frozenset({"localhost", "127.0.0.1", "::1"})
_TIMEOUT_S = (15, 60)
_HUB_FORM: Spec = {"sha!": TEXT, "siblings!": [{"rfilename!": TEXT, "size!": whole(0), "lfs": {"sha256": TEXT}}]}
_REGISTRY_FORM: Spec = {"layers!": [{"digest!": TEXT, "size!": whole(0), "annotations": {"*": TEXT}}]}
_MANIFEST_KIND = "application/vnd.oci.image.manifest.v1+json"
_TITLE = "org.opencontainers.image.title"


@dataclass(frozen=True)
class Reference:
    """Where a bundle is: a hub's repository at a revision, or a registry's repository under a tag, a digest or both."""

    server: str
    repository: str
    version: str
    digest: str = ""

    @property
    def is_hub(self) -> bool:
        """Whether it is on the Hugging Face hub."""
        return not self.server.startswith("oci://")

    def __str__(self) -> str:
        if self.is_hub:
            return f"hf://{self.repository}@{self.version}"
        tag, digest = (f"{sign}{part}" if part else "" for sign, part in ((":", self.version), ("@", self.digest)))
        return f"{self.server}/{self.repository}{tag}{digest}"

    @property
    def url(self) -> str:
        """The server, as it is connected to."""
        host = self.server.removeprefix("oci://")
        scheme = "http" if urlsplit(f"//{host}").hostname in _HERE else "https"
        return self.server if self.is_hub else f"{scheme}://{host}"


@dataclass(frozen=True)
class Pulled:
    """What :func:`pull` left, and the reference that names exactly this again."""

    unpacked: Unpacked
    pinned: str


def parse_reference(text: str) -> Reference:
    """What a reference means; ``UsageError`` if it is none, ``MissingDependency`` if what reads such is missing."""
    if found := _HUB.fullmatch(text):
        try:
            from huggingface_hub import constants
        except ImportError as error:
            raise MissingDependency("huggingface_hub", "pull", "hf://") from error
        if constants.HF_HUB_OFFLINE:
            raise UsageError(f"HF_HUB_OFFLINE is set: {text} is not fetched. {_by_hand(text)}")
        return Reference(constants.ENDPOINT, found[1], found[2] or "main")
    if (found := _REGISTRY.fullmatch(text)) and (found[3] or found[4]):
        return Reference(f"oci://{found[1]}", found[2], found[3] or "", found[4] or "")
    forms = "hf://ORG/NAME, hf://ORG/NAME@REVISION, oci://HOST/REPOSITORY:TAG or oci://HOST/REPOSITORY@sha256:DIGEST"
    raise UsageError(f"{text} is no reference to a bundle; write {forms}")


def pull(
    reference: str | Reference,
    output: str | Path,
    *,
    key: str | Path | None = None,
    replace: bool = False,
    allow_older: bool = False,
    as_is: bool = False,
    allow_hosts: Collection[str] = (),
    limit_bytes: int = 8 << 30,
) -> Pulled:
    """Fetch a bundle and unpack it into ``output/NAME``, as :func:`~medseg.sharing.unpack` does with these arguments.

    On the hub, a repository holds one archive (``.zip``), or the files of a bundle. In a registry, the artifact has one
    layer whose title ends in ``.zip``. Logins are those of ``huggingface_hub`` (``HF_TOKEN``) and ``oras`` (Docker's).

    Parameters
    ----------
    reference
        ``hf://ORG/NAME[@REVISION]`` or ``oci://HOST/REPOSITORY[:TAG][@sha256:DIGEST]``.
    output, key, replace, allow_older, as_is
        As for :func:`~medseg.sharing.unpack`.
    allow_hosts
        Other hosts to which the server may redirect, by https.
    limit_bytes
        Refuse what is larger, packed or unpacked.

    Raises
    ------
    UsageError
        If the reference is none, its server cannot be reached, or there is nothing.
    UntrustedBundle
        If the server redirects elsewhere, sends something else than it states or the reference pins, or as ``unpack``.
    MissingDependency
        If the extra ``pull`` is not installed.
    """
    asked = parse_reference(reference) if isinstance(reference, str) else reference
    target = Path(output)
    folder = target / f"{PARTIAL}{secrets.token_hex(4)}"
    folder.mkdir(parents=True)
    archive = folder / "bundle.zip"
    try:
        from requests.exceptions import RequestException
        from urllib3.exceptions import HTTPError

        fetch = _from_hub if asked.is_hub else _from_registry
        try:
            found = fetch(asked, archive, allow_hosts, limit_bytes)
        except (RequestException, HTTPError, TimeoutError) as error:  # its text may hold a signed address
            why = f"cannot fetch from {asked.url} ({type(error).__name__})"
            raise UsageError(f"{why}; try again. {_by_hand(str(asked))}") from error
        made = unpack(
            archive, target, key=key, replace=replace, allow_older=allow_older, as_is=as_is, limit_bytes=limit_bytes
        )
        return Pulled(made, str(found))
    except ImportError as error:
        raise MissingDependency("oras", "pull", "fetching a bundle") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _by_hand(reference: str) -> str:
    return (
        f"Without network: fetch the archive of {reference} on another machine, carry it here, and open it with:"
        " medseg bundle unpack FILE -o bundles"
    )


def _guard(session: Any, reference: Reference, allow_hosts: Collection[str]) -> Any:
    """A session of ``requests`` that connects to the reference's server and to allowed hosts, wherever it is sent."""
    from requests.adapters import HTTPAdapter

    server = urlsplit(reference.url)

    class OneServer(HTTPAdapter):
        def send(self, request: Any, **options: Any) -> Any:
            parts = urlsplit(request.url)
            own = (parts.scheme, parts.netloc) == (server.scheme, server.netloc)
            allowed = own or (parts.scheme == "https" and parts.netloc in allow_hosts)
            if not allowed or not (parts.scheme == "https" or parts.hostname in _HERE):
                found = f"{reference.url} leads to {parts.scheme}://{parts.netloc}"
                raise UntrustedBundle(
                    f"{found}, which is not connected to; if this is where it keeps its files, give --allow-host"
                    f" {parts.netloc} (only by https)"
                )
            options["timeout"] = _TIMEOUT_S
            return super().send(request, **options)

    session.mount("https://", OneServer())
    session.mount("http://", OneServer())
    session.headers["User-Agent"] = "medseg"
    session.headers["Accept-Encoding"] = "identity"  # what is counted is what comes
    return session


def _checked(response: Any, reference: Reference) -> Any:
    """A response that holds what was asked for."""
    if response.status_code == 404:
        raise UsageError(f"{reference.url} has no {reference}, or does not show it to you; check the name")
    if response.status_code in (401, 403):
        login = "set HF_TOKEN" if reference.is_hub else "log in with docker, podman or oras"
        raise UsageError(f"{reference.url} does not give {reference} to you ({response.status_code}); {login}")
    response.raise_for_status()
    if (coding := response.headers.get("Content-Encoding") or "identity") != "identity":
        raise UntrustedBundle(f"{reference.url} packs its answer ({coding[:40]}) unasked, to any size; not fetched")
    return response


def _copy(response: Any, target: IO[bytes], size: int, sha256: str | None) -> None:
    """Write what a server sends, no more than it said, and compare it with the SHA-256 if there is one."""
    digest, count = hashlib.sha256(), 0
    for chunk in arriving(response.raw.read1, _TIMEOUT_S[1]):
        count += len(chunk)
        if count > size:
            break
        digest.update(chunk)
        target.write(chunk)
    if count != size:
        raise UntrustedBundle(f"the server sends {'more' if count > size else 'less'} than the {size} bytes it states")
    if sha256 and digest.hexdigest() != sha256:
        raise UntrustedBundle(f"what came has the SHA-256 {digest.hexdigest()}, expected {sha256}; not unpacked")


def _listed(response: Any, reference: Reference, form: Spec) -> tuple[Any, str]:
    """What a server's JSON says, and its SHA-256."""
    data = b""
    for chunk in arriving(response.raw.read1, _TIMEOUT_S[1]):
        data += chunk
        if len(data) > LARGEST_MANIFEST:
            raise UntrustedBundle(f"{reference.url} describes {reference} in more than {LARGEST_MANIFEST} bytes")
    try:
        content = parse_json(data)
        wrong = misfit(content, form)
    except ValueError as error:
        wrong = str(error)
    if wrong:
        raise UntrustedBundle(f"{reference.url} describes {reference} in an unknown form ({wrong}); is it a bundle?")
    return content, hashlib.sha256(data).hexdigest()


def _check_size(sizes: Sequence[int], limit_bytes: int) -> None:
    if sum(sizes) > limit_bytes or len(sizes) > MOST_FILES:
        found = f"it holds {sum(sizes)} bytes in {len(sizes)} files"
        raise UntrustedBundle(f"{found}, expected at most {limit_bytes} bytes in {MOST_FILES} files; not fetched")


def _from_hub(asked: Reference, archive: Path, allow_hosts: Collection[str], limit_bytes: int) -> Reference:
    """Fetch a repository's archive, or its files as one archive; the reference with the commit that they are of."""
    import requests
    from huggingface_hub import get_token

    session = _guard(requests.Session(), asked, allow_hosts)
    if token := get_token():  # its build_hf_headers would connect by itself, and tell versions
        session.headers["Authorization"] = f"Bearer {token}"

    def get(url: str) -> Any:
        return _checked(session.get(url, stream=True), asked)

    described = f"{asked.server}/api/models/{asked.repository}/revision/{quote(asked.version, safe='')}?blobs=true"
    content, _ = _listed(get(described), asked, _HUB_FORM)
    commit = content["sha"]
    if re.fullmatch(r"[0-9a-f]{40}", asked.version) and commit != asked.version:
        raise UntrustedBundle(f"{asked.url} gives the commit {commit} for {asked}; not fetched")
    files, is_bundle = _files_of(asked, content["siblings"])
    _check_size([file["size"] for file in files], limit_bytes)
    name = asked.repository.split("/")[1]

    def fetch(file: dict[str, Any], target: IO[bytes]) -> None:
        url = f"{asked.server}/{asked.repository}/resolve/{commit}/{quote(file['rfilename'])}"
        _copy(get(url), target, file["size"], (file.get("lfs") or {}).get("sha256"))

    if not is_bundle:
        with archive.open("xb") as handle:
            fetch(files[0], handle)
    else:
        with zipfile.ZipFile(archive, "x") as packed:
            for file in files:
                with packed.open(f"{name}/{file['rfilename']}", "w", force_zip64=True) as member:
                    fetch(file, member)
    return replace(asked, version=commit)


def _files_of(asked: Reference, listed: Sequence[dict[str, Any]]) -> tuple[list[dict[str, Any]], bool]:
    """What to fetch of a repository: a bundle's files (True), or its only archive."""
    files = [file for file in listed if not file["rfilename"].startswith(".git")]
    for file in files:
        path = PurePosixPath(file["rfilename"])
        if path.is_absolute() or str(path) != file["rfilename"]:
            raise UntrustedBundle(f"{asked} holds {file['rfilename']!r}, which is no plain name; not fetched")
    if any(file["rfilename"] == METADATA for file in files):
        return files, True
    archives = [file for file in files if re.fullmatch(r"[^/]+\.zip", file["rfilename"])]
    if len(archives) != 1:
        found = f"{asked} holds no {METADATA}, and {len(archives)} archives (.zip)"
        raise UsageError(f"{found}; expected a bundle's files, or one archive")
    return archives, False


def _from_registry(asked: Reference, archive: Path, allow_hosts: Collection[str], limit_bytes: int) -> Reference:
    """Fetch the archive of an artifact; the reference with the digest of its manifest."""
    from oras.provider import Registry
    from oras.utils import find_docker_config

    host = urlsplit(asked.url)
    registry = Registry(host.netloc, insecure=host.scheme == "http")
    _guard(registry.session, asked, allow_hosts)
    request: Callable[..., Any] = Registry.do_request.__wrapped__  # without its retries, which take minutes
    container = registry.get_container(str(asked).removeprefix("oci://"))
    if find_docker_config():
        registry.auth.load_configs(container)

    def get(url: str) -> Any:
        try:
            return _checked(request(registry, url, headers={"Accept": _MANIFEST_KIND}, stream=True), asked)
        except ValueError as error:
            raise UsageError(f"{asked.url} asks for a login to give {asked}; log in with docker or oras") from error

    content, sha256 = _listed(get(f"{asked.url}/{container.manifest_url().partition('/')[2]}"), asked, _REGISTRY_FORM)
    if asked.digest not in ("", f"sha256:{sha256}"):
        raise UntrustedBundle(f"{asked.url} gives a manifest of the SHA-256 {sha256} for {asked}; not fetched")
    titled = [(layer, (layer.get("annotations") or {}).get(_TITLE, "")) for layer in content["layers"]]
    archives = [layer for layer, title in titled if title.endswith(".zip") and _DIGEST.fullmatch(layer["digest"])]
    if len(archives) != 1:
        raise UsageError(f"{asked} holds {len(archives)} archives (.zip) by sha256, expected one; push it by oras push")
    layer = archives[0]
    _check_size([layer["size"]], limit_bytes)
    with archive.open("xb") as handle:
        blob = get(f"{asked.url}/{container.get_blob_url(layer['digest']).partition('/')[2]}")
        _copy(blob, handle, layer["size"], layer["digest"].removeprefix("sha256:"))
    return replace(asked, digest=f"sha256:{sha256}")
