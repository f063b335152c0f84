from __future__ import annotations

import json
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
