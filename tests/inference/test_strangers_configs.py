"""Configs of others give what MONAI's own evaluator gives on the same files, or are refused by name."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser

from medseg.bundle import Bundle, Permission
from medseg.errors import BundleError, CaseFailed, MedsegError, MissingDependency
from medseg.inference import Options, Predictor, run_batch
from tests.inference.bundles import CROPPED, NORMALISED, ORIENTED, RESAMPLED, UNET, Design, write_bundle
from tests.inference.volumes import blobs, grid, load, meta_tensor, save

Config = dict[str, Any]
Change = Callable[[Config], None]

SHAPE = (27, 22, 19)
ONE_CHANNEL = {**UNET, "out_channels": 1}


def _activation(**arguments: Any) -> Config:
    return {"_target_": "Activationsd", "keys": "pred", **arguments}


def _discrete(**arguments: Any) -> Config:
    return {"_target_": "AsDiscreted", "keys": "pred", **arguments}


def _invert(nearest: bool = False, **arguments: Any) -> Config:
    return {
        "_target_": "Invertd",
        "keys": "pred",
        "transform": "@preprocessing",
        "orig_keys": "image",
        "nearest_interp": nearest,
        **arguments,
    }


SOFTMAX, SIGMOID, ARGMAX, THRESHOLD = (
    _activation(softmax=True),
    _activation(sigmoid=True),
    _discrete(argmax=True),
    _discrete(threshold=0.5),
)
FILL = {"_target_": "FillHolesd", "keys": "pred", "applied_labels": [1]}
FILTER = {"_target_": "LabelFilterd", "keys": "pred", "applied_labels": [2]}
THRESHOLD_TOP = {"_target_": "Lambdad", "keys": "pred", "func": "$lambda x: (x[[1]] > 0.4) * 1.0"}
RENUMBERED = {"_target_": "Lambdad", "keys": "pred", "func": "$lambda x: (x == 2) * 4.0"}
LAMBDA = {"_target_": "Lambdad", "keys": "pred", "func": "$lambda x: x * (x > 1)"}


def _read(bundle: Path) -> Config:
    config: Config = json.loads((bundle / "configs" / "inference.json").read_text())
    return config


def _write(bundle: Path, config: Config) -> None:
    (bundle / "configs" / "inference.json").write_text(json.dumps(config))


def _by_monai(bundle: Path, images: Path, output: Path) -> np.ndarray:
    """The label map that ``python -m monai.bundle run`` writes, in this process."""
    parser = ConfigParser()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        parser.read_config(bundle / "configs" / "inference.json")
        parser.update({"bundle_root": str(bundle), "dataset_dir": str(images), "output_dir": str(output)})
        for entry in ("initialize", "run"):
            if entry in parser:
                parser.get_parsed_content(entry)
    return np.asarray(load(output / "a_seg.nii.gz")[0])


def _by_medseg(bundle: Path, image: Path, permission: Permission = "audited") -> np.ndarray:
    stored = nib.load(image)
    volume = meta_tensor(np.asarray(stored.dataobj, dtype=np.float32), stored.affine)
    predictor = Predictor(Bundle.open(bundle, permission), precision="fp32")
    return np.asarray(predictor.predict(volume).label_map)


def _agree(tmp_path: Path, design: Design, change: Change | None = None, kind: str = "oblique") -> Path:
    """Write a bundle, let both label one image, and compare."""
    bundle = write_bundle(tmp_path / "stranger", design)
    if change is not None:
        config = _read(bundle)
        change(config)
        _write(bundle, config)
    image = save(blobs(SHAPE), grid(kind), tmp_path / "images" / "a.nii.gz")
    expected = _by_monai(bundle, image.parent, tmp_path / "monai")
    found = _by_medseg(bundle, image)
    assert len(np.unique(expected)) > 1, "the case would not tell a difference"
    assert found.shape == expected.shape
    assert np.mean(found == expected) >= 0.9999
    return bundle


ORDERS = {
    "activation after the inversion": [_invert(), SOFTMAX, ARGMAX],
    "activation before and after": [SOFTMAX, _invert(), SOFTMAX, ARGMAX],
    "sigmoid after softmax": [SOFTMAX, SIGMOID, _invert(), ARGMAX],
    "no activation": [_invert(), ARGMAX],
    "labels first": [SOFTMAX, ARGMAX, _invert(nearest=True)],
    "nearest scores": [SOFTMAX, _invert(nearest=True), ARGMAX],
    "labels filtered as written": [ARGMAX, LAMBDA, _invert(nearest=True)],
    "one hot and back": [_discrete(argmax=True, to_onehot=3), _invert(), ARGMAX],
    "two inversions": [SOFTMAX, _invert(), ARGMAX, {**_invert(), "keys": "image"}],
    "inverted twice": [SOFTMAX, _invert(), _invert(), ARGMAX],
    "holes filled on the network's grid": [SOFTMAX, ARGMAX, FILL, _invert(nearest=True)],
    "holes filled on the source grid": [SOFTMAX, _invert(), ARGMAX, FILL],
    "labels filtered before and after": [ARGMAX, FILL, _invert(nearest=True), FILTER],
    "a lambda": [_invert(), ARGMAX, LAMBDA],
    "cast to whole numbers": [_invert(), {"_target_": "CastToTyped", "keys": "pred", "dtype": "$torch.int32"}, ARGMAX],
    "an inversion of the scores' own trace": [_invert(nearest=True, orig_keys="image", to_tensor=False), ARGMAX],
    "nested": [{"_target_": "Compose", "transforms": [SOFTMAX, _invert()]}, ARGMAX],
}


@pytest.mark.parametrize("name", ORDERS)
def test_any_order_of_postprocessing(name: str, tmp_path: Path) -> None:
    _agree(tmp_path, Design(network=UNET, transforms=NORMALISED, post=ORDERS[name]))


@pytest.mark.parametrize(
    "post", [[SIGMOID, _invert(), THRESHOLD], [_invert(), SIGMOID, THRESHOLD]], ids=["usual", "late"]
)
def test_thresholds_on_one_channel(post: list[Config], tmp_path: Path) -> None:
    _agree(tmp_path, Design(network=ONE_CHANNEL, transforms=NORMALISED, post=post, output_channels=1))


@pytest.mark.parametrize(
    "post",
    [
        [ARGMAX, _invert(), THRESHOLD],
        [_invert(), _discrete(argmax=True, threshold=1)],
        [SOFTMAX, _invert(), THRESHOLD_TOP],
    ],
    ids=["labels first", "argmax and a threshold", "one channel taken"],
)
def test_thresholds_on_two_channels(post: list[Config], tmp_path: Path) -> None:
    _agree(tmp_path, Design(network={**UNET, "out_channels": 2}, transforms=NORMALISED, post=post, output_channels=2))


def test_an_order_that_fails_in_monai_fails_the_case_with_its_reason(tmp_path: Path) -> None:
    post = [SOFTMAX, {**_invert(), "keys": "image"}, _invert(), ARGMAX]
    bundle = write_bundle(tmp_path / "stranger", Design(network=UNET, transforms=NORMALISED, post=post))
    with pytest.raises(CaseFailed, match="run as written, fails"):
        Predictor(bundle).predict(meta_tensor(blobs(SHAPE), grid("plain")))


def test_no_inversion_is_saved_on_the_source_grid(tmp_path: Path) -> None:
    def resample(config: Config) -> None:
        config["postprocessing"]["transforms"][-1]["resample"] = True

    bundle = _agree(tmp_path, Design(network=UNET, transforms=ORIENTED, post=[SOFTMAX, ARGMAX]), resample, "permuted")
    assert any("no Invertd" in note for note in Predictor(bundle).recipe.notes)


def test_what_is_said_where_interpolated_labels_would_be_nonsense(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "b", Design(network=UNET, transforms=RESAMPLED, post=[ARGMAX, _invert()]))
    assert any("nearest_interp is false" in note for note in Predictor(bundle).recipe.notes)


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

    _agree(tmp_path, Design(network=UNET, transforms=NORMALISED, post=[SIGMOID, _invert(), ARGMAX]), switch)


def _two_files(bundle: Path) -> None:
    state = torch.load(bundle / "models" / "model.pt", weights_only=True)
    torch.save({key: -value for key, value in state.items()}, bundle / "models" / "model_lowres.pt")
    torch.save({"net": {k: v * 2 for k, v in state.items()}, "optimizer": {"state": {}}}, bundle / "models" / "best.pt")


def _loader(**arguments: Any) -> Config:
    named = {"load_path": "$@bundle_root + '/models/model_lowres.pt'", "load_dict": {"model": "@network"}}
    return {"_target_": "CheckpointLoader", **named, **arguments}


def _set_path(path: str) -> Change:
    def change(config: Config) -> None:
        config["checkpoint"] = path

    return change


def _handlers(*loaders: Config) -> Change:
    def change(config: Config) -> None:
        config["handlers"] = list(loaders)

    return change


def _in_initialize(config: Config) -> None:
    config["handlers"] = []
    config["loader"] = _loader()
    config["initialize"] = ["$@loader(@evaluator)"]


def _inline(config: Config) -> None:
    config["evaluator"]["val_handlers"] = [_loader()]


LOADERS: dict[str, Change] = {
    "another file": _set_path("$@bundle_root + '/models/model_lowres.pt'"),
    "a path joined": _set_path("$os.path.join(@bundle_root, 'models', 'model_lowres.pt')"),
    "a key": _handlers(_loader(load_path="$@bundle_root + '/models/best.pt'", load_dict={"net": "@network"})),
    "two loaders": _handlers(_loader(), _loader(load_path="$@bundle_root + '/models/model.pt'")),
    "a loader that is off": _handlers(_loader(load_path="@checkpoint"), _loader(_disabled_="$1 == 1")),
    "called in initialize": _in_initialize,
    "in the evaluator itself": _inline,
    "not strict": _handlers(_loader(strict=False)),
    "a place to load to": _handlers(_loader(map_location="@device")),
    "the definition": _handlers(_loader(load_dict={"model": "@network_def"})),
}


@pytest.mark.parametrize("name", LOADERS)
@pytest.mark.parametrize("permission", ["audited", "network-only"])
def test_weights_are_those_that_a_loader_names(name: str, permission: Permission, tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "stranger", Design(network=UNET, transforms=ORIENTED))
    _two_files(bundle)
    config = _read(bundle)
    LOADERS[name](config)
    _write(bundle, config)
    image = save(blobs(SHAPE), grid("plain"), tmp_path / "images" / "a.nii.gz")
    expected = _by_monai(bundle, image.parent, tmp_path / "monai")
    assert np.mean(_by_medseg(bundle, image, permission) == expected) >= 0.9999


def test_other_weights_are_another_bundle(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "stranger", Design(network=UNET))
    _two_files(bundle)
    config = _read(bundle)
    config["checkpoint"] = "$@bundle_root + '/models/model_lowres.pt'"
    _write(bundle, config)
    before = Bundle.open(bundle).sha256
    state = torch.load(bundle / "models" / "model_lowres.pt", weights_only=True)
    torch.save({key: value + 1 for key, value in state.items()}, bundle / "models" / "model_lowres.pt")
    assert Bundle.open(bundle).sha256 != before


WRONG_LOADERS: dict[str, tuple[Change, str]] = {
    "a missing file": (_set_path("$@bundle_root + '/models/absent.pt'"), r"models/absent\.pt"),
    "outside": (_set_path("$@bundle_root + '/../model.pt'"), "not in the bundle"),
    "another kind of file": (_set_path("$@bundle_root + '/configs/metadata.json'"), "expected a file"),
}


@pytest.mark.parametrize("name", WRONG_LOADERS)
def test_weights_that_cannot_be_meant_are_refused(name: str, tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "stranger", Design(network=UNET))
    config = _read(bundle)
    change, words = WRONG_LOADERS[name]
    change(config)
    _write(bundle, config)
    with pytest.raises(BundleError, match=words):
        Bundle.open(bundle).load_network()


@pytest.mark.parametrize("permission", ["audited", "network-only"])
@pytest.mark.parametrize("wrap", ["model", "state_dict", "checkpoint"])
def test_training_checkpoints_have_one_answer_everywhere(wrap: str, permission: Permission, tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "stranger", Design(network=UNET))
    bare = Bundle.open(bundle).load_network().state_dict()
    content = {wrap: bare} if wrap != "checkpoint" else {"model": bare, "optimizer": {"state": {}}, "epoch": 3}
    torch.save(content, bundle / "models" / "model.pt")
    found = Bundle.open(bundle, permission).load_network().state_dict()
    assert all(torch.equal(found[key], bare[key]) for key in bare)


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

    _agree(tmp_path, Design(network=UNET, transforms=NORMALISED), change)


def _whole_volume(config: Config) -> None:
    config["inferer"] = {"_target_": "SlidingWindowInferer", "roi_size": [16, 16, 16]}
    config["evaluator"]["inferer"] = {"_target_": "SimpleInferer"}
    config["preprocessing"]["transforms"].insert(-1, {"_target_": "DivisiblePadd", "keys": "image", "k": 4})


def _own_postprocessing(config: Config) -> None:
    config["other"] = config["postprocessing"]
    config["postprocessing"] = {"_target_": "Compose", "transforms": [_discrete(argmax=True)]}
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
    _agree(tmp_path, Design(network=UNET, transforms=NORMALISED), PLACES[name])


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
    _agree(tmp_path, Design(network=UNET, transforms=scaled))


@pytest.mark.parametrize("post", ["scores", "labels"])
def test_lazy_resampling_stays_lazy(post: str, tmp_path: Path) -> None:
    def lazy(config: Config) -> None:
        config["preprocessing"]["lazy"] = True

    back = [SOFTMAX, _invert(), ARGMAX] if post == "scores" else [ARGMAX, _invert(nearest=True)]
    _agree(tmp_path, Design(network=UNET, transforms=NORMALISED, post=back), lazy)


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
    "regions that overlap": (_post(SIGMOID, _invert(), THRESHOLD), "one label a voxel"),
    "no labels": (_post(SOFTMAX, _invert()), "lacks AsDiscreted"),
    "labels renumbered": (_post(_invert(), ARGMAX, RENUMBERED), "nothing names these numbers"),
    "one hot": (_post(_invert(), _discrete(argmax=True, to_onehot=3)), "3 channels"),
    "softmax and sigmoid": (_post(_activation(softmax=True, sigmoid=True), ARGMAX), "Incompatible"),
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
    "slices": (_inferer(_target_="SliceInferer", roi_size=[16, 16]), "SliceInferer"),
    "saliency": (_inferer(_target_="SaliencyInferer", cam_name="CAM", target_layers="x"), "SaliencyInferer"),
    "coordinates": (_inferer(_target_="SlidingWindowInferer", roi_size=[16] * 3, with_coord=True), "with_coord"),
    "two axes": (_inferer(_target_="SlidingWindowInferer", roi_size=[16, 16]), "2 values"),
    "an id that is not there": (_set_path("@nowhere"), "nowhere"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_medseg_does_not_do_is_named_before_the_first_case(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("monai.transforms.utils.has_measure", False)  # as if scikit-image were not installed
    bundle = write_bundle(tmp_path / "stranger", Design(network=UNET, transforms=ORIENTED))
    config = _read(bundle)
    change, words = REFUSED[name]
    change(config)
    _write(bundle, config)
    expected = MissingDependency if name == "a missing package" else MedsegError
    with pytest.raises(expected, match=words):
        Predictor(bundle)


def test_references_of_a_network_taken_alone_are_resolved(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "stranger", Design(network=UNET, transforms=NORMALISED))
    config = _read(bundle)
    config["num_classes"], config["network_def"]["out_channels"] = 3, "@num_classes"
    _lists_added(config)
    config["imports"].append("$import scripts.prepare")
    config["unrelated"] = "$scripts.prepare.run()"
    _write(bundle, config)
    image = save(blobs(SHAPE), grid("plain"), tmp_path / "images" / "a.nii.gz")
    found = _by_medseg(bundle, image, "network-only")
    plain = write_bundle(tmp_path / "plain", Design(network=UNET, transforms=NORMALISED))
    assert np.array_equal(found, _by_medseg(plain, image))


def test_shapes_and_affines_stay_those_of_the_source(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "stranger", Design(network=UNET, transforms=RESAMPLED, post=ORDERS["a lambda"]))
    save(blobs(SHAPE), grid("sheared"), tmp_path / "a.nii.gz")
    affine = nib.load(tmp_path / "a.nii.gz").affine
    assert Predictor(bundle).predict(meta_tensor(blobs(SHAPE), affine)).label_map.shape == SHAPE


def test_the_notes_stand_in_the_report_of_a_run(tmp_path: Path) -> None:
    post = [ARGMAX, _invert()]
    bundle = write_bundle(tmp_path / "stranger", Design(network=UNET, transforms=RESAMPLED, post=post))
    image = save(blobs(SHAPE), grid("plain"), tmp_path / "images" / "a.nii.gz")
    said: list[str] = []
    report = run_batch(bundle, [image], tmp_path / "out", Options(precision="fp32"), announce=said.append)
    assert any("nearest_interp is false" in note for note in report.content["notes"])
    assert any("nearest_interp is false" in line for line in said)
