"""What bundles of the MONAI Model Zoo do and medseg's own do not, compared with MONAI's own evaluator."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from medseg.bundle import Bundle
from medseg.bundle.audit import audit
from medseg.bundle.portable import arrays_as_data, portable
from medseg.errors import BundleError
from medseg.inference import Predictor
from medseg.inference.config import channels_of
from tests.inference.bundles import CONVOLUTION, NORMALISED, ORIENTED, RESAMPLED, UNET, Design, write_bundle
from tests.inference.strangers import (
    ARGMAX,
    ONE_CHANNEL,
    RENUMBERED,
    SHAPE,
    SIGMOID,
    SOFTMAX,
    SUMMED,
    THRESHOLD,
    Config,
    agree,
    by_medseg,
    by_monai,
    invert,
    read,
    write,
)
from tests.inference.volumes import blobs, grid, meta_tensor, save

FLAT_UNET = {**UNET, "spatial_dims": 2}
MERGE = "$lambda x: torch.where(x[[2]] > 0, 4, torch.where(x[[0]] > 0, 1, torch.where(x[[1]] > 0, 2, 0)))"
MERGED = {"_target_": "Lambdad", "keys": "pred", "func": MERGE}


def _image(folder: Path, name: str = "a", kind: str = "oblique", seed: int = 0) -> Path:
    return save(np.roll(blobs(SHAPE), seed, axis=0), grid(kind), folder / "images" / f"{name}.nii.gz")


def _describe(bundle: Path, side: str, **facts: object) -> None:
    file = bundle / "configs" / "metadata.json"
    metadata = json.loads(file.read_text())
    next(iter(metadata["network_data_format"][side].values())).update(facts)
    file.write_text(json.dumps(metadata))


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_network_of_slices_goes_through_a_volume(axis: int, tmp_path: Path) -> None:
    def slices(config: Config) -> None:
        config["inferer"] = {"_target_": "SliceInferer", "roi_size": [16, 12], "spatial_dim": axis, "sw_batch_size": 3}

    bundle = agree(tmp_path, Design(network=FLAT_UNET, transforms=RESAMPLED), slices)
    _describe(bundle, "inputs", spatial_shape=[16, 12])
    assert np.array_equal(by_medseg(bundle, tmp_path / "images" / "a.nii.gz"), _again(bundle, tmp_path))


def _again(bundle: Path, tmp_path: Path) -> np.ndarray:
    """The same with the metadata silent about the size of its input."""
    _describe(bundle, "inputs", spatial_shape=None)
    return by_medseg(bundle, tmp_path / "images" / "a.nii.gz")


def test_a_network_of_slices_without_an_inferer_for_them_is_refused(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "flat", Design(network=FLAT_UNET))
    _describe(bundle, "inputs", spatial_shape=[16, 16])
    with pytest.raises(BundleError, match=r"2 dimensions.*SliceInferer"):
        Predictor(bundle)


def test_overlapping_regions_are_merged_as_the_bundle_merges_them_and_named(tmp_path: Path) -> None:
    design = Design(network=UNET, transforms=NORMALISED, post=[SIGMOID, invert(), THRESHOLD, MERGED])
    bundle, image = write_bundle(tmp_path / "tumour", design), _image(tmp_path)
    _describe(bundle, "outputs", channel_def={"0": "Tumor core", "1": "Whole tumor", "2": "Enhancing tumor"})
    expected = by_monai(bundle, image.parent, tmp_path / "monai")
    assert {1, 2, 4} <= set(np.unique(expected))
    assert np.mean(by_medseg(bundle, image) == expected) >= 0.9999
    predictor = Predictor(bundle)
    assert predictor.bundle.labels == {
        1: "Tumor core without Enhancing tumor",
        2: "Whole tumor without Tumor core, Enhancing tumor",
        4: "Enhancing tumor",
    }
    assert any("label map holds 1 Tumor core" in note for note in predictor.config.notes)
    assert Predictor(predictor.bundle).bundle.labels == predictor.bundle.labels, "read once more"


def test_renumbered_labels_keep_their_names(tmp_path: Path) -> None:
    bundle = agree(tmp_path, Design(network=UNET, transforms=ORIENTED, post=[invert(), ARGMAX, RENUMBERED]))
    assert Predictor(bundle).bundle.labels == {4: "large"}


def test_numbers_that_no_channel_is_named_for_are_refused(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "a", Design(network=UNET, post=[invert(), ARGMAX, RENUMBERED]))
    _describe(bundle, "outputs", channel_def={"0": "background"})
    with pytest.raises(BundleError, match="name every one"):
        Predictor(bundle)


def test_channels_under_names_of_their_own(tmp_path: Path) -> None:
    network = {**UNET, "in_channels": 2}
    transforms = ({"_target_": "Orientationd", "keys": ["artery", "vein"], "axcodes": "LPS"},)
    design = Design(network=network, input_channels=2, post=[{**invert(), "orig_keys": "artery"}, SOFTMAX, ARGMAX])
    bundle = write_bundle(tmp_path / "two", design)
    images = [_image(tmp_path, name, seed=shift) for name, shift in (("a", 0), ("b", 3))]
    config = read(bundle)
    loaded = ["artery", "vein", "label"]
    load = {"_target_": "LoadImaged", "keys": loaded, "reader": "NibabelReader", "image_only": False}
    asked = {"_target_": "CopyItemsd", "keys": "artery_meta_dict", "names": "image_meta_dict"}
    first = {"_target_": "EnsureChannelFirstd", "keys": ["artery", "vein"]}
    concat = {"_target_": "ConcatItemsd", "keys": ["artery", "vein"], "name": "image"}
    config["preprocessing"]["transforms"] = [load, first, *transforms, asked, concat]
    config["dataset"]["data"] = [{"artery": str(images[0]), "vein": str(images[1]), "label": str(images[0])}]
    write(bundle, config)
    assert channels_of(Bundle.open(bundle)).first == "artery"
    expected = by_monai(bundle, images[0].parent, tmp_path / "monai")
    volumes = [meta_tensor(np.roll(blobs(SHAPE), shift, axis=0), grid("oblique")) for shift in (0, 3)]
    found = Predictor(bundle).predict({"image": volumes[0], "vein": volumes[1]}).label_map
    assert len(np.unique(expected)) > 1
    assert np.mean(found == expected) >= 0.9999


def _searched(config: Config) -> None:
    """An architecture in a file, as DiNTS's search leaves it, read on a device that is not here."""
    config["architecture"] = "$torch.load(@bundle_root + '/models/code.pt', map_location=torch.device('cuda'))"
    config["network_def"]["bias"] = "$bool(@architecture['node_a'][0])"
    config["space"] = {"_target_": "torch.device", "device": "cuda:0"}


def test_an_architecture_of_numpy_arrays_is_read_as_data_off_cuda(tmp_path: Path) -> None:
    design = Design(network={**UNET, "bias": False}, transforms=RESAMPLED)
    bundle, image = write_bundle(tmp_path / "searched", design), _image(tmp_path)
    expected = by_medseg(bundle, image)
    config = read(bundle)
    _searched(config)
    write(bundle, config)
    torch.save({"node_a": np.array([0.0, 1.0]), "epochs": 3}, bundle / "models" / "code.pt")
    assert np.array_equal(by_medseg(bundle, image), expected)


def test_regions_whose_numbers_are_summed_have_no_names(tmp_path: Path) -> None:
    design = Design(network=UNET, transforms=NORMALISED, post=[SIGMOID, invert(), THRESHOLD, SUMMED])
    bundle = write_bundle(tmp_path / "summed", design)
    _describe(bundle, "outputs", channel_def={"0": "a", "1": "b", "2": "c"})
    with pytest.raises(BundleError, match="makes 3 where two channels are"):
        Predictor(bundle)


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("kind", ["int64", "float32", "bool", ">i4"])
def test_arrays_as_data_are_those_that_were_saved(kind: str, order: str, tmp_path: Path) -> None:
    values = np.array(np.arange(12).reshape(3, 4) % 5, dtype=kind, order="F" if order == "F" else "C")
    torch.save({"values": values}, tmp_path / "a.pt")
    with arrays_as_data():
        found = torch.load(tmp_path / "a.pt", weights_only=True)["values"]
    assert np.array_equal(found, values)


@pytest.mark.parametrize("values", [np.array([{}], dtype=object), np.array(["text"]), np.zeros(2, "f4,i4")])
def test_arrays_of_anything_but_numbers_are_refused(values: np.ndarray, tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "searched", Design(network=UNET))
    config = read(bundle)
    _searched(config)
    write(bundle, config)
    torch.save({"node_a": values}, bundle / "models" / "code.pt")
    assert any(one.severity == "block" and one.file == "models/code.pt" for one in audit(bundle))
    with arrays_as_data(), pytest.raises(Exception, match=r"numbers|bytes|Unsupported"):
        torch.load(bundle / "models" / "code.pt", weights_only=True)


def test_devices_and_old_arguments_are_those_of_this_machine() -> None:
    config = {
        "a": "$torch.load(@file, map_location=torch.device('cuda'))",
        "b": {"_target_": "SwinUNETR", "img_size": 96, "device": "cuda:1"},
        "c": ["cuda", {"img_size": 3}],
    }
    assert portable(config, has_cuda=False) == {
        "a": "$torch.load(@file, map_location=torch.device('cpu'))",
        "b": {"_target_": "SwinUNETR", "device": "cpu"},
        "c": ["cuda", {"img_size": 3}],
    }
    assert portable(config, has_cuda=True)["a"] == config["a"]


def test_an_only_channel_may_come_out_as_any_number(tmp_path: Path) -> None:
    times = {"_target_": "Lambdad", "keys": "pred", "func": "$lambda x: x * 255.0"}
    design = Design(network=ONE_CHANNEL, output_channels=1, transforms=ORIENTED, post=[SIGMOID, THRESHOLD, times])
    bundle = agree(tmp_path, design)
    assert Predictor(bundle).bundle.labels == {255: "small"}


def test_plain_bundles_keep_their_names(tmp_path: Path) -> None:
    assert Predictor(write_bundle(tmp_path / "a", Design(network=CONVOLUTION))).bundle.labels == {
        1: "small",
        2: "large",
    }
