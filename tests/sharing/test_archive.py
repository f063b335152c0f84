"""Packing is deterministic and complete; unpacking refuses whatever is not exactly what was packed."""

from __future__ import annotations

import hashlib
import json
import os
import stat
import struct
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from medseg.bundle import Bundle, audit
from medseg.bundle.findings import blocks
from medseg.errors import MedsegError, UntrustedBundle, UsageError
from medseg.sharing import create_key_pair, pack, unpack, verify
from tests.bundle.sample import SAMPLE_NAME, read_config, write_config


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return create_key_pair(tmp_path_factory.mktemp("keys") / "site.key")


@pytest.fixture(scope="module")
def archive(pristine_bundle: Path, keys: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sample bundle, packed and signed; do not change it."""
    return pack(pristine_bundle, tmp_path_factory.mktemp("packed") / "sample.zip", key=keys[0]).path


def _rewrite(source: Path, target: Path, change: Callable[[dict[str, bytes]], None]) -> Path:
    """A copy of an archive with changed members."""
    with zipfile.ZipFile(source) as original:
        members = {info.filename: original.read(info) for info in original.infolist()}
    change(members)
    with zipfile.ZipFile(target, "w") as changed:
        for name, data in members.items():
            changed.writestr(name, data)
    return target


def _assert_refused(archive: Path, tmp_path: Path, match: str, **options: Path | bool | int) -> None:
    output = tmp_path / "out"
    with pytest.raises(MedsegError, match=match):
        unpack(archive, output, **options)  # type: ignore[arg-type]
    assert list(output.glob("*")) == [], "nothing may be left behind"


def test_round_trip(archive: Path, keys: tuple[Path, Path], pristine_bundle: Path, tmp_path: Path) -> None:
    found = unpack(archive, tmp_path, key=keys[1])

    assert found.path == tmp_path / SAMPLE_NAME
    assert found.authentic
    assert blocks(verify(found.path)) == []
    image = torch.rand(1, 1, 16, 16, 16)
    with torch.inference_mode():
        sent, received = (Bundle.open(path).load_network()(image) for path in (pristine_bundle, found.path))
    assert torch.equal(sent, received)
    provenance = json.loads((found.path / "provenance.json").read_text())
    datalist = (found.path / "configs" / "datalist.json").read_bytes()
    assert provenance["datalist_sha256"] == hashlib.sha256(datalist).hexdigest()


def test_the_same_bundle_gives_the_same_bytes(bundle: Path, archive: Path, keys: tuple[Path, Path]) -> None:
    for file in bundle.rglob("*"):
        os.utime(file, (1, 1))
    (bundle / "LICENSE").chmod(0o600)
    again = pack(bundle, bundle.parent / "again.zip", key=keys[0])
    assert again.path.read_bytes() == archive.read_bytes()


def test_packing_what_was_unpacked_gives_the_same_bytes(archive: Path, keys: tuple[Path, Path], tmp_path: Path) -> None:
    unpacked = unpack(archive, tmp_path)
    assert pack(unpacked.path, tmp_path / "again.zip", key=keys[0]).path.read_bytes() == archive.read_bytes()


def test_packing_leaves_the_bundle_as_it_was(bundle: Path, tmp_path: Path) -> None:
    before = sorted(path.relative_to(bundle).as_posix() for path in bundle.rglob("*"))
    (bundle / "runs").mkdir()
    (bundle / "runs" / "log.txt").write_text("left by a run")
    packed = pack(bundle, tmp_path / "sample.zip")
    assert "models/model.safetensors" in packed.files
    assert not any(name.startswith("runs/") for name in packed.files)
    assert before == sorted(
        path.relative_to(bundle).as_posix() for path in bundle.rglob("*") if "runs" not in path.parts
    )


def test_a_bundle_that_fails_the_audit_is_not_packed(bundle: Path, tmp_path: Path) -> None:
    config = read_config(bundle, "inference")
    config["output_dir"] = "$open('x', 'w')"
    write_config(bundle, "inference", config)
    with pytest.raises(UntrustedBundle):
        pack(bundle, tmp_path / "sample.zip")
    assert not (tmp_path / "sample.zip").exists()


def test_any_flipped_byte_of_a_member_is_noticed(archive: Path, keys: tuple[Path, Path], tmp_path: Path) -> None:
    with zipfile.ZipFile(archive) as source:
        names = source.namelist()
    for index, name in enumerate(names):

        def flip(members: dict[str, bytes], name: str = name) -> None:
            data = bytearray(members[name])
            data[len(data) // 2] ^= 1
            members[name] = bytes(data)

        _assert_refused(_rewrite(archive, tmp_path / f"{index}.zip", flip), tmp_path, ".", key=keys[1])


def test_a_config_changed_with_its_sum_breaks_the_signature(
    archive: Path, keys: tuple[Path, Path], tmp_path: Path
) -> None:
    def change(members: dict[str, bytes]) -> None:
        name = f"{SAMPLE_NAME}/configs/train.json"
        members[name] = members[name].replace(b'"epochs": 2', b'"epochs": 3')
        manifest = json.loads(members[f"{SAMPLE_NAME}/manifest.json"])
        manifest["files"]["configs/train.json"]["sha256"] = hashlib.sha256(members[name]).hexdigest()
        members[f"{SAMPLE_NAME}/manifest.json"] = json.dumps(manifest).encode()

    changed = _rewrite(archive, tmp_path / "changed.zip", change)
    _assert_refused(changed, tmp_path, "signature does not fit", key=keys[1])
    _assert_refused(changed, tmp_path, "signature does not fit")


def test_another_key_is_refused(archive: Path, tmp_path: Path) -> None:
    _, other = create_key_pair(tmp_path / "other.key")
    _assert_refused(archive, tmp_path, "expected", key=other)


def test_an_unsigned_archive_needs_no_key_but_fails_with_one(
    bundle: Path, keys: tuple[Path, Path], tmp_path: Path
) -> None:
    packed = pack(bundle, tmp_path / "unsigned.zip")
    _assert_refused(packed.path, tmp_path, "not signed", key=keys[1])
    found = unpack(packed.path, tmp_path / "out")
    assert found.signed_by is None
    assert not found.authentic


@pytest.mark.parametrize(
    ("name", "match"),
    [
        (f"{SAMPLE_NAME}/../../escaped.txt", "outside"),
        ("/etc/escaped.txt", "outside"),
        ("escaped.txt", "outside"),
        (f"{SAMPLE_NAME}/..\\escaped.txt", "plain name"),
        (f"{SAMPLE_NAME}/C:escaped.txt", "plain name"),
        (f"{SAMPLE_NAME}/configs/INFERENCE.json", "twice"),
        (f"{SAMPLE_NAME}/configs/inferenc\u0435.json", "plain name"),
        ("other/file.txt", "2 folders"),
        (f"{SAMPLE_NAME}/extra.txt", "does not list"),
    ],
)
def test_strange_members_are_refused(name: str, match: str, archive: Path, tmp_path: Path) -> None:
    def add(members: dict[str, bytes]) -> None:
        members[name] = b"x"

    _assert_refused(_rewrite(archive, tmp_path / "changed.zip", add), tmp_path, match)
    assert not list(tmp_path.parent.glob("escaped*"))


def test_a_missing_member_is_refused(archive: Path, tmp_path: Path) -> None:
    def remove(members: dict[str, bytes]) -> None:
        del members[f"{SAMPLE_NAME}/LICENSE"]

    _assert_refused(_rewrite(archive, tmp_path / "changed.zip", remove), tmp_path, "lacks 'LICENSE'")


@pytest.mark.filterwarnings("ignore:Duplicate name:UserWarning")
def test_a_doubled_member_is_refused(archive: Path, tmp_path: Path) -> None:
    changed = _rewrite(archive, tmp_path / "changed.zip", lambda members: None)
    with zipfile.ZipFile(changed, "a") as target:
        target.writestr(f"{SAMPLE_NAME}/LICENSE", b"other")
    _assert_refused(changed, tmp_path, "twice")


def test_a_link_is_refused(archive: Path, tmp_path: Path) -> None:
    changed = _rewrite(archive, tmp_path / "changed.zip", lambda members: None)
    with zipfile.ZipFile(changed, "a") as target:
        link = zipfile.ZipInfo(f"{SAMPLE_NAME}/link")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        target.writestr(link, "/etc/passwd")
    _assert_refused(changed, tmp_path, "not a plain file")


def test_a_bomb_is_refused(archive: Path, tmp_path: Path) -> None:
    changed = _rewrite(archive, tmp_path / "changed.zip", lambda members: None)
    with zipfile.ZipFile(changed, "a", zipfile.ZIP_DEFLATED) as target:
        target.writestr(f"{SAMPLE_NAME}/bomb.txt", bytes(20 << 20))
    _assert_refused(changed, tmp_path, "a bomb")
    _assert_refused(archive, tmp_path, "expected at most 1000 bytes", limit_bytes=1000)


@pytest.mark.parametrize("keep", [10, 1000, -30])
def test_a_truncated_archive_is_refused(keep: int, archive: Path, tmp_path: Path) -> None:
    (tmp_path / "short.zip").write_bytes(archive.read_bytes()[:keep])
    _assert_refused(tmp_path / "short.zip", tmp_path, "damaged")


def test_a_plain_zip_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "plain.zip", "w") as target:
        target.writestr("name/file.txt", "x")
    _assert_refused(tmp_path / "plain.zip", tmp_path, "not packed by medseg")


def test_code_in_a_well_packed_archive_is_refused(archive: Path, tmp_path: Path) -> None:
    """An attacker can write a sound manifest; the audit still runs before anything is installed."""

    def add(members: dict[str, bytes]) -> None:
        members[f"{SAMPLE_NAME}/glob.py"] = b"x"
        del members[f"{SAMPLE_NAME}/manifest.sig"]
        manifest = json.loads(members[f"{SAMPLE_NAME}/manifest.json"])
        manifest["files"]["glob.py"] = {"sha256": hashlib.sha256(b"x").hexdigest(), "bytes": 1}
        members[f"{SAMPLE_NAME}/manifest.json"] = json.dumps(manifest).encode()

    _assert_refused(_rewrite(archive, tmp_path / "changed.zip", add), tmp_path, "does not pass the audit")


def test_roll_back_needs_to_be_asked_for(bundle: Path, archive: Path, tmp_path: Path) -> None:
    metadata = read_config(bundle, "metadata")
    metadata.update(version="0.2.0", changelog={"0.1.0": "First", "0.2.0": "Second"})
    write_config(bundle, "metadata", metadata)
    newer = pack(bundle, tmp_path / "newer.zip").path

    place = tmp_path / "place"
    unpack(newer, place)
    with pytest.raises(UntrustedBundle, match="older"):
        unpack(archive, place, replace=True)
    assert Bundle.open(place / SAMPLE_NAME).version == "0.2.0"
    unpack(archive, place, replace=True, allow_older=True)
    assert Bundle.open(place / SAMPLE_NAME).version == "0.1.0"
    assert Bundle.open(place / f"{SAMPLE_NAME}-0.2.0").version == "0.2.0"


def test_an_existing_bundle_is_not_replaced_unasked(archive: Path, tmp_path: Path) -> None:
    unpack(archive, tmp_path)
    with pytest.raises(UsageError, match="exists"):
        unpack(archive, tmp_path)
    assert audit(tmp_path / SAMPLE_NAME) == []


def _with_manifest(source: Path, target: Path, manifest: Callable[[zipfile.ZipFile, str], None]) -> Path:
    """A copy of an archive, compressed, whose manifest is written anew."""
    with zipfile.ZipFile(source) as good, zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as changed:
        for name in good.namelist():
            if name.endswith("/manifest.json"):
                manifest(changed, name)
            else:
                changed.writestr(name, good.read(name))
    return target


def test_a_large_manifest_is_refused_by_its_stated_size(archive: Path, tmp_path: Path) -> None:
    def large(changed: zipfile.ZipFile, name: str) -> None:
        changed.writestr(name, os.urandom(5 << 10) + bytes(5 << 20))

    bomb = _with_manifest(archive, tmp_path / "large.zip", large)
    _assert_refused(bomb, tmp_path, "manifest.json is of 5248000 bytes, expected at most 4194304")


def test_a_manifest_that_unpacks_to_more_than_it_states_is_not_unpacked(archive: Path, tmp_path: Path) -> None:
    bomb = _with_manifest(
        archive, tmp_path / "lies.zip", lambda changed, name: changed.writestr(name, bytes(200 << 20))
    )
    data = bomb.read_bytes()
    stated = (200 << 20).to_bytes(4, "little")
    assert data.count(stated) == 2
    bomb.write_bytes(data.replace(stated, (1 << 20).to_bytes(4, "little")))
    tracemalloc.start()
    _assert_refused(bomb, tmp_path, "damaged or unusual|cannot be read")
    assert tracemalloc.get_traced_memory()[1] < 40 << 20
    tracemalloc.stop()


def test_nothing_is_parsed_before_the_signature_is_checked(
    archive: Path, keys: tuple[Path, Path], tmp_path: Path
) -> None:
    def other(changed: zipfile.ZipFile, name: str) -> None:
        changed.writestr(name, "no JSON at all")

    _assert_refused(_with_manifest(archive, tmp_path / "x.zip", other), tmp_path, "signature does not fit", key=keys[1])


def _named(target: Path, name: str, method: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(target, "w", method) as made:
        made.writestr(name, bytes(100))
    return target


@pytest.mark.parametrize(
    ("name", "method", "match"),
    [
        ("bundle/" + "a" * 300, zipfile.ZIP_STORED, "a name that is too long"),
        ("bundle/" + "a/" * 20 + "b", zipfile.ZIP_STORED, "a name that is too long"),
        ("bundle/a", zipfile.ZIP_BZIP2, "packed by an unusual method"),
        ("bundle/a", zipfile.ZIP_LZMA, "packed by an unusual method"),
    ],
)
def test_unusual_members_are_refused(tmp_path: Path, name: str, method: int, match: str) -> None:
    _assert_refused(_named(tmp_path / "odd.zip", name, method), tmp_path, match)


def test_an_archive_unpacks_to_no_more_than_its_size_is_worth(tmp_path: Path) -> None:
    bomb = tmp_path / "bomb.zip"
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as made:
        for number in range(5):
            made.writestr(f"bundle/{number}", os.urandom(16 << 10) + bytes(15 << 20))
    _assert_refused(bomb, tmp_path, "expected at most 67108864 bytes")


def test_a_large_directory_is_refused(tmp_path: Path) -> None:
    size = 5 << 20
    end = b"PK\x05\x06" + struct.pack("<HHHHIIH", 0, 0, 1, 1, size, 0, 0)
    (tmp_path / "x.zip").write_bytes(bytes(size) + end)
    _assert_refused(tmp_path / "x.zip", tmp_path, f"directory is of {size} bytes, expected at most 4194304")
