"""Bundles of the zoo's kind are taken in as data, and the weights that they list are fetched and checked."""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import http.server
import io
import ipaddress
import json
import ssl
import sys
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from medseg.bundle import Bundle
from medseg.bundle import large_files as large_files_module
from medseg.conversion.imported import Imported, ImportOptions
from medseg.conversion.zoo import import_zoo, is_zoo
from medseg.errors import BundleError, MedsegError, UntrustedBundle, UsageError
from medseg.workflows.importing import import_bundle

METADATA = {
    "version": "0.2.0",
    "monai_version": "1.4.0",
    "optional_packages_version": {"einops": "0.7.0", "torch": "2.4.0"},
    "network_data_format": {
        "inputs": {"image": {"type": "image", "num_channels": 1, "spatial_shape": [16, 16, 16]}},
        "outputs": {"pred": {"type": "image", "num_channels": 2, "channel_def": {"0": "background", "1": "spleen"}}},
    },
}
UNET = {"_target_": "UNet", "spatial_dims": 3, "in_channels": 1, "out_channels": 2, "channels": [4, 8], "strides": [2]}
OWN = {"_target_": "scripts.networks.Net", "out_channels": 2}


def write(folder: Path, listed: Any = None, network: Any = UNET) -> Path:
    """A bundle of the zoo's kind without its weights."""
    config = {"bundle_root": ".", "network_def": network, "preprocessing": {"_target_": "Compose", "transforms": []}}
    files = {
        "LICENSE": "free",
        "configs/metadata.json": json.dumps(METADATA),
        "configs/inference.json": json.dumps(config, indent=1),
        "scripts/__init__.py": "",
        "scripts/networks.py": "raise SystemExit('the code of the bundle ran')\n",
        "docs/how_to.ipynb": "{}",
        "models/model.ts": "code",
    }
    if listed is not None:
        files["large_files.yml"] = json.dumps({"large_files": listed})
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def packed(folder: Path, path: Path, **more: str) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(folder.rglob("*")):
            if file.is_file():
                archive.write(file, f"{folder.name}/{file.relative_to(folder)}")
        for name, text in more.items():
            archive.writestr(name, text)
    return path


def weights() -> bytes:
    buffer = io.BytesIO()
    torch.manual_seed(0)
    torch.save({"conv.weight": torch.rand(4, 1, 3, 3, 3)}, buffer)
    return buffer.getvalue()


def take(source: Path, tmp_path: Path, *, fetch: bool = False, name: str | None = None) -> Imported:
    return import_zoo(source, tmp_path / "out", ImportOptions(name=name, fetch=fetch))


def nothing_left(tmp_path: Path) -> bool:
    return not any((tmp_path / "out").rglob("*"))


# --- taken in ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("as_zip", [False, True], ids=["folder", "zip"])
def test_a_bundle_is_taken_in_less_what_labelling_never_reads(tmp_path: Path, as_zip: bool) -> None:
    folder = write(tmp_path / "spleen_ct_segmentation")
    source = packed(folder, tmp_path / "spleen_v0.2.0.zip") if as_zip else folder
    assert is_zoo(source)
    made = take(source, tmp_path)
    assert made.path == tmp_path / "out" / "spleen_ct_segmentation"
    assert Bundle.open(made.path).labels == {1: "spleen"}
    assert not (made.path / "models/model.ts").exists()
    assert not (made.path / "docs/how_to.ipynb").exists()
    assert (made.path / "scripts/networks.py").is_file(), "it may be needed, once somebody trusts it"
    assert any("docs/how_to.ipynb (a notebook), models/model.ts (TorchScript code)" in note for note in made.notes)
    assert [entry.name for entry in (tmp_path / "out").iterdir()] == ["spleen_ct_segmentation"]


def test_links_and_what_is_not_copied_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write(tmp_path / "spleen")
    (tmp_path / "secret").write_text("secret")
    (folder / "docs" / "secret.md").symlink_to(tmp_path / "secret")
    made = take(folder, tmp_path)
    assert any("docs/secret.md (a symbolic link)" in note for note in made.notes)
    assert not (made.path / "docs" / "secret.md").exists()
    monkeypatch.setattr("medseg.bundle.audit_files._MOST_FILES", 3)
    with pytest.raises(UntrustedBundle, match="more than 3 files"):
        import_zoo(folder, tmp_path / "more", ImportOptions())
    assert not any((tmp_path / "more").iterdir())


def test_code_that_the_network_needs_is_named_by_file_and_line(tmp_path: Path) -> None:
    made = take(write(tmp_path / "spleen", network=OWN), tmp_path)
    told = "\n".join(made.notes)
    assert "configs/inference.json, line 4, names scripts.networks.Net: scripts/networks.py of the bundle" in told
    assert "medseg infer --trust-bundle runs it" in told
    assert "scripts" not in sys.modules


def test_what_is_no_bundle_is_told_apart(tmp_path: Path) -> None:
    (tmp_path / "plain").mkdir()
    (tmp_path / "text.zip").write_text("no zip")
    assert not any(is_zoo(tmp_path / name) for name in ("plain", "text.zip", "missing"))
    folder = write(tmp_path / "spleen")
    with pytest.raises(UsageError, match="was packed by medseg"):
        take(packed(folder, tmp_path / "own.zip", **{"spleen/manifest.json": "{}"}), tmp_path)


@pytest.mark.parametrize("name", ["spleen/../../x.txt", "/x.txt", "other/x.txt", "spleen/a\\b"])
def test_a_path_out_of_the_folder_is_refused(tmp_path: Path, name: str) -> None:
    source = packed(write(tmp_path / "spleen"), tmp_path / "spleen.zip", **{name: "x"})
    with pytest.raises(UntrustedBundle, match="not unpacked"):
        take(source, tmp_path)
    assert nothing_left(tmp_path)


@pytest.mark.parametrize(("at", "value"), [(-60, 255), (-200, 7), (60, 255), (100, 0)])
def test_a_zip_with_a_wrong_byte_is_refused_or_read(tmp_path: Path, at: int, value: int) -> None:
    path = packed(write(tmp_path / "spleen_ct_segmentation"), tmp_path / "bundle.zip")
    data = bytearray(path.read_bytes())
    data[at] = value
    path.write_bytes(data)
    try:
        import_bundle(path, tmp_path / "out")
    except MedsegError:
        assert nothing_left(tmp_path)


def test_a_damaged_zip_and_a_taken_name_leave_nothing(tmp_path: Path) -> None:
    source = packed(write(tmp_path / "spleen"), tmp_path / "spleen.zip")
    damaged = bytearray(source.read_bytes())
    damaged[60:90] = b"x" * 30
    (tmp_path / "damaged.zip").write_bytes(damaged)
    with pytest.raises(UntrustedBundle):
        take(tmp_path / "damaged.zip", tmp_path)
    assert nothing_left(tmp_path)
    take(source, tmp_path)
    with pytest.raises(UsageError, match="exists already; give another --name"):
        take(source, tmp_path)
    assert take(source, tmp_path, name="spleen_2").path.name == "spleen_2"


# --- weights that lie elsewhere ---------------------------------------------------------------------------------------

Answer = Callable[[http.server.BaseHTTPRequestHandler], None]


class _Site:
    """A server on loopback; what it answers, by path."""

    def __init__(self, scheme: str, port: int) -> None:
        self.url, self.answers = f"{scheme}://127.0.0.1:{port}", dict[str, Answer]()
        self.asked: list[str] = []


def _serve(context: ssl.SSLContext | None) -> Iterator[_Site]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            served.asked.append(self.path)
            served.answers.get(self.path, lambda handler: handler.send_error(404))(self)

        def log_message(self, *_: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    if context is not None:
        server.socket = context.wrap_socket(server.socket, server_side=True)
    served = _Site("http" if context is None else "https", server.server_address[1])
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield served
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture
def plain_site() -> Iterator[_Site]:
    yield from _serve(None)


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[_Site]:
    """One whose certificate this process trusts, as a hospital's own authority would be trusted."""
    certificate = _certificate(tmp_path / "site.pem")
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    for name in ("https_proxy", "HTTPS_PROXY"):
        monkeypatch.delenv(name, raising=False)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    yield from _serve(context)


def _certificate(path: Path) -> Path:
    key, name = ec.generate_private_key(ec.SECP256R1()), x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "site")])
    begin = datetime.datetime.now(datetime.UTC) - datetime.timedelta(hours=1)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(begin)
        .not_valid_after(begin + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path.write_bytes(private + made.public_bytes(serialization.Encoding.PEM))
    return path


def gives(data: bytes, stated: int | None = None) -> Answer:
    def answer(handler: http.server.BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(data) if stated is None else stated))
        handler.end_headers()
        handler.wfile.write(data)

    return answer


def redirects(url: str) -> Answer:
    def answer(handler: http.server.BaseHTTPRequestHandler) -> None:
        handler.send_response(302)
        handler.send_header("Location", url)
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    return answer


def entry(site: _Site, kind: str = "sha256", path: str = "models/model.pt", data: bytes | None = None) -> Any:
    made = hashlib.new(kind, weights() if data is None else data).hexdigest() if kind else ""
    return {"path": path, "url": f"{site.url}/model.pt", "hash_val": made, "hash_type": kind}


@pytest.mark.parametrize("kind", ["sha256", "md5", ""])
def test_listed_weights_are_fetched_and_checked(tmp_path: Path, site: _Site, kind: str) -> None:
    site.answers = {"/model.pt": redirects(f"{site.url}/far/model.pt"), "/far/model.pt": gives(weights())}
    made = take(write(tmp_path / "spleen", [entry(site, kind)]), tmp_path, fetch=True)
    assert (made.path / "models/model.pt").read_bytes() == weights()
    told = next(note for note in made.notes if "was fetched" in note)
    assert ("states no hash" in told) == (kind == "")
    assert hashlib.sha256(weights()).hexdigest() in told
    assert Bundle.open(made.path).weight_files == ["models/model.pt"]


def test_nothing_is_fetched_unasked_and_the_instruction_is_complete(tmp_path: Path, site: _Site) -> None:
    made = take(write(tmp_path / "spleen", [entry(site)]), tmp_path)
    assert site.asked == []
    told = next(note for note in made.notes if "is missing" in note)
    for part in (
        "--fetch",
        f"{site.url}/model.pt",
        hashlib.sha256(weights()).hexdigest(),
        "models/model.pt in the bundle's folder",
    ):
        assert part in told
    with pytest.raises(MedsegError, match=f"no weights.*fetch {site.url}/model.pt"):
        Bundle.open(made.path).load_network()


def test_weights_that_are_there_are_not_fetched_again(tmp_path: Path, site: _Site) -> None:
    folder = write(tmp_path / "spleen", [entry(site)])
    (folder / "models/model.pt").write_bytes(weights())
    take(folder, tmp_path, fetch=True)
    assert site.asked == []


BAD: dict[str, tuple[Answer, str]] = {
    "wrong hash": (gives(weights() + b"x"), "has the sha256 sum"),
    "truncated": (gives(weights()[:-9], stated=len(weights())), "bytes came|IncompleteRead"),
    "gone": (lambda handler: handler.send_error(404), "404"),
    "to a file": (redirects("file:///etc/passwd"), "is not allowed"),
    "round and round": (lambda handler: redirects(handler.path)(handler), "redirect"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_not_the_promised_file_never_gets_its_name(tmp_path: Path, site: _Site, name: str) -> None:
    site.answers["/model.pt"], expected = BAD[name]
    with pytest.raises(MedsegError, match=expected):
        take(write(tmp_path / "spleen", [entry(site)]), tmp_path, fetch=True)
    assert nothing_left(tmp_path)


def test_a_redirect_to_http_is_not_followed(tmp_path: Path, site: _Site, plain_site: _Site) -> None:
    plain_site.answers["/model.pt"] = gives(weights())
    site.answers["/model.pt"] = redirects(f"{plain_site.url}/model.pt")
    with pytest.raises(UsageError, match=r"which is not https.*; without --fetch, fetch .* on a machine"):
        take(write(tmp_path / "spleen", [entry(site)]), tmp_path, fetch=True)
    assert plain_site.asked == []


def test_a_list_that_leads_elsewhere_is_told_and_not_followed(tmp_path: Path, site: _Site, plain_site: _Site) -> None:
    listed = [entry(plain_site), entry(site, path="../model.pt"), entry(site, path="configs/train.json")]
    made = take(write(tmp_path / "spleen", listed), tmp_path, fetch=True)
    assert (site.asked, plain_site.asked) == ([], [])
    assert sum("not fetched" in note for note in made.notes) == 3


@pytest.mark.parametrize("path", ["models/model.pt", "models//./model.pt", "models/Model.pt"])
def test_a_file_that_is_listed_twice_is_not_fetched_without_its_hash(tmp_path: Path, site: _Site, path: str) -> None:
    with pytest.raises(BundleError, match="twice, expected one address for each file"):
        take(write(tmp_path / "spleen", [entry(site), entry(site, "", path)]), tmp_path, fetch=True)
    assert site.asked == []
    assert nothing_left(tmp_path)


@pytest.mark.parametrize("data", [b"<html>please sign in</html>", b"\x80\x04cos\nsystem\n."], ids=["page", "pickle"])
def test_a_web_page_or_a_pickle_is_no_file_of_weights(tmp_path: Path, site: _Site, data: bytes) -> None:
    site.answers["/model.pt"] = gives(data)
    with pytest.raises(UntrustedBundle, match="cannot be used as weights"):
        take(write(tmp_path / "spleen", [entry(site, data=data)]), tmp_path, fetch=True)
    assert nothing_left(tmp_path)


def test_an_unknown_authority_and_endless_answers_are_refused(
    tmp_path: Path, site: _Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.answers["/model.pt"] = gives(weights())
    file = large_files_module.LargeFile("models/model.pt", f"{site.url}/model.pt")
    with pytest.raises(UsageError, match="larger than 100 bytes"):
        large_files_module.fetch(file, tmp_path / "spleen", limit_bytes=100)
    monkeypatch.delenv("SSL_CERT_FILE")
    with pytest.raises(UsageError, match="certificate verify failed"):
        large_files_module.fetch(file, tmp_path / "spleen")
    assert not list((tmp_path / "spleen").rglob("*.pt"))


def test_an_answer_that_drips_is_not_waited_for(tmp_path: Path, site: _Site, monkeypatch: pytest.MonkeyPatch) -> None:
    def drips(handler: http.server.BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", "40")
        handler.end_headers()
        with contextlib.suppress(OSError):  # nobody listens any more
            for _ in range(40):
                handler.wfile.write(b"x")
                time.sleep(0.05)

    site.answers["/model.pt"] = drips
    monkeypatch.setattr(large_files_module, "_TIMEOUT_S", 0.5)
    with pytest.raises(UsageError, match="too slowly to come to an end"):
        large_files_module.fetch(
            large_files_module.LargeFile("models/model.pt", f"{site.url}/model.pt"), tmp_path / "spleen"
        )
    assert not list((tmp_path / "spleen").rglob("*.pt"))


def test_packages_that_the_metadata_state_are_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = Bundle.open(write(tmp_path / "spleen"))
    from importlib import metadata

    def version(name: str) -> str:
        if name == "einops":
            raise metadata.PackageNotFoundError
        return "1"

    monkeypatch.setattr("medseg.bundle.packages.metadata.version", version)
    assert bundle.packages == {"einops": "0.7.0 (not installed)", "torch": "2.4.0"}
