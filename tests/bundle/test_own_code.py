"""What a bundle's own code is needed for: imports of no use are left out, and the rest is named by file and line."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from medseg.bundle import Bundle, audit
from medseg.bundle.findings import Finding, blocks
from medseg.errors import MissingDependency, UntrustedBundle
from tests.bundle.sample import read_config, write_config


def with_imports(bundle: Path, *statements: str, **parts: Any) -> Path:
    """The bundle with imports of code of its own, which ends the process that runs it."""
    config = read_config(bundle, "inference")
    config["imports"] = [*config.get("imports", []), *statements]
    write_config(bundle, "inference", {**config, **parts})
    (bundle / "scripts").mkdir()
    (bundle / "scripts/__init__.py").write_text("raise SystemExit('the code of the bundle ran')\n")
    (bundle / "scripts/nets.py").write_text("class Net: ...\n")
    return bundle


def about(found: list[Finding], text: str) -> list[Finding]:
    return [finding for finding in found if text in finding.what]


@pytest.mark.parametrize("statement", ["$import scripts.nets", "$from scripts import nets", "$import pathlib"])
def test_an_import_of_no_use_is_not_executed_and_noted(bundle: Path, statement: str) -> None:
    opened = Bundle.open(with_imports(bundle, statement))
    assert not opened.load_network().training
    assert any(f"nothing else in the config names it: {statement[1:]}" in note for note in opened.pipeline.notes)
    assert not blocks(audit(bundle, "infer"))
    (told,) = about(blocks(audit(bundle)), "it imports")
    assert told.commands == ("monai",), "MONAI executes it all the same"


def test_imports_may_be_one_text(bundle: Path) -> None:
    with_imports(bundle)
    config = read_config(bundle, "inference")
    needed = next(text for text in config["imports"] if text.startswith("$import"))
    for text, kept in (("$import scripts.nets", []), (needed, needed)):
        write_config(bundle, "inference", {**config, "imports": text})
        assert Bundle.open(bundle).inference["imports"] == kept


@pytest.mark.parametrize(
    "parts",
    [
        {"helper": "$scripts.nets.Net()"},
        {"helper": {"_target_": "scripts.nets.Net"}},
        {"helper": "$@imports[-1].nets"},
        {"postprocessing": "$scripts"},
    ],
    ids=["called", "a target", "by reference", "the module"],
)
def test_an_import_that_something_names_is_refused(bundle: Path, parts: dict[str, Any]) -> None:
    with pytest.raises(UntrustedBundle):
        Bundle.open(with_imports(bundle, "$import scripts.nets", **parts)).load_network()


def test_two_statements_in_one_text_are_no_import(bundle: Path) -> None:
    with pytest.raises(UntrustedBundle):
        Bundle.open(with_imports(bundle, "$import pathlib; pathlib.Path('x').touch()")).load_network()


def test_a_refusal_names_file_line_and_code(bundle: Path) -> None:
    with_imports(bundle, network_def={"_target_": "scripts.nets.Net"})
    text = (bundle / "configs/inference.json").read_text()
    line = next(number for number, line in enumerate(text.splitlines(), 1) if "scripts.nets.Net" in line)
    with pytest.raises(UntrustedBundle) as refused:
        Bundle.open(bundle).load_network()
    message = str(refused.value)
    assert f"configs/inference.json, line {line}, names scripts.nets.Net: scripts/nets.py of the bundle" in message
    assert "read it; if you trust it, medseg infer --trust-bundle runs it, without network" in message


def test_other_refusals_say_nothing_of_trust(bundle: Path) -> None:
    config = read_config(bundle, "inference")
    write_config(bundle, "inference", {**config, "network_def": {"_target_": "os.system"}})
    with pytest.raises(UntrustedBundle) as refused:
        Bundle.open(bundle).load_network()
    assert "--trust-bundle" not in str(refused.value)


def test_a_missing_package_is_told_before_anything_is_built(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = read_config(bundle, "inference")
    config["network_def"] = {"_target_": "SwinUNETR", "in_channels": 1, "out_channels": 2, "feature_size": 12}
    write_config(bundle, "inference", config)
    known = {"einops": None}
    monkeypatch.setattr(
        "medseg.bundle.packages.find_spec", lambda name: known[name] if name in known else find_spec(name)
    )
    with pytest.raises(
        MissingDependency, match=r"einops is not installed; SwinUNETR at network_def .*pip install einops"
    ):
        Bundle.open(bundle).load_network()
    (told,) = about(audit(bundle, "infer"), "SwinUNETR needs einops, which is not installed")
    assert (told.severity, told.file, told.place) == ("warn", "configs/inference.json", "network_def")
