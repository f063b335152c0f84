"""Bundles by bare name: the walk of the README gives names, and commands find them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from medseg.bundle import Bundle
from medseg.bundle import find as shipped
from medseg.bundle.find import find_bundle, list_bundles, shipped_bundle
from medseg.cli import bundle as bundle_command
from medseg.cli import train as train_command
from medseg.cli.main import app
from medseg.errors import UsageError

assert bundle_command
assert train_command

SHIPPED = "hippocampus_mri_segmentation"


def _write(folder: Path, version: str = "1.0.0") -> Path:
    (folder / "configs").mkdir(parents=True)
    (folder / "configs" / "metadata.json").write_text(json.dumps({"version": version, "task": "Segmentation"}))
    return folder


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_bare_name_finds_own_bundles_before_shipped_ones() -> None:
    assert find_bundle(SHIPPED) == shipped_bundle(SHIPPED)
    own = _write(Path("bundles") / SHIPPED, "9.0.0")
    assert find_bundle(SHIPPED) == own
    assert Bundle.open(SHIPPED).version == "9.0.0"


def test_a_folder_of_that_name_comes_first() -> None:
    _write(Path("bundles/liver_ct_segmentation"))
    here = _write(Path("liver_ct_segmentation"), "2.0.0")
    assert find_bundle("liver_ct_segmentation") == here


def test_a_path_is_never_looked_for_elsewhere() -> None:
    with pytest.raises(UsageError, match="there is no such folder"):
        Bundle.open(f"elsewhere/{SHIPPED}")


def test_an_unknown_name_is_answered_with_the_known_ones() -> None:
    _write(Path("bundles/liver_ct_segmentation"))
    with pytest.raises(UsageError, match=rf"spleen is not a bundle.*{SHIPPED}.*liver_ct_segmentation"):
        Bundle.open("spleen")


def test_an_archive_is_told_to_be_unpacked() -> None:
    Path("x.zip").write_bytes(b"PK")
    with pytest.raises(UsageError, match=r"medseg bundle unpack x\.zip"):
        Bundle.open("x.zip")


def test_list_names_what_a_bare_name_finds() -> None:
    _write(Path("bundles/liver_ct_segmentation"))
    Path("bundles/notes").mkdir()
    done = CliRunner().invoke(app, ["bundle", "list", "--json"])
    assert done.exit_code == 0, done.output
    found = {row["name"]: row for row in json.loads(done.stdout)["bundles"]}
    assert list(found) == [path.name for path in list_bundles()]
    assert "notes" not in found
    assert not found["liver_ct_segmentation"]["trained"]
    assert found[SHIPPED]["trained"]
    assert CliRunner().invoke(app, ["bundle", "info", SHIPPED]).exit_code == 0


def test_training_does_not_write_into_the_installed_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installed = _write(tmp_path / "site-packages" / "bundles" / "liver_ct_segmentation")
    monkeypatch.setattr(shipped, "_INSTALLED", installed.parent)
    for arguments in ([], ["--publish", "-o", "runs"], ["--publish-final", "-o", "runs"]):
        done = CliRunner().invoke(app, ["train", str(installed), *arguments])
        assert done.exit_code == 2
        assert "copy it first" in done.stderr
