"""Verification names each thing that does not fit, and MONAI's own checks agree that the sample is sound."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from monai.bundle import ckpt_export, verify_metadata, verify_net_in_out

from medseg.bundle.findings import Finding, blocks
from medseg.errors import BundleError, UsageError
from medseg.sharing import verify
from medseg.sharing.verify import SCHEMA_FILE, fake_shape
from medseg.trust.calibration import Calibration
from medseg.trust.trust_files import CALIBRATION_NAME
from tests.bundle.sample import read_config, write_config

SHIPPED = sorted(Path(__file__).parents[2].joinpath("bundles").glob("*/models/model.pt"))


def _pred(metadata: dict[str, object]) -> dict[str, object]:
    return metadata["network_data_format"]["outputs"]["pred"]  # type: ignore[index]


def _metadata(change: Callable[[dict[str, object]], object]) -> Callable[[Path], None]:
    def apply(bundle: Path) -> None:
        metadata = read_config(bundle, "metadata")
        change(metadata)
        write_config(bundle, "metadata", metadata)

    return apply


def _other_weights(bundle: Path) -> None:
    torch.save({"weight": torch.zeros(1)}, bundle / "models" / "model.pt")
    (bundle / "trust" / "calibration.json").unlink()


def _other_calibration(bundle: Path) -> None:
    path = bundle / CALIBRATION_NAME
    replace(Calibration.read(path), weights_sha256="0" * 64).write(path)


def _infinite_weights(bundle: Path) -> None:
    state = torch.load(bundle / "models" / "model.pt", weights_only=True)
    next(iter(state.values())).fill_(float("inf"))
    torch.save(state, bundle / "models" / "model.pt")
    (bundle / "trust" / "calibration.json").unlink()


def _no_inferer(bundle: Path) -> None:
    config = read_config(bundle, "inference")
    del config["inferer"]
    write_config(bundle, "inference", config)


CHANGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "no licence": (lambda bundle: (bundle / "LICENSE").unlink(), "LICENSE: missing"),
    "version not in the changelog": (_metadata(lambda m: m.update(version="0.3.0")), "0.3.0 is not in the changelog"),
    "version not semantic": (_metadata(lambda m: m.update(version="one")), "'one' does not match"),
    "no task": (_metadata(lambda m: m.pop("task")), "'task' is a required property"),
    "wrong channels": (_metadata(lambda m: _pred(m).update(num_channels=3)), "the network gives (2, 16, 16, 16)"),
    "wrong type": (_metadata(lambda m: _pred(m).update(dtype="float64")), "the network gives torch.float32"),
    "wrong shape": (_metadata(lambda m: _pred(m).update(spatial_shape=[8, 8, 8])), "is declared"),
    "no dtype": (_metadata(lambda m: _pred(m).pop("dtype")), "'dtype' is a required property"),
    "label without channel": (
        _metadata(lambda m: _pred(m).update(channel_def={"0": "background", "5": "x"})),
        "label 5 of a network with 2 channels",
    ),
    "label without code": (_metadata(lambda m: _pred(m).pop("segment_codes")), "sphere (label 1) has no code"),
    "calibration of other weights": (
        _other_calibration,
        "belongs to other weights",
    ),
    "weights do not fit": (_other_weights, "do not fit"),
    "weights not finite": (_infinite_weights, "not finite"),
    "no weights": (lambda bundle: shutil.rmtree(bundle / "models"), "has no weights"),
    "no inferer": (_no_inferer, "MONAI's workflows ask for this id"),
    "from a later MONAI": (_metadata(lambda m: m.update(monai_version="9.9.0")), "made with monai 9.9.0"),
}


def _shown(findings: list[Finding]) -> str:
    return "\n".join(str(finding) for finding in findings)


def test_the_sample_is_sound(bundle: Path) -> None:
    assert verify(bundle) == []


@pytest.mark.parametrize("name", CHANGES)
def test_what_does_not_fit_is_named(name: str, bundle: Path) -> None:
    change, expected = CHANGES[name]
    change(bundle)
    assert expected in _shown(verify(bundle))


def test_nothing_runs_if_the_audit_blocks(bundle: Path, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    config = read_config(bundle, "inference")
    config["network_def"]["act"] = f"$open('{canary}', 'w')"
    write_config(bundle, "inference", config)
    assert "would be executed" in _shown(blocks(verify(bundle)))
    assert not canary.exists()


@pytest.mark.parametrize("weights", SHIPPED, ids=lambda path: path.parents[1].name)
def test_shipped_bundles_are_sound(weights: Path) -> None:
    assert blocks(verify(weights.parents[1])) == []


def test_not_a_bundle_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="not a bundle"):
        verify(tmp_path)


@pytest.mark.parametrize(
    ("declared", "expected"),
    [(["16*n"] * 3, (16, 16, 16)), (["2**p*n", "n*8", 7], (16, 8, 7)), (["*", "2**p", "32"], (16, 16, 32))],
)
def test_declared_shapes(declared: list[int | str], expected: tuple[int, ...]) -> None:
    assert fake_shape(declared) == expected


@pytest.mark.parametrize("declared", [[], ["0"], ["__import__('os')"], ["2**p-1"], [1000, 1000, 1000]])
def test_strange_shapes_are_refused(declared: list[int | str]) -> None:
    with pytest.raises(BundleError):
        fake_shape(declared)


def test_monai_agrees(bundle: Path, tmp_path: Path) -> None:
    """MONAI's own verify_metadata (offline), verify_net_in_out and ckpt_export pass."""
    metadata, inference = (str(bundle / "configs" / f"{name}.json") for name in ("metadata", "inference"))
    schema = shutil.copy(SCHEMA_FILE, tmp_path / "schema.json")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # MONAI warns about the configs it parses, torch about TorchScript
        verify_metadata(meta_file=metadata, filepath=schema)
        verify_net_in_out(net_id="network_def", meta_file=metadata, config_file=inference, device="cpu", n=1, p=4)
        ckpt_export(
            net_id="network_def",
            filepath=str(tmp_path / "model.ts"),
            ckpt_file=str(bundle / "models" / "model.pt"),
            meta_file=metadata,
            config_file=inference,
            key_in_ckpt="",
        )
    assert (tmp_path / "model.ts").stat().st_size > 10_000


def test_a_bundle_of_others_is_not_judged_by_the_rules_of_the_house(bundle: Path) -> None:
    def changed(metadata: dict[str, object]) -> None:
        packages = {"no-such-package": "1.2.3"}
        metadata.update(version="0.3.0", schema="https://example.org/meta_schema_20220324.json")
        metadata.update(optional_packages_version=packages)
        metadata.pop("required_packages_version")
        _pred(metadata).pop("segment_codes")
        names = {str(value): f"organ {value}" for value in range(1, 9)}
        _pred(metadata).update(num_channels=9, channel_def={"0": "background", **names})

    _metadata(changed)(bundle)
    _no_inferer(bundle)
    write_config(bundle, "train", {"train": {"trainer": {"_target_": "scripts.trainer.Own"}}})
    found = [finding for finding in verify(bundle) if finding.place != "network_data_format"]
    told = [str(finding) for finding in found if finding.severity == "warn"]
    named = {"0.3.0 is not in the changelog", "at inferer: missing", "and 3 more: each has no code"}
    assert all(any(part in text for text in told) for part in named), told
    assert not any("required_packages_version" in text for text in told)
    assert any("no-such-package 1.2.3 (not installed)" in str(f) for f in found if f.severity == "info")
    rules = {"changelog", "inferer", "train::dataset"}
    assert not [finding for finding in blocks(found) if finding.place in rules]
