"""Configs of others give what MONAI's own evaluator gives on the same files, or are refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from medseg.errors import CaseFailed, MedsegError, MissingDependency
from medseg.inference import Options, Predictor, run_batch
from tests.inference.bundles import CROPPED, NORMALISED, ORIENTED, RESAMPLED, UNET, Design, write_bundle
from tests.inference.strangers import (
    ARGMAX,
    FILL,
    FILTER,
    LAMBDA,
    ONE_CHANNEL,
    SHAPE,
    SIGMOID,
    SOFTMAX,
    SUMMED,
    THRESHOLD,
    THRESHOLD_TOP,
    Change,
    Config,
    activation,
    agree,
    by_medseg,
    discrete,
    invert,
    read,
    set_path,
    write,
)
from tests.inference.volumes import blobs, grid, meta_tensor, save

ORDERS = {
    "activation after the inversion": [invert(), SOFTMAX, ARGMAX],
    "activation before and after": [SOFTMAX, invert(), SOFTMAX, ARGMAX],
    "sigmoid after softmax": [SOFTMAX, SIGMOID, invert(), ARGMAX],
    "no activation": [invert(), ARGMAX],
    "labels first": [SOFTMAX, ARGMAX, invert(nearest=True)],
    "nearest scores": [SOFTMAX, invert(nearest=True), ARGMAX],
    "labels filtered as written": [ARGMAX, LAMBDA, invert(nearest=True)],
    "one hot and back": [discrete(argmax=True, to_onehot=3), invert(), ARGMAX],
    "two inversions": [SOFTMAX, invert(), ARGMAX, {**invert(), "keys": "image"}],
    "inverted twice": [SOFTMAX, invert(), invert(), ARGMAX],
    "holes filled on the network's grid": [SOFTMAX, ARGMAX, FILL, invert(nearest=True)],
    "holes filled on the source grid": [SOFTMAX, invert(), ARGMAX, FILL],
    "labels filtered before and after": [ARGMAX, FILL, invert(nearest=True), FILTER],
    "a lambda": [invert(), ARGMAX, LAMBDA],
    "cast to whole numbers": [invert(), {"_target_": "CastToTyped", "keys": "pred", "dtype": "$torch.int32"}, ARGMAX],
    "an inversion of the scores' own trace": [invert(nearest=True, orig_keys="image", to_tensor=False), ARGMAX],
    "nested": [{"_target_": "Compose", "transforms": [SOFTMAX, invert()]}, ARGMAX],
}


@pytest.mark.parametrize("name", ORDERS)
def test_any_order_of_postprocessing(name: str, tmp_path: Path) -> None:
    agree(tmp_path, Design(network=UNET, transforms=NORMALISED, post=ORDERS[name]))


@pytest.mark.parametrize(
    "post", [[SIGMOID, invert(), THRESHOLD], [invert(), SIGMOID, THRESHOLD]], ids=["usual", "late"]
)
def test_thresholds_on_one_channel(post: list[Config], tmp_path: Path) -> None:
    agree(tmp_path, Design(network=ONE_CHANNEL, transforms=NORMALISED, post=post, output_channels=1))


@pytest.mark.parametrize(
    "post",
    [
        [ARGMAX, invert(), THRESHOLD],
        [invert(), discrete(argmax=True, threshold=1)],
        [SOFTMAX, invert(), THRESHOLD_TOP],
    ],
    ids=["labels first", "argmax and a threshold", "one channel taken"],
)
def test_thresholds_on_two_channels(post: list[Config], tmp_path: Path) -> None:
    agree(tmp_path, Design(network={**UNET, "out_channels": 2}, transforms=NORMALISED, post=post, output_channels=2))


def test_an_order_that_fails_in_monai_fails_the_case_with_its_reason(tmp_path: Path) -> None:
    post = [SOFTMAX, {**invert(), "keys": "image"}, invert(), ARGMAX]
    bundle = write_bundle(tmp_path / "stranger", Design(network=UNET, transforms=NORMALISED, post=post))
    with pytest.raises(CaseFailed, match="run as written, fails"):
        Predictor(bundle).predict(meta_tensor(blobs(SHAPE), grid("plain")))


def test_no_inversion_is_saved_on_the_source_grid(tmp_path: Path) -> None:
    def resample(config: Config) -> None:
        config["postprocessing"]["transforms"][-1]["resample"] = True

    bundle = agree(tmp_path, Design(network=UNET, transforms=ORIENTED, post=[SOFTMAX, ARGMAX]), resample, "permuted")
    assert any("no Invertd" in note for note in Predictor(bundle).config.notes)


def test_what_is_said_where_interpolated_labels_would_be_nonsense(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "b", Design(network=UNET, transforms=RESAMPLED, post=[ARGMAX, invert()]))
    assert any("nearest_interp is false" in note for note in Predictor(bundle).config.notes)


SWITCHES: dict[str, tuple[Any, Config]] = {
    "a bool": (True, {}),
    "an expression that is false": ("$False", {}),
    "a word that is false": ("false", {}),
    "a word that is true": (" True", {}),
    "a reference": ("@off", {"off": True}),
    "a reference to a word": ("@off", {"off": "true"}),
    "a reference to an expression": ("@off", {"off": "$not False"}),
    "an expression with a reference": ("$not @on", {"on": False}),
    "an empty text": ("", {}),
    "a number": (1, {}),
}


@pytest.mark.parametrize("name", SWITCHES)
def test_disabled_is_evaluated_as_monai_does(name: str, tmp_path: Path) -> None:
    def switch(config: Config) -> None:
        value, more = SWITCHES[name]
        config.update(more)
        config["preprocessing"]["transforms"][3]["_disabled_"] = value
        config["postprocessing"]["transforms"][0]["_disabled_"] = value

    agree(tmp_path, Design(network=UNET, transforms=NORMALISED, post=[SIGMOID, invert(), ARGMAX]), switch)


INFERERS: dict[str, Config] = {
    "gaussian with sigmas": {"mode": "gaussian", "sigma_scale": [0.1, 0.2, 0.3], "overlap": [0.5, 0.25, 0.6]},
    "one number": {"roi_size": 16, "cache_roi_weight_map": False},
    "the volume's own size": {"roi_size": [16, -1, 16]},
    "reflected": {"roi_size": [32, 16, 16], "padding_mode": "reflect"},
    "a value around": {"roi_size": [32, 32, 32], "cval": -5.0},
    "cached weights": {"mode": "gaussian", "cache_roi_weight_map": True},
    "buffered": {"buffer_steps": 1, "buffer_dim": 0},
}


@pytest.mark.parametrize("name", INFERERS)
def test_windows_as_written(name: str, tmp_path: Path) -> None:
    def change(config: Config) -> None:
        config["inferer"].update(INFERERS[name])
        config["preprocessing"]["transforms"].insert(-1, {"_target_": "DivisiblePadd", "keys": "image", "k": 4})

    agree(tmp_path, Design(network=UNET, transforms=NORMALISED), change)


def _whole_volume(config: Config) -> None:
    config["inferer"] = {"_target_": "SlidingWindowInferer", "roi_size": [16, 16, 16]}
    config["evaluator"]["inferer"] = {"_target_": "SimpleInferer"}
    config["preprocessing"]["transforms"].insert(-1, {"_target_": "DivisiblePadd", "keys": "image", "k": 4})


def _own_postprocessing(config: Config) -> None:
    config["other"] = config["postprocessing"]
    config["postprocessing"] = {"_target_": "Compose", "transforms": [discrete(argmax=True)]}
    config["evaluator"]["postprocessing"] = "@other"


def _lists_added(config: Config) -> None:
    listed = config["preprocessing"]["transforms"]
    config["first"], config["second"] = listed[:3], listed[3:]
    config["preprocessing"]["transforms"] = "$@first + @second"


def _overlaid(config: Config) -> None:
    config["inferer#overlap"] = 0.6
    config["preprocessing#transforms#3#pixdim"] = [2.0, 2.0, 2.0]


def _other_preprocessing(config: Config) -> None:
    config["prepare"] = config.pop("preprocessing")
    config["dataset"]["transform"] = "@prepare"
    config["postprocessing"]["transforms"][1]["transform"] = "@prepare"


PLACES: dict[str, Change] = {
    "the evaluator's own inferer": _whole_volume,
    "the evaluator's own postprocessing": _own_postprocessing,
    "lists added": _lists_added,
    "keys that overlay": _overlaid,
    "another id for the preprocessing": _other_preprocessing,
}


@pytest.mark.parametrize("name", PLACES)
def test_what_the_evaluator_is_given_counts(name: str, tmp_path: Path) -> None:
    agree(tmp_path, Design(network=UNET, transforms=NORMALISED), PLACES[name])


SPACING = {"_target_": "Spacingd", "keys": "image", "pixdim": [1.5, 1.2, 2.0]}
PREPARATIONS: dict[str, list[Config]] = {
    "align_corners": [*ORIENTED, {**SPACING, "align_corners": True}],
    "scale_extent": [*ORIENTED, {**SPACING, "scale_extent": True, "align_corners": True}],
    "recompute_affine": [*ORIENTED, {**SPACING, "recompute_affine": True}],
    "nearest": [*ORIENTED, {**SPACING, "mode": "nearest"}],
    "zeros around": [*ORIENTED, {**SPACING, "padding_mode": "zeros"}],
    "diagonal": [{**SPACING, "diagonal": True}],
    "spline": [*ORIENTED, {**SPACING, "mode": 3, "padding_mode": "reflect"}],
    "a part of the spacing": [*ORIENTED, {**SPACING, "pixdim": [1.5, -1.0, 2.0]}],
    "labels of the axes": [{**ORIENTED[0], "axcodes": "LPS", "labels": [["R", "L"], ["A", "P"], ["I", "S"]]}, SPACING],
    "cropped to the foreground": [*CROPPED],
    "padded": [*RESAMPLED, {"_target_": "DivisiblePadd", "keys": "image", "k": 8}],
    "resized": [*ORIENTED, {"_target_": "Resized", "keys": "image", "spatial_size": [24, 24, 24]}],
    "cut or padded": [*RESAMPLED, {"_target_": "ResizeWithPadOrCropd", "keys": "image", "spatial_size": [24, 16, 12]}],
    "missing keys allowed": [{**step, "keys": ["image", "label"], "allow_missing_keys": True} for step in RESAMPLED],
    "flipped": [*ORIENTED, {"_target_": "Flipd", "keys": "image", "spatial_axis": 0}, SPACING],
}


@pytest.mark.parametrize("name", PREPARATIONS)
def test_ways_to_prepare_are_undone_as_monai_does(name: str, tmp_path: Path) -> None:
    scaled = [*PREPARATIONS[name], {"_target_": "NormalizeIntensityd", "keys": "image"}]
    agree(tmp_path, Design(network=UNET, transforms=scaled))


@pytest.mark.parametrize("post", ["scores", "labels"])
def test_lazy_resampling_stays_lazy(post: str, tmp_path: Path) -> None:
    def lazy(config: Config) -> None:
        config["preprocessing"]["lazy"] = True

    back = [SOFTMAX, invert(), ARGMAX] if post == "scores" else [ARGMAX, invert(nearest=True)]
    agree(tmp_path, Design(network=UNET, transforms=NORMALISED, post=back), lazy)


def _evaluator(**arguments: Any) -> Change:
    def change(config: Config) -> None:
        config["evaluator"].update(arguments)

    return change


def _inferer(**arguments: Any) -> Change:
    def change(config: Config) -> None:
        config["inferer"] = arguments

    return change


def _post(*steps: Config) -> Change:
    def change(config: Config) -> None:
        config["postprocessing"]["transforms"] = list(steps)

    return change


def _handler_that_changes(config: Config) -> None:
    config["handlers"].append({"_target_": "PostProcessing", "transform": "@postprocessing"})


def _network_inside(config: Config) -> None:
    config["network"] = "$torch.nn.Sequential(@network_def, torch.nn.Softmax(dim=1))"


def _weights_by_hand(config: Config) -> None:
    config["initialize"] = ["$@network.load_state_dict(torch.load(@checkpoint, weights_only=True))"]


def _half(config: Config) -> None:
    config["initialize"] = ["$@network.half()"]


REFUSED: dict[str, tuple[Change, str]] = {
    "weights by hand": (_weights_by_hand, "changes the network"),
    "half precision": (_half, "changes the network"),
    "regions that overlap": (_post(SIGMOID, invert(), THRESHOLD), "one label a voxel"),
    "no labels": (_post(SOFTMAX, invert()), "lacks AsDiscreted"),
    "numbers without names": (_post(SIGMOID, invert(), THRESHOLD, SUMMED), "channel_def does not name"),
    "one hot": (_post(invert(), discrete(argmax=True, to_onehot=3)), "3 channels"),
    "softmax and sigmoid": (_post(activation(softmax=True, sigmoid=True), ARGMAX), "Incompatible"),
    "a missing package": (
        _post(ARGMAX, {"_target_": "KeepLargestConnectedComponentd", "keys": "pred"}),
        "scikit-image",
    ),
    "a key that is not there": (_post({**ARGMAX, "keys": ["pred", "label"]}), "label"),
    "ensemble": (_evaluator(_target_="EnsembleEvaluator"), "EnsembleEvaluator"),
    "training mode": (_evaluator(mode="train"), "mode"),
    "batches together": (_evaluator(decollate=False), "decollate"),
    "a batch of its own": (_evaluator(prepare_batch="$lambda x: x"), "prepare_batch"),
    "a handler that changes": (_handler_that_changes, "PostProcessing"),
    "a network around the network": (_network_inside, "network"),
    "slices of volumes": (_inferer(_target_="SliceInferer", roi_size=[16] * 3), "4 values"),
    "saliency": (_inferer(_target_="SaliencyInferer", cam_name="CAM", target_layers="x"), "SaliencyInferer"),
    "coordinates": (_inferer(_target_="SlidingWindowInferer", roi_size=[16] * 3, with_coord=True), "with_coord"),
    "two axes": (_inferer(_target_="SlidingWindowInferer", roi_size=[16, 16]), "2 values"),
    "an id that is not there": (set_path("@nowhere"), "nowhere"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_medseg_does_not_do_is_named_before_the_first_case(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("monai.transforms.utils.has_measure", False)  # as if scikit-image were not installed
    bundle = write_bundle(tmp_path / "stranger", Design(network=UNET, transforms=ORIENTED))
    config = read(bundle)
    change, words = REFUSED[name]
    change(config)
    write(bundle, config)
    expected = MissingDependency if name == "a missing package" else MedsegError
    with pytest.raises(expected, match=words):
        Predictor(bundle)


def test_references_of_a_network_taken_alone_are_resolved(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "stranger", Design(network=UNET, transforms=NORMALISED))
    config = read(bundle)
    config["num_classes"], config["network_def"]["out_channels"] = 3, "@num_classes"
    _lists_added(config)
    config["imports"].append("$import scripts.prepare")
    config["unrelated"] = "$scripts.prepare.run()"
    write(bundle, config)
    image = save(blobs(SHAPE), grid("plain"), tmp_path / "images" / "a.nii.gz")
    found = by_medseg(bundle, image, "network-only")
    plain = write_bundle(tmp_path / "plain", Design(network=UNET, transforms=NORMALISED))
    assert np.array_equal(found, by_medseg(plain, image))


def test_shapes_and_affines_stay_those_of_the_source(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "stranger", Design(network=UNET, transforms=RESAMPLED, post=ORDERS["a lambda"]))
    save(blobs(SHAPE), grid("sheared"), tmp_path / "a.nii.gz")
    affine = nib.load(tmp_path / "a.nii.gz").affine
    assert Predictor(bundle).predict(meta_tensor(blobs(SHAPE), affine)).label_map.shape == SHAPE


def test_the_notes_stand_in_the_report_of_a_run(tmp_path: Path) -> None:
    post = [ARGMAX, invert()]
    bundle = write_bundle(tmp_path / "stranger", Design(network=UNET, transforms=RESAMPLED, post=post))
    image = save(blobs(SHAPE), grid("plain"), tmp_path / "images" / "a.nii.gz")
    said: list[str] = []
    report = run_batch(bundle, [image], tmp_path / "out", Options(precision="fp32"), announce=said.append)
    assert any("nearest_interp is false" in note for note in report.content["notes"])
    assert any("nearest_interp is false" in line for line in said)
