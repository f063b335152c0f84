"""The audit against malicious bundles (nothing executed, everything named) and clean ones (no false alarm)."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from monai.bundle import ComponentLocator, ConfigParser

from medseg.bundle import Bundle, audit, require_trusted
from medseg.bundle.findings import blocks
from medseg.errors import UntrustedBundle, UsageError
from tests.bundle.attacks import ATTACKS, LIVE
from tests.bundle.sample import read_config, write_config

SHIPPED = sorted(Path(__file__).parents[2].joinpath("bundles").glob("*/configs/metadata.json"))


def test_the_corpus_is_large() -> None:
    assert len(ATTACKS) >= 100


@pytest.mark.parametrize("name", ATTACKS)
def test_attack_is_named_and_not_executed(name: str, bundle: Path, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    expected = ATTACKS[name](bundle, canary)

    blocking = blocks(audit(bundle))

    assert any(expected in f"{finding.file} {finding.what}" for finding in blocking), blocking
    with pytest.raises(UntrustedBundle, match="does not pass the audit"):
        require_trusted(bundle)
    assert not canary.exists()


@pytest.fixture(scope="module")
def locator() -> ComponentLocator:
    """MONAI's table of its components, which takes a second to fill."""
    return ComponentLocator()


@pytest.mark.parametrize("name", LIVE)
@pytest.mark.filterwarnings("ignore")
def test_control_group_would_be_executed(name: str, bundle: Path, tmp_path: Path, locator: ComponentLocator) -> None:
    """The attacks are real: MONAI's parser alone writes the canary."""
    canary = tmp_path / "canary"
    LIVE[name](bundle, canary)
    config = read_config(bundle, "inference")
    config["evil"] = "os.mkdir"
    parser = ConfigParser({key: config[key] for key in ("output_dir", "handlers", "evil", "bundle_root")})
    parser.locator = locator
    # only what the attack changed: the sample's own handlers refer to the network
    try:
        parser.get_parsed_content("output_dir")
        if isinstance(config["handlers"], dict):
            parser.get_parsed_content("handlers")
    except Exception:  # noqa: BLE001  the attack may fail after it has done its work
        pass
    for _ in range(50):
        if canary.exists():
            break
        subprocess.run(["sleep", "0.02"], check=True)  # a process that the attack started
    gc.collect()  # what the attack left open is reported here, where warnings are ignored
    assert canary.exists()


def test_loading_the_network_of_an_attack_is_refused(bundle: Path, tmp_path: Path) -> None:
    LIVE["plain open"](bundle, tmp_path / "canary")
    with pytest.raises(UntrustedBundle):
        Bundle.open(bundle).load_network()
    assert not (tmp_path / "canary").exists()


def test_clean_sample_has_no_finding(bundle: Path) -> None:
    assert audit(bundle) == []
    require_trusted(bundle)


@pytest.mark.parametrize("metadata", SHIPPED, ids=lambda path: path.parents[1].name)
def test_no_false_alarm_on_shipped_bundles(metadata: Path) -> None:
    assert blocks(audit(metadata.parents[1])) == []


@pytest.mark.parametrize(
    "expression",
    [
        "$torch.load(@bundle_root + '/models/model.pt', weights_only=True)",
        "$[item for item in @dataset if item['fold'] == 0]",
        "$lambda x: x > 0",
        "$setattr(torch.backends.cudnn, 'benchmark', True)",
        '$f"{@bundle_root}/fold_{@fold:02d}"',
        "$torch.float32",
        "$@network.parameters()",
        "$max(1, len(@dataset) // 4)",
        "$@learning_rate * 0.5 ** 2",
    ],
)
def test_harmless_expressions_pass(expression: str, bundle: Path) -> None:
    config = read_config(bundle, "inference")
    config["extra"] = expression
    write_config(bundle, "inference", config)
    assert audit(bundle) == []


def test_safetensors_passes(bundle: Path) -> None:
    from safetensors.torch import save_file

    save_file(Bundle.open(bundle).load_network().state_dict(), bundle / "models" / "model.safetensors")
    assert audit(bundle) == []


def test_download_in_large_files_is_told(bundle: Path) -> None:
    text = 'large_files:\n- path: "models/model.pt"\n  url: "https://example.org/model.pt"\n  hash_val: "abc"\n'
    (bundle / "large_files.yml").write_text(text + '  hash_type: "md5"\n')
    assert [finding.severity for finding in audit(bundle)] == ["info"]


def test_a_missing_folder_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="not a folder"):
        audit(tmp_path / "absent")


def test_findings_are_plain_data(bundle: Path, tmp_path: Path) -> None:
    LIVE["plain open"](bundle, tmp_path / "canary")
    found: list[dict[str, Any]] = json.loads(json.dumps([finding.as_dict() for finding in audit(bundle)]))
    assert found[0]["file"] == "configs/inference.json"
    assert found[0]["place"] == "output_dir"
    assert found[0]["severity"] == "block"


def test_the_audit_imports_neither_torch_nor_monai() -> None:
    code = "import sys, medseg.bundle.audit; print(int('torch' in sys.modules or 'monai' in sys.modules))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "0"


def test_what_training_leaves_in_the_bundle_is_no_alarm_but_code_there_is(bundle: Path) -> None:
    logs = bundle / "runs" / "fold0" / "tensorboard"
    logs.mkdir(parents=True)
    (logs / "events.out.tfevents.1.host.2.0").write_bytes(b"\x00log")
    (logs.parent / ".lock").touch()
    assert blocks(audit(bundle)) == []
    (logs.parent / "events.py").write_text("print('ran')")
    (bundle / "events.out.tfevents.1.host.2.0").write_bytes(b"\x00log")
    assert {finding.file for finding in blocks(audit(bundle))} == {
        "runs/fold0/events.py",
        "events.out.tfevents.1.host.2.0",
    }
