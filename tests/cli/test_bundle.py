from __future__ import annotations

import json
import shutil
import zipfile
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from medseg.cli import bundle as bundle_command
from medseg.cli.main import app
from tests.bundle.conftest import bundle, pristine_bundle
from tests.bundle.sample import SAMPLE_NAME, read_config, write_config

__all__ = ["bundle", "pristine_bundle"]
assert bundle_command


def _run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, ["bundle", *map(str, arguments)])


def _json(*arguments: str | Path) -> Any:
    return json.loads(_run(*arguments, "--json").stdout)


def test_info_tells_the_structures(bundle: Path) -> None:
    facts = _json("info", bundle)
    assert facts["labels"] == {"1": "sphere"}
    assert "sphere" in _run("info", bundle).stdout


def test_audit_of_a_clean_bundle(bundle: Path) -> None:
    found = _run("audit", bundle)
    assert found.exit_code == 0
    assert "nothing outside" in found.stdout


def test_audit_names_what_would_run(bundle: Path, tmp_path: Path) -> None:
    config = read_config(bundle, "inference")
    config["output_dir"] = f"$open('{tmp_path / 'canary'}', 'w')"
    write_config(bundle, "inference", config)
    found = _run("audit", bundle, "--json")
    assert found.exit_code == 1
    result = json.loads(found.stdout)
    assert result["passed"] is False
    assert result["findings"][0]["place"] == "output_dir"
    assert not (tmp_path / "canary").exists()
    assert "open" in _run("audit", bundle).stdout


def test_verify(bundle: Path) -> None:
    assert _run("verify", bundle).exit_code == 0
    (bundle / "LICENSE").unlink()
    assert _run("verify", bundle).exit_code == 1


def test_keygen_pack_unpack(bundle: Path, tmp_path: Path) -> None:
    keys = _json("keygen", tmp_path / "site.key")
    packed = _json("pack", bundle, "-o", tmp_path / "sample.zip", "--sign", keys["private"])
    found = _json("unpack", tmp_path / "sample.zip", "-o", tmp_path / "out", "--key", keys["public"])
    assert found["authentic"] is True
    assert found["signed_by"] == packed["signed_by"]
    assert (tmp_path / "out" / SAMPLE_NAME / "models" / "model.safetensors").is_file()
    assert "the key you gave" not in _run("unpack", tmp_path / "sample.zip", "-o", tmp_path / "two").stdout


def test_export(bundle: Path, tmp_path: Path) -> None:
    made = _json("export", bundle, "--format", "torchscript", "-o", tmp_path / "net.ts")
    assert made["label_agreement"] > 0.999
    assert (tmp_path / "net.ts").is_file()


@pytest.mark.parametrize(
    "arguments", [["audit", "absent"], ["verify", "absent"], ["unpack", "absent.zip", "-o", "x"], ["info", "absent"]]
)
def test_what_is_not_there_is_exit_code_2(arguments: list[str]) -> None:
    found = _run(*arguments)
    assert found.exit_code == 2
    assert "Traceback" not in found.output


def test_info_reads_an_archive_without_unpacking_it(bundle: Path, tmp_path: Path) -> None:
    archive = tmp_path / "sample.zip"
    _json("pack", bundle, "-o", archive)
    before = sorted(tmp_path.rglob("*"))
    facts = _json("info", archive)
    assert facts["name"] == SAMPLE_NAME
    assert facts["labels"] == {"1": "sphere"}
    assert facts["licence"] == "apache-2.0"
    assert "manifest.json" in facts["files"]
    assert "by medseg, not signed" in _run("info", archive).stdout
    assert sorted(tmp_path.rglob("*")) == before


def test_info_of_a_zip_that_medseg_did_not_pack(bundle: Path, tmp_path: Path) -> None:
    (bundle / "scripts").mkdir()
    (bundle / "scripts" / "net.py").write_text("raise SystemExit\n")
    archive = shutil.make_archive(str(tmp_path / "zoo"), "zip", bundle.parent, bundle.name)
    found = _run("info", archive)
    assert found.exit_code == 0
    assert "not by medseg: unpacked with --as-is only" in found.stdout
    assert "scripts/net.py" in found.stdout


@pytest.mark.parametrize("name", ["../configs/metadata.json", "/abs", "a/b\x1b.txt"])
def test_info_of_an_archive_keeps_the_readers_checks(name: str, bundle: Path, tmp_path: Path) -> None:
    archive = Path(shutil.make_archive(str(tmp_path / "zoo"), "zip", bundle.parent, bundle.name))
    with zipfile.ZipFile(archive, "a") as packed:
        packed.writestr(name, "x")
    found = _run("info", archive)
    assert found.exit_code == 2
    assert "not unpacked" in found.stderr


def test_info_of_what_is_no_archive_of_a_bundle(tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_bytes(b"PK\x05\x06")
    assert _run("info", tmp_path / "a.zip").exit_code == 2
    with zipfile.ZipFile(tmp_path / "b.zip", "w") as packed:
        packed.writestr("b/configs/metadata.json", "[1, 2")
    found = _run("info", tmp_path / "b.zip")
    assert found.exit_code == 2
    assert "cannot be read" in found.stderr


def test_list_says_where_bundles_come_from(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(bundle, tmp_path / "bundles" / "mine")
    imported = shutil.copytree(bundle, tmp_path / "bundles" / "theirs")
    facts = {"imported": {"origin": "a folder of nnU-Net"}, "license": "CC-BY-4.0", "task": "word " * 40}
    write_config(imported, "metadata", read_config(imported, "metadata") | facts)
    damaged = shutil.copytree(bundle, tmp_path / "bundles" / "worn")
    (damaged / "configs" / "metadata.json").write_text("{")
    rows = {row["name"]: row for row in _json("list")["bundles"]}
    assert rows["mine"]["origin"] == "local"
    assert rows["mine"]["licence"] == "apache-2.0"
    assert rows["mine"]["policy"] is None
    assert rows["theirs"]["origin"] == "imported: a folder of nnU-Net"
    assert rows["theirs"]["licence"] == "CC-BY-4.0"
    assert rows["hippocampus_mri_segmentation"]["origin"] == "shipped with medseg"
    assert "cannot be read" in rows["worn"]["damage"]
    lines = _run("list").stdout.splitlines()
    assert "    imported: a folder of nnU-Net, licence CC-BY-4.0" in lines
    assert all(len(line) <= 80 for line in lines if not line.strip().startswith(("/", "worn: damaged")))
