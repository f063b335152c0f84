from __future__ import annotations

from pathlib import Path

import pytest
import torch

from medseg.bundle import Bundle, require_trusted
from medseg.errors import BundleError, UntrustedBundle
from tests.bundle.sample import read_config, write_config


def load_network_only(path: Path) -> torch.nn.Module:
    return Bundle.open(path, "network-only").load_network()


def test_network_of_a_bundle_that_ships_code(bundle: Path, tmp_path: Path) -> None:
    image = torch.rand(1, 1, 16, 16, 16)
    with torch.inference_mode():
        expected = Bundle.open(bundle).load_network()(image)
    config = read_config(bundle, "inference")
    config["preprocessing"] = {"_target_": "scripts.transforms.Prepare"}
    config["imports"] = [f"$open('{tmp_path / 'canary'}', 'w')"]
    write_config(bundle, "inference", config)
    (bundle / "scripts").mkdir()
    (bundle / "scripts" / "transforms.py").write_text("raise SystemExit")

    with pytest.raises(UntrustedBundle):
        require_trusted(bundle)
    with torch.inference_mode():
        assert torch.equal(load_network_only(bundle)(image), expected)
    assert not (tmp_path / "canary").exists()


def test_weights_under_the_key_model(bundle: Path) -> None:
    file = bundle / "models" / "model.pt"
    torch.save({"model": torch.load(file, weights_only=True)}, file)
    assert not load_network_only(bundle).training


@pytest.mark.parametrize("act", ["$open('x', 'w')", "@other", "%other", "@evil"])
def test_only_what_is_harmless_is_taken_over(act: str, bundle: Path) -> None:
    config = read_config(bundle, "inference")
    config["network_def"]["act"] = act
    config["evil"] = "$open('x', 'w')"
    write_config(bundle, "inference", config)
    # what is not there is no danger, but it is no network either
    with pytest.raises(BundleError if "other" in act else UntrustedBundle):
        load_network_only(bundle)


def test_shipped_network_classes_are_refused(bundle: Path) -> None:
    config = read_config(bundle, "inference")
    config["network_def"]["_target_"] = "scripts.networks.Net"
    write_config(bundle, "inference", config)
    with pytest.raises(UntrustedBundle, match=r"scripts\.networks\.Net"):
        load_network_only(bundle)


def test_missing_parts_are_named(bundle: Path) -> None:
    (bundle / "models" / "model.pt").unlink()
    with pytest.raises(BundleError, match="no weights"):
        load_network_only(bundle)
    (bundle / "configs" / "inference.json").unlink()
    with pytest.raises(BundleError, match=r"inference\.json"):
        load_network_only(bundle)
