"""Bundles from a hub and a registry on this machine: only from there, no more than stated, and unpacked like others."""

from __future__ import annotations

import hashlib
import json
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from medseg.cli import bundle as bundle_command
from medseg.cli.main import app
from medseg.errors import UntrustedBundle, UsageError
from medseg.sharing import create_key_pair, pack
from medseg.sharing.pull import parse_reference, pull
from tests.bundle.sample import SAMPLE_NAME
from tests.sharing.hub import COMMIT, Hub, hub

assert bundle_command
for _module in ("huggingface_hub", "oras"):
    pytest.importorskip(_module, reason="the extra pull is not installed")

_NAME = f"site/{SAMPLE_NAME}"


@pytest.fixture(scope="module")
def packed(pristine_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """An archive, and the public key of its sender."""
    folder = tmp_path_factory.mktemp("packed")
    private, public = create_key_pair(folder / "site.key")
    return pack(pristine_bundle, folder / "bundle.zip", key=private).path, public


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, packed: tuple[Path, Path]) -> Iterator[Hub]:
    """A hub with the sample bundle as an archive, which asks for the token ``secret``."""
    from huggingface_hub import constants

    with hub() as running:
        monkeypatch.setattr(constants, "ENDPOINT", running.url)
        monkeypatch.setenv("HF_TOKEN", "secret-token")
        running.repositories[_NAME] = {".gitattributes": b"*.zip lfs", "bundle.zip": packed[0].read_bytes()}
        yield running


def test_an_archive_comes_from_the_hub(server: Hub, packed: tuple[Path, Path], tmp_path: Path) -> None:
    found = pull(f"hf://{_NAME}", tmp_path, key=packed[1])
    assert found.pinned == f"hf://{_NAME}@{COMMIT}"
    assert found.unpacked.authentic
    assert (tmp_path / SAMPLE_NAME / "models" / "model.safetensors").is_file()
    assert [path.name for path in tmp_path.iterdir()] == [SAMPLE_NAME]
    assert {token for _, token in server.asked} == {"Bearer secret-token"}
    assert all(".gitattributes" not in path for path, _ in server.asked)


def test_the_files_of_a_bundle_come_from_the_hub(server: Hub, bundle: Path, tmp_path: Path) -> None:
    files = {str(file.relative_to(bundle)): file.read_bytes() for file in bundle.rglob("*") if file.is_file()}
    server.repositories[_NAME] = {".gitattributes": b"", **files}
    with pytest.raises(UntrustedBundle, match="--as-is"):
        pull(f"hf://{_NAME}@main", tmp_path / "out")
    assert not any((tmp_path / "out").iterdir())
    found = pull(f"hf://{_NAME}@{COMMIT}", tmp_path / "out", as_is=True)
    assert found.unpacked.path.name == SAMPLE_NAME
    assert (found.unpacked.path / "models" / "model.pt").read_bytes() == files["models/model.pt"]


def test_a_packed_answer_is_not_unpacked(server: Hub, tmp_path: Path) -> None:
    server.coding = "gzip"
    with pytest.raises(UntrustedBundle, match="packs its answer"):
        pull(f"hf://{_NAME}", tmp_path / "out")
    assert not any((tmp_path / "out").iterdir())


def test_an_answer_that_drips_is_not_waited_for(server: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("medseg.sharing.pull._TIMEOUT_S", (5, 0.3))
    server.pause_s = 0.05
    with pytest.raises(UsageError, match=r"\(TimeoutError\); try again"):
        pull(f"hf://{_NAME}", tmp_path / "out")
    assert not any((tmp_path / "out").iterdir())


def _evil(name: str) -> dict[str, Any]:
    return {"siblings": [{"rfilename": name, "size": 4}, {"rfilename": "configs/metadata.json", "size": 2}]}


@pytest.mark.parametrize(
    ("lies", "sent", "why"),
    [
        ({"siblings": [{"rfilename": "bundle.zip", "size": 5}]}, b"", "more than the 5 bytes"),
        ({"siblings": [{"rfilename": "bundle.zip", "size": 10**7}]}, b"", "less than the 10000000 bytes"),
        ({"siblings": [{"rfilename": "bundle.zip", "size": 10**15}]}, b"", "expected at most"),
        ({"siblings": [{"rfilename": "a", "size": 0}] * 10_001 + _evil("b")["siblings"]}, b"", "10000 files"),
        ({"siblings": [{"rfilename": "a.txt", "size": 5}]}, b"", "0 archives"),
        ({"siblings": "all"}, b"", "unknown form"),
        ({"sha": "f" * 40}, b"", "gives the commit f"),
        ({}, b"x" * 20, "less than"),
    ],
)
def test_what_lies_is_not_kept(lies: Any, sent: bytes, why: str, server: Hub, tmp_path: Path) -> None:
    server.lies = lies
    if sent:
        server.sent["bundle.zip"] = sent
    with pytest.raises((UntrustedBundle, UsageError), match=why):
        pull(f"hf://{_NAME}@{COMMIT}", tmp_path / "out")
    assert not any((tmp_path / "out").iterdir())


@pytest.mark.parametrize("name", ["../evil.py", "configs/../../evil", "/etc/evil"])
def test_names_outside_the_bundle_are_refused(name: str, server: Hub, tmp_path: Path) -> None:
    server.repositories[_NAME] |= {name: b"evil", "configs/metadata.json": b"{}"}
    server.lies = _evil(name)
    with pytest.raises((UntrustedBundle, UsageError)):
        pull(f"hf://{_NAME}", tmp_path / "out", as_is=True)
    assert not any((tmp_path / "out").iterdir())
    assert not list(tmp_path.rglob("evil*"))


def test_another_sender_changed_bytes_and_code_are_refused(server: Hub, bundle: Path, tmp_path: Path) -> None:
    other = create_key_pair(tmp_path / "other.key")[1]
    with pytest.raises(UntrustedBundle, match="is signed by the key"):
        pull(f"hf://{_NAME}", tmp_path / "out", key=other)
    data = bytearray(server.repositories[_NAME]["bundle.zip"])
    data[len(data) // 2] ^= 1
    server.repositories[_NAME]["bundle.zip"] = bytes(data)
    with pytest.raises(UntrustedBundle):
        pull(f"hf://{_NAME}", tmp_path / "out")
    assert not any((tmp_path / "out").iterdir())


def test_a_redirect_elsewhere_is_refused_and_gets_no_token(server: Hub, tmp_path: Path) -> None:
    with hub() as elsewhere:
        for place in (f"{elsewhere.url}/file", "http://store.invalid/file", "https://store.invalid/file"):
            server.redirect = place
            with pytest.raises(UntrustedBundle, match="--allow-host"):
                pull(f"hf://{_NAME}", tmp_path / "out")
        server.redirect = f"{elsewhere.url}/file"  # by http: not even if it is allowed
        with pytest.raises(UntrustedBundle, match="only by https"):
            pull(f"hf://{_NAME}", tmp_path / "out", allow_hosts=[elsewhere.url.removeprefix("http://")])
        assert elsewhere.asked == []


def test_where_there_is_no_network_the_way_by_hand_is_told(server: Hub, tmp_path: Path) -> None:
    from huggingface_hub import constants

    with pytest.raises(UsageError, match="check the name"):
        pull("hf://site/absent", tmp_path)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # nobody listens there
        with pytest.raises(UsageError, match="medseg bundle unpack FILE") as told:
            pull(f"oci://127.0.0.1:{taken.getsockname()[1]}/a/b:1", tmp_path)
    assert "secret" not in str(told.value)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(constants, "HF_HUB_OFFLINE", True)
        with pytest.raises(UsageError, match="HF_HUB_OFFLINE"):
            pull(f"hf://{_NAME}", tmp_path)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    "text",
    ["https://a/b", "hf://a", "hf://a/b/c", "oci://host/repo", "oci://host/../b@sha256:12", "oci://u:p@host/a:1", ""],
)
def test_what_is_no_reference_is_told(text: str) -> None:
    with pytest.raises(UsageError, match="is no reference"):
        parse_reference(text)


def test_the_command_fetches_behind_its_wall(server: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    arguments = ["bundle", "pull", f"hf://{_NAME}", "-o", str(tmp_path / "out"), "--json", "-vv"]
    done = subprocess.run([sys.executable, "-m", "medseg", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    assert facts["pinned"].endswith(COMMIT)
    assert facts["signed_by"]
    assert not facts["authentic"]
    assert "secret-token" not in done.stdout + done.stderr


# --- an OCI registry ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """``HOST:PORT`` of Debian's registry on this machine."""
    program = shutil.which("docker-registry")
    if program is None:
        pytest.skip("docker-registry is not installed: apt-get install docker-registry")
    folder = tmp_path_factory.mktemp("registry")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        place = f"127.0.0.1:{free.getsockname()[1]}"
    config = {
        "version": 0.1,
        "log": {"level": "error", "accesslog": {"disabled": True}},
        "storage": {"filesystem": {"rootdirectory": str(folder / "data")}},
        "http": {"addr": place},
    }
    (folder / "config.json").write_text(json.dumps(config))
    with (folder / "log").open("wb") as log:
        running = subprocess.Popen([program, "serve", str(folder / "config.json")], stdout=log, stderr=log)
    try:
        host, port = place.split(":")
        deadline = time.monotonic() + 10
        while True:
            try:
                socket.create_connection((host, int(port)), 1).close()
                break
            except OSError:
                assert time.monotonic() < deadline, (folder / "log").read_text()
                assert running.poll() is None, (folder / "log").read_text()
                time.sleep(0.05)
        yield place
    finally:
        running.terminate()
        running.wait(10)


@pytest.fixture
def pushed(registry: str, packed: tuple[Path, Path], tmp_path: Path) -> str:
    """The reference of the sample bundle in a registry."""
    _push(f"{registry}/models/sphere:0.1.0", Path(shutil.copy(packed[0], tmp_path / f"{SAMPLE_NAME}.zip")))
    return f"oci://{registry}/models/sphere:0.1.0"


def _push(target: str, file: Path) -> None:
    from oras.client import OrasClient

    client = OrasClient(hostname=target.partition("/")[0], insecure=True)
    assert client.push(target, files=[str(file)], disable_path_validation=True).status_code == 201


def test_an_archive_comes_from_a_registry(pushed: str, packed: tuple[Path, Path], tmp_path: Path) -> None:
    found = pull(pushed, tmp_path / "out", key=packed[1])
    assert found.unpacked.authentic
    assert found.pinned.startswith(f"{pushed}@sha256:")
    again = pull(found.pinned.replace(":0.1.0@", "@"), tmp_path / "again")
    assert again.unpacked.path.is_dir()
    facts = CliRunner().invoke(app, ["bundle", "pull", pushed, "-o", str(tmp_path / "out")])
    assert facts.exit_code == 2
    assert "--replace" in facts.stderr


def test_another_digest_is_refused(pushed: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="check the name"):
        pull(pushed.replace(":0.1.0", f"@sha256:{'0' * 64}"), tmp_path / "out")
    with pytest.raises(UsageError, match="check the name"):
        pull(f"{pushed}0", tmp_path / "out")
    with pytest.raises(UntrustedBundle, match="expected at most"):
        pull(pushed, tmp_path / "out", limit_bytes=100)
    assert not any((tmp_path / "out").iterdir())


def test_an_artifact_without_an_archive_is_told(registry: str, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("no bundle")
    target = f"{registry}/models/text:1"
    _push(target, tmp_path / "text.txt")
    with pytest.raises(UsageError, match="holds 0 archives"):
        pull(f"oci://{target}", tmp_path / "out")


def test_a_registry_that_gives_another_manifest_than_pinned_is_refused(server: Hub, tmp_path: Path) -> None:
    def lying(path: str) -> tuple[int, bytes, str]:
        return 200, b'{"layers": []}', ""

    server.answer = lying  # type: ignore[method-assign]
    host = server.url.removeprefix("http://")
    expected = hashlib.sha256(b'{"layers": []}').hexdigest()
    with pytest.raises(UntrustedBundle, match=expected):
        pull(f"oci://{host}/a/b@sha256:{'1' * 64}", tmp_path)
