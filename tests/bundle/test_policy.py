"""What a site's policy does not list does not run, and a policy that cannot be read lists nothing."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner, Result

from medseg.bundle import Bundle, Permission
from medseg.bundle.policy import POLICY_VARIABLE, Policy, policies
from medseg.cli import bundle as bundle_command
from medseg.cli import doctor as doctor_command
from medseg.cli import infer as infer_command
from medseg.cli import train as train_command
from medseg.cli.main import app
from medseg.errors import UntrustedBundle
from medseg.sharing import create_key_pair, pack, unpack
from tests.bundle.sample import SAMPLE_NAME

assert bundle_command
assert doctor_command
assert infer_command
assert train_command


@pytest.fixture
def policy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file of the policy in force; nothing is in it yet."""
    path = tmp_path / "site" / "policy.toml"
    path.parent.mkdir()
    monkeypatch.setenv(POLICY_VARIABLE, str(path))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CONFIG_DIRS", str(tmp_path / "system"))
    return path


def _entry(**values: str) -> str:
    return "".join(["[[bundles]]\n", *(f"{key} = {json.dumps(value)}\n" for key, value in values.items())])


def _run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_what_is_listed_runs(bundle: Path, policy: Path) -> None:
    policy.write_text(_entry(name=SAMPLE_NAME, version="0.1.0", sha256=Bundle.open(bundle).sha256))
    Bundle.open(bundle).load_network()
    Bundle.open(bundle, "network-only").load_network()


@pytest.mark.parametrize(
    ("entry", "why"),
    [
        ({"name": "another"}, "does not list it"),
        ({"version": "0.2.0"}, "lists version 0.2.0"),
        ({"sha256": "0" * 64}, "with the SHA-256 0000"),
        ({"key": "absent.pub"}, "asks for a signature by absent.pub"),
    ],
)
@pytest.mark.parametrize("permission", ["audited", "network-only", "everything"])
def test_what_is_not_listed_does_not_run(
    entry: dict[str, str], why: str, permission: Permission, bundle: Path, policy: Path
) -> None:
    policy.write_text(_entry(**{"name": SAMPLE_NAME, "sha256": Bundle.open(bundle).sha256, **entry}))
    opened = Bundle.open(bundle, permission)
    with pytest.raises(UntrustedBundle, match=why if permission != "everything" else "lists? |code"):
        opened.load_network()
    with pytest.raises(UntrustedBundle, match=r"policy\.toml"):
        opened.permit("train")


def test_one_changed_byte_of_the_weights_is_another_bundle(bundle: Path, policy: Path) -> None:
    policy.write_text(_entry(name=SAMPLE_NAME, sha256=Bundle.open(bundle).sha256))
    with (bundle / "models" / "model.pt").open("ab") as handle:
        handle.write(b"\0")
    with pytest.raises(UntrustedBundle, match="lists it with the SHA-256"):
        Bundle.open(bundle).load_network()


def test_a_bundles_own_code_is_in_no_sum(bundle: Path, policy: Path) -> None:
    policy.write_text(_entry(name=SAMPLE_NAME, sha256=Bundle.open(bundle).sha256))
    with pytest.raises(UntrustedBundle, match="trust-bundle"):
        Bundle.open(bundle, "everything").load_network()


@pytest.mark.parametrize(
    "text",
    [
        "mode = ",
        'mode = "lax"',
        'moed = "warn"',
        "bundles = 1",
        '[[bundles]]\nname = "a"',
        '[[bundles]]\nname = "a"\nsha = "b"',
        '[[bundles]]\nsha256 = "b"',
        "\udcff",
        "a = " + "[" * 5000,
    ],
)
def test_a_damaged_policy_allows_nothing(text: str, bundle: Path, policy: Path) -> None:
    policy.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(UntrustedBundle, match="allows nothing"):
        Bundle.open(bundle).load_network()
    found = _run("doctor", "--json")
    assert found.exit_code == 1
    assert any("no bundle runs here" in problem for problem in json.loads(found.stdout)["problems"])


def test_a_policy_that_is_named_and_missing_allows_nothing(bundle: Path, policy: Path) -> None:
    with pytest.raises(UntrustedBundle, match="cannot be read"):
        Bundle.open(bundle).load_network()


def test_all_policies_hold(bundle: Path, policy: Path, tmp_path: Path) -> None:
    policy.write_text(_entry(name=SAMPLE_NAME, sha256=Bundle.open(bundle).sha256))
    system = tmp_path / "system" / "medseg" / "policy.toml"
    system.parent.mkdir(parents=True)
    system.write_text("")  # enforced, and lists nothing
    assert [found.path for found in policies()] == [policy, system]
    with pytest.raises(UntrustedBundle, match=str(system)):
        Bundle.open(bundle).load_network()


def test_a_folder_that_cannot_be_looked_into_is_not_taken_for_no_policy(
    bundle: Path, policy: Path, tmp_path: Path
) -> None:
    policy.write_text(_entry(name=SAMPLE_NAME, sha256=Bundle.open(bundle).sha256))
    (tmp_path / "system").mkdir()
    (tmp_path / "system" / "medseg").symlink_to("medseg")  # as one without the right to read it, which root always has
    with pytest.raises(UntrustedBundle, match="allows nothing, since it cannot be read"):
        Bundle.open(bundle).load_network()


def test_weights_that_are_exchanged_once_the_bundle_was_allowed_do_not_run(bundle: Path, policy: Path) -> None:
    opened = Bundle.open(bundle)
    policy.write_text(_entry(name=SAMPLE_NAME, sha256=opened.sha256))
    opened.permit("infer")
    weights = bundle / "models" / "model.pt"
    state = torch.load(weights)
    torch.save({name: value * 0 for name, value in state.items()}, weights)
    with pytest.raises(UntrustedBundle, match="was changed while it was loaded"):
        opened.load_network()


@pytest.mark.parametrize("permission", ["audited", "network-only"])
def test_a_link_to_trust_files_hides_nothing(
    permission: Permission, bundle: Path, policy: Path, tmp_path: Path
) -> None:
    (bundle / "trust").rename(tmp_path / "elsewhere")
    (bundle / "trust").symlink_to(tmp_path / "elsewhere")
    policy.write_text(_entry(name=SAMPLE_NAME, sha256=Bundle.open(bundle).sha256))
    with (tmp_path / "elsewhere" / "calibration.json").open("a") as handle:
        handle.write("\n")
    with pytest.raises(UntrustedBundle, match="lists it with the SHA-256"):
        Bundle.open(bundle, permission).load_network()


def test_a_policy_can_warn_alone(bundle: Path, policy: Path, caplog: pytest.LogCaptureFixture) -> None:
    policy.write_text('mode = "warn"\n')
    with caplog.at_level(logging.WARNING, "medseg"):
        Bundle.open(bundle).load_network()
    assert "does not list it" in caplog.text


def test_a_signature_may_stand_for_the_sum(bundle: Path, policy: Path, tmp_path: Path) -> None:
    private, public = create_key_pair(policy.with_name("site.key"))
    policy.write_text('mode = "warn"\n')  # packing runs the network
    archive = pack(bundle, tmp_path / "a.zip", key=private).path
    received = unpack(archive, tmp_path / "in").path
    policy.write_text(_entry(name=SAMPLE_NAME, key=public.name))
    Bundle.open(received).load_network()
    with pytest.raises(UntrustedBundle, match="not signed"):
        Bundle.open(bundle).load_network()
    other = create_key_pair(policy.with_name("other.key"))[1]
    policy.write_text(_entry(name=SAMPLE_NAME, key=other.name))
    with pytest.raises(UntrustedBundle, match="is signed by the key"):
        Bundle.open(received).load_network()
    policy.write_text(_entry(name=SAMPLE_NAME, key=public.name))
    calibration = received / "trust" / "calibration.json"
    calibration.rename(tmp_path / "aside")
    with pytest.raises(UntrustedBundle, match=r"trust/calibration\.json was signed, and is missing"):
        Bundle.open(received).load_network()
    (tmp_path / "aside").rename(calibration)
    (received / "models" / "model.safetensors").unlink()
    config = received / "configs" / "inference.json"
    config.write_text(config.read_text() + "\n")
    with pytest.raises(UntrustedBundle, match=r"inference\.json is not the file that was signed"):
        Bundle.open(received).load_network()


def test_the_commands_tell_it(bundle: Path, policy: Path, tmp_path: Path) -> None:
    policy.write_text(_entry(name="another", sha256="0"))
    (tmp_path / "a.nii.gz").write_bytes(b"")
    for command in (("infer", bundle, tmp_path / "a.nii.gz"), ("train", "hippocampus_mri_segmentation")):
        found = _run(*command, "-o", tmp_path / "out")
        assert found.exit_code == 2, found.output
        assert "does not list it" in found.stderr
    assert "does not list it" in json.loads(_run("bundle", "info", bundle, "--json").stdout)["policy"]
    rows = json.loads(_run("bundle", "list", "--json").stdout)["bundles"]
    assert all("does not list it" in row["policy"] for row in rows)
    assert "not allowed by the policy here" in _run("bundle", "list").stdout
    shown = json.loads(_run("doctor", "--json").stdout)
    assert shown["policies"] == {str(policy): "1 bundles, only these run"}
    assert Policy.read(policy).describe() in _run("doctor").stdout


def test_weights_outside_bundles_are_in_no_list(bundle: Path, policy: Path) -> None:
    from medseg.inference.ensemble import load_models

    opened = Bundle.open(bundle)
    policy.write_text(_entry(name=SAMPLE_NAME, sha256=opened.sha256))
    network = opened.load_network()
    with pytest.raises(UntrustedBundle, match="is in no bundle"):
        load_models(opened, network, [str(bundle / "models" / "model.pt")])
