"""The one reader of configs: JSON and YAML by MONAI's rules, and what is evaluated is what was judged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from monai.bundle import ConfigParser

from medseg.bundle import Bundle, audit
from medseg.bundle.config import ABSENT, ids, item_at, laid_out, parse_config, parts_of, reached, spelled_out, steps
from medseg.bundle.findings import blocks
from medseg.errors import BundleError, UntrustedBundle
from medseg.sharing import pack, unpack, verify
from medseg.training import train_bundle
from tests.bundle.sample import read_config, write_config
from tests.inference.bundles import RESAMPLED, UNET, Design, write_bundle
from tests.inference.strangers import SHAPE, by_medseg, by_monai
from tests.inference.volumes import blobs, grid, save
from tests.training.bundles import SMALL, copy_bundle, write_data

BASE: dict[str, Any] = {"a": {"b": [1, {"c": 2}], "d": "x"}, "list": [1, 2], "e": "@a#d"}
OVERLAYS: list[dict[str, Any]] = [
    {"a#b#1#c": 3},
    {"a::b::0": {"new": [1]}, "f": None},
    {"+list": [3], "+a": {"d": "y", "z": 0}},
    {"+fresh": {"q": 1}},
    {"a": 5, "list#0": "%a"},
]


def to_yaml(bundle: Path, *names: str) -> None:
    """Write configs of a bundle anew, as YAML."""
    for name in names:
        (bundle / "configs" / f"{name}.yaml").write_text(yaml.safe_dump(read_config(bundle, name), sort_keys=False))
        (bundle / "configs" / f"{name}.json").unlink()


@pytest.mark.parametrize("suffix", ["json", "yaml"])
@pytest.mark.parametrize("overlay", OVERLAYS, ids=str)
@pytest.mark.filterwarnings("ignore:Can't merge entry")
def test_configs_are_laid_over_each_other_as_monai_does(suffix: str, overlay: dict[str, Any], tmp_path: Path) -> None:
    files = [tmp_path / f"{name}.{suffix}" for name in ("base", "overlay")]
    for file, content in zip(files, (BASE, overlay), strict=True):
        file.write_text(json.dumps(content) if suffix == "json" else yaml.safe_dump(content))
    found = laid_out(*(parse_config(file.read_bytes(), file.name) for file in files))
    assert found == ConfigParser.load_config_files([str(file) for file in files])


@pytest.mark.parametrize("overlay", [{"x#y": 1}, {"list#7": 1}, {"+list": {"a": 1}}, {"+e": "text"}])
def test_an_overlay_of_what_is_not_there_is_refused(overlay: dict[str, Any]) -> None:
    with pytest.raises(BundleError, match="the key"):
        laid_out(BASE, overlay)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a: 1\na: 2", "twice"),
        ("a#b: 1\n'a::b': 2", "twice"),
        ("a: &x [1]\nb: *x", "alias"),
        ("a: 2024-01-01", "date"),
        ("a: {1: 2}", "no text"),
        ("a: !!binary aGk=", "bytes"),
        ("a: !!python/name:os.system", "constructor"),
        ("a: [", "parsing"),
        ("[" * 5000, "deeply"),
        ("a: '" + "x" * (1 << 20) + "'", "too many"),
    ],
)
def test_yaml_that_json_has_no_words_for_is_refused(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        parse_config(text.encode(), "x.yaml")


CONFIG: dict[str, Any] = {
    "imports": ["$import glob"],
    "off": "true",
    "n": 2,
    "first": [{"_target_": "A", "_disabled_": "@off"}, {"_target_": "B", "n": "@##2"}, 7],
    "all": {"_target_": "Compose", "transforms": "$@first + [@more]"},
    "more": {"_target_": "C", "of": "%n", "output_dir": "x"},
}


def test_what_a_config_names_is_found_without_evaluating() -> None:
    assert [place for place, _ in reached(CONFIG, "all")] == ["all", "first::0", "first::1", "more"]
    assert [step["_target_"] for step in steps(CONFIG, "all")] == ["Compose", "B", "C"]
    assert spelled_out(CONFIG, CONFIG["more"], without={"output_dir"}) == {"_target_": "C", "of": 2}
    assert item_at(CONFIG, "first#1::_target_") == "B"
    assert item_at(CONFIG, "first::9") is item_at(CONFIG, "n::x") is ABSENT
    assert {"first", "first#1", "first#1#n"} < set(ids(CONFIG, "#"))
    assert parts_of(CONFIG, ["first::1", "absent"]) == {"first": [None, CONFIG["first"][1], 7]}


def test_a_yaml_bundle_is_its_json_twin(bundle: Path, tmp_path: Path) -> None:
    expected = Bundle.open(bundle).load_network().state_dict()
    config = read_config(bundle, "inference")
    config["inferer"]["overlap"] = 0.1  # nothing but the file's form differs
    write_config(bundle, "inference", config)
    to_yaml(bundle, "inference", "train")
    assert audit(bundle) == []
    assert verify(bundle) == []
    found = Bundle.open(bundle).load_network().state_dict()
    assert all((found[key] == value).all() for key, value in expected.items())
    received = unpack(pack(bundle, tmp_path / "x.zip").path, tmp_path / "there").path
    assert Bundle.open(received).config("train")["dataset_dir"] == "data"
    assert "$@bundle_root" in (received / "configs" / "inference.yaml").read_text()


def test_a_yaml_bundle_gives_the_labels_of_its_json_twin(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "stranger", Design(network=UNET, transforms=RESAMPLED))
    image = save(blobs(SHAPE), grid("oblique"), tmp_path / "images" / "a.nii.gz")
    expected = by_monai(bundle, image.parent, tmp_path / "monai")
    assert np.array_equal(json_labels := by_medseg(bundle, image), expected)
    before = Bundle.open(bundle).sha256
    to_yaml(bundle, "inference")
    assert Bundle.open(bundle).sha256 != before
    assert np.array_equal(by_medseg(bundle, image), json_labels)
    assert np.array_equal(by_medseg(bundle, image, "network-only"), json_labels)


def test_a_yaml_bundle_trains_as_its_json_twin(tmp_path: Path) -> None:
    write_data(tmp_path)
    metrics = []
    for name in ("json", "yaml"):
        bundle = copy_bundle(tmp_path / name)
        if name == "yaml":
            to_yaml(bundle, "train")
        settings = {**SMALL, "epochs": 1, "datalist": str(tmp_path / "datalist.json"), "dataset_dir": str(tmp_path)}
        train_bundle(bundle, output=tmp_path / f"{name}-run", device="cpu", overrides=settings)
        rows = (tmp_path / f"{name}-run" / "metrics.csv").read_text().splitlines()
        losses = [row.split(",")[rows[0].split(",").index("loss")] for row in rows[1:]]
        metrics.append(losses)
    assert metrics[0] == metrics[1]


@pytest.mark.parametrize("name", ["inference", "train"])
def test_an_attack_in_yaml_is_named(name: str, bundle: Path) -> None:
    config = read_config(bundle, name)
    config["output_dir"] = "$open('x', 'w')"
    write_config(bundle, name, config)
    to_yaml(bundle, name)
    assert any("open" in finding.what for finding in blocks(audit(bundle)))
    with pytest.raises(UntrustedBundle, match=rf"{name}\.yaml"):
        Bundle.open(bundle).permit("infer" if name == "inference" else "train")


def test_yaml_beside_json_is_not_what_labelling_reads(bundle: Path) -> None:
    (bundle / "configs" / "inference.yaml").write_text("run: $open('x', 'w')\n")
    assert blocks(audit(bundle, "infer")) == []
    assert [finding.commands for finding in blocks(audit(bundle))] == [("monai",)]
    assert Bundle.open(bundle).load_network() is not None


@pytest.mark.parametrize("first", ["clean", "attack"])
def test_what_is_evaluated_is_what_was_judged(first: str, bundle: Path, tmp_path: Path) -> None:
    """A file that changes after it was read changes neither the judgement nor what runs."""
    clean = read_config(bundle, "inference")
    attack = json.loads(json.dumps(clean))
    attack["network_def"]["act"] = f"$open('{tmp_path / 'canary'}', 'w')"
    write_config(bundle, "inference", clean if first == "clean" else attack)
    opened = Bundle.open(bundle)
    assert opened.inference["run"]
    write_config(bundle, "inference", attack if first == "clean" else clean)
    if first == "clean":
        assert opened.load_network() is not None
    else:
        with pytest.raises(UntrustedBundle):
            opened.load_network()
    assert not (tmp_path / "canary").exists()


def test_metadata_is_judged_where_monai_mounts_it(bundle: Path) -> None:
    write_config(bundle, "metadata", {**read_config(bundle, "metadata"), "mods": ["$import os"]})
    write_config(bundle, "train", {**read_config(bundle, "train"), "seed": "$@_meta_::mods::0.replace('a', 'b')"})
    assert any("holds an import" in finding.what for finding in blocks(audit(bundle, "train")))


def test_the_table_of_items_is_not_named_by_hand(bundle: Path) -> None:
    config = read_config(bundle, "inference")
    config.update(imports=["$import os"], spacing="$__local_refs['imports::0'].replace('a', 'b')")
    write_config(bundle, "inference", config)
    assert any("table of items" in finding.what for finding in blocks(audit(bundle, "infer")))
