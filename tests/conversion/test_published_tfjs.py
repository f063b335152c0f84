"""TensorFlow.js layers models become bundles that compute the same; what is damaged or hostile is refused by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from typer.testing import CliRunner

from medseg.bundle import Bundle, audit
from medseg.bundle.findings import blocks
from medseg.cli import infer as infer_command
from medseg.cli.main import app
from medseg.conversion.imported import ImportOptions
from medseg.conversion.published import import_published, is_published
from medseg.errors import BundleError, UsageError
from medseg.inference import Predictor
from medseg.sharing.verify import verify
from tests.conversion.tfjs_models import TfjsModel, layer
from tests.inference.bundles import run_monai
from tests.inference.volumes import blobs, load, meta_tensor, save

assert infer_command

Content = dict[str, Any]
_HEAD = np.array([[0, 0, 1.0, -9], [1, 0, 0, -7], [0, -1, 0, 8], [0, 0, 0, 1]])  # axes P->A, S->I, L->R


def _imported(model: TfjsModel, tmp_path: Path, **options: Any) -> Path:
    source = model.write(tmp_path / "source")
    return import_published(source, tmp_path, ImportOptions("tiny_t1_segmentation", **options)).path


@pytest.mark.parametrize("activation", ["elu", "relu"])
def test_the_network_computes_what_the_file_says(tmp_path: Path, activation: str) -> None:
    model = TfjsModel.stack(activation=activation)
    folder = _imported(model, tmp_path)
    volume = blobs((15, 12, 13))
    with torch.inference_mode():
        found = Bundle.open(folder).load_network()(torch.from_numpy(volume)[None, None])[0].numpy()
    expected = np.moveaxis(model.scores(volume), -1, 0)
    assert np.abs(found - expected).max() < 1e-5 * np.abs(expected).max()


def _balanced(model: TfjsModel, image: NDArray[np.float32]) -> NDArray[np.intp]:
    """Labels of an image on ``_HEAD``'s axes by the model, whose last biases are changed so that every class wins.

    Axes in the order left, inferior, anterior, the middle of 24³ voxels, between the least and largest value.
    """
    clipped = np.minimum(image, np.percentile(image[image > 0], 99.9))
    turned = clipped.transpose(2, 1, 0)[::-1]  # L->R, S->I, P->A: now towards left, inferior, anterior
    margins = [((24 - n) // 2, 24 - n - (24 - n) // 2) for n in turned.shape]
    head = np.pad(turned, margins)
    scores = model.scores((head - head.min()) / (head.max() - head.min()))
    inner = tuple(slice(low, low + n) for (low, _), n in zip(margins, turned.shape, strict=True))
    middle = np.median(scores[inner], axis=(0, 1, 2)).astype(np.float32)
    model.weights["output/bias"] -= middle
    expected: NDArray[np.intp] = (scores - middle).argmax(-1)[inner][::-1].transpose(2, 1, 0)
    assert len(np.unique(expected)) == 3
    return expected


def _without_range(folder: Path) -> None:
    metadata = json.loads((folder / "configs" / "metadata.json").read_text())
    assert metadata.pop("training_range")["fov_mm"]["low"] > [100] * 3  # a small head is none
    (folder / "configs" / "metadata.json").write_text(json.dumps(metadata))


def test_labels_a_head_as_the_browser_does_and_as_monai_does(tmp_path: Path) -> None:
    model, image = TfjsModel.stack(), blobs((14, 17, 20))
    expected = _balanced(model, image)
    folder = _imported(model, tmp_path)
    _without_range(folder)
    path = save(image, _HEAD, tmp_path / "images" / "a.nii.gz")

    labels = Predictor(folder).predict(meta_tensor(image, _HEAD)).label_map
    assert (labels != expected).mean() < 1e-3
    run_monai(folder, path.parent, tmp_path / "out")
    monai, _ = load(next((tmp_path / "out").rglob("*.nii.gz")))
    assert (labels != monai).mean() < 1e-3


def test_an_image_that_is_conformed_is_not_clipped_again(tmp_path: Path) -> None:
    transforms = json.loads((_imported(TfjsModel.stack(), tmp_path) / "configs" / "inference.json").read_text())
    clip = eval(transforms["preprocessing"]["transforms"][2]["func"][1:], {"np": np})
    raw = torch.arange(1000.0).reshape(1, 10, 10, 10)
    assert clip(raw).max() < 999
    assert clip(torch.full((1, 256, 256, 256), 255, dtype=torch.uint8)).max() == 255


def test_the_bundle_says_what_it_is(tmp_path: Path) -> None:
    model = TfjsModel.stack()
    model.extra["_comment"] = "Normalize the data for this model with min = 5% quantile, max = 95% quantile"
    source = model.write(tmp_path / "source")
    colours = {"R": [0, 255, 1], "G": [0, 255, 2], "B": [0, 254, 3], "labels": ["Unknown", "White", "Grey"]}
    (source / "colormap.json").write_text(json.dumps(colours))
    (tmp_path / "LICENSE").write_text("As free as can be\n")
    imported = import_published(source, tmp_path, ImportOptions())
    assert imported.path.name == "source_segmentation"
    bundle = Bundle.open(imported.path)
    assert bundle.labels == {1: "White", 2: "Grey"}
    assert bundle.label_codes[1] == {"colour": "#fffffe"}
    assert (imported.path / "LICENSE").read_text() == "As free as can be\n"
    assert any("margin of 7" in note for note in imported.notes)
    assert any("Unknown" in note for note in imported.notes)
    steps = bundle.config("inference")["preprocessing"]["transforms"]
    assert next(step for step in steps if "lower" in step)["upper"] == 95
    assert blocks(audit(imported.path, "infer")) == []
    findings = verify(imported.path)
    assert [finding for finding in findings if finding.severity == "block"] == []
    assert any("White (label 1) has no code" in finding.what for finding in findings)
    assert is_published(source)
    assert is_published(source / "model.json")
    assert not is_published(imported.path)
    with pytest.raises(UsageError, match="exists already; give another --name"):
        import_published(source, tmp_path, ImportOptions())


def test_tensors_are_believed_where_the_topology_contradicts_them(tmp_path: Path) -> None:
    model = TfjsModel.stack()
    model.layers[1]["config"]["filters"] = 99
    imported = import_published(model.write(tmp_path / "source"), tmp_path, ImportOptions())
    assert any("states filters 99, its weights have 4" in note for note in imported.notes)


def _weights(content: Content) -> list[Content]:
    return content["weightsManifest"][0]["weights"]


def _layers(content: Content) -> list[Content]:
    return content["modelTopology"]["model_config"]["config"]["layers"]


def _change(place: Callable[[Content], Any], key: Any, value: Any) -> Callable[[Content], None]:
    return lambda content: place(content).__setitem__(key, value)


_HOSTILE: dict[str, tuple[Callable[[Content], None], str]] = {
    "huge shape": (_change(lambda c: _weights(c)[0], "shape", [1 << 40, 1 << 20]), "model.json describes"),
    "negative shape": (_change(lambda c: _weights(c)[0], "shape", [-3, 3]), "whole numbers"),
    "too few bytes": (_change(lambda c: _weights(c)[0], "shape", [3, 3, 3, 1, 5]), "bytes, model.json describes"),
    "other dtype": (_change(lambda c: _weights(c)[0], "dtype", "int32"), "expected one of float32"),
    "quantised": (_change(lambda c: _weights(c)[0], "quantization", {"dtype": "uint8"}), "are quantised"),
    "twice": (_change(lambda c: _weights(c)[1], "name", "conv0/kernel"), "stand twice"),
    "path up": (_change(lambda c: c["weightsManifest"][0], "paths", ["../a.bin"]), "file's name without a folder"),
    "absolute": (_change(lambda c: c["weightsManifest"][0], "paths", ["/etc/passwd"]), "without a folder"),
    "no file": (_change(lambda c: c["weightsManifest"][0], "paths", ["c.bin"]), "cannot find"),
    "other layer": (_change(lambda c: _layers(c)[2], "class_name", "Lambda"), "is a Lambda; medseg reads stacks"),
    "other activation": (_change(lambda c: _layers(c)[2]["config"], "activation", "evil"), "the activation evil"),
    "strides": (_change(lambda c: _layers(c)[1]["config"], "strides", [2, 2, 2]), "has strides"),
    "valid": (_change(lambda c: _layers(c)[1]["config"], "padding", "valid"), "changes the size"),
    "dilation": (_change(lambda c: _layers(c)[1]["config"], "dilation_rate", [1 << 40] * 3), "dilation_rate"),
    "branch": (_change(lambda c: _layers(c)[3], "inbound_nodes", [[["input", 0, 0, {}]]]), "does not follow"),
    "extent": (_change(lambda c: _layers(c)[0]["config"], "batch_input_shape", [None, 1 << 40]), "input of shape"),
    "list": (_change(lambda c: _layers(c)[2]["config"], "activation", ["elu"]), "the activation"),
    "own slope": (
        lambda c: _layers(c)[2].update(class_name="ReLU", config={"name": "act0", "negative_slope": 0.3}),
        "parameters of its own",
    ),
    "another input": (lambda c: _layers(c)[2].update(class_name="InputLayer"), "another input"),
    "another output": (
        _change(lambda c: c["modelTopology"]["model_config"]["config"], "output_layers", [["act1", 0, 0]]),
        "expected its last layer",
    ),
    "files again": (_change(lambda c: c["weightsManifest"][0], "paths", ["b.bin"] * 1000), "bytes, model.json"),
    "unused": (_change(lambda c: _layers(c)[1]["config"], "name", "other"), "does not follow|no kernel"),
}


@pytest.mark.parametrize("name", _HOSTILE)
def test_a_model_that_is_damaged_or_hostile_is_refused(tmp_path: Path, name: str) -> None:
    model = TfjsModel.stack()
    content = model.content()
    change, message = _HOSTILE[name]
    change(content)
    (tmp_path / "a.bin").write_bytes(b"beside")
    source = model.write(tmp_path / "source", content)
    with pytest.raises(BundleError, match=message):
        import_published(source, tmp_path / "out", ImportOptions())
    assert not list((tmp_path / "out").glob("*"))


def test_weights_that_are_not_finite_or_lie_elsewhere_are_refused(tmp_path: Path) -> None:
    model = TfjsModel.stack()
    model.weights["conv1/bias"][0] = np.nan
    with pytest.raises(BundleError, match="conv1/bias are not finite"):
        import_published(model.write(tmp_path / "source"), tmp_path, ImportOptions())
    model.weights["conv1/bias"][0] = 0
    source = model.write(tmp_path / "source")
    (source / "b.bin").rename(tmp_path / "b.bin")
    (source / "b.bin").symlink_to(tmp_path / "b.bin")
    with pytest.raises(BundleError, match="cannot find"):
        import_published(source, tmp_path, ImportOptions())


def test_names_of_another_number_of_classes_are_refused(tmp_path: Path) -> None:
    source = TfjsModel.stack().write(tmp_path / "source")
    (source / "labels.json").write_text(json.dumps({"0": "background", "1": "brain"}))
    with pytest.raises(BundleError, match="does not name 3 classes"):
        import_published(source, tmp_path, ImportOptions())


def test_a_softmax_at_the_end_is_left_to_the_labels_and_nothing_may_follow_it(tmp_path: Path) -> None:
    model = TfjsModel.stack()
    model.layers.append(layer("Activation", "last", activation="softmax"))
    _imported(model, tmp_path)
    model.layers.append(layer("Activation", "after", activation="relu"))
    with pytest.raises(BundleError, match="follows a softmax"):
        import_published(model.write(tmp_path / "source"), tmp_path, ImportOptions())


@pytest.mark.parametrize(
    "named",
    [
        {"1": "a", "2": "b", "3": "c"},
        {"0": "background", "2": "a", "5": "b"},
        {"9" * 5000: "a", "0": "background", "1": "b"},
        ["background", "a", "a"],
    ],
)
def test_labels_are_not_renumbered(tmp_path: Path, named: Any) -> None:
    source = TfjsModel.stack(classes=3).write(tmp_path / "source")
    (source / "labels.json").write_text(json.dumps(named))
    with pytest.raises(BundleError, match="does not name 3 classes from 0 on"):
        import_published(source, tmp_path / "out", ImportOptions())


def test_a_first_class_that_is_no_background_shifts_no_label(tmp_path: Path) -> None:
    """Through the command: label maps hold the numbers of the channels, and the note says what 0 is."""
    model, image = TfjsModel.stack(), blobs((14, 17, 20))
    expected = _balanced(model, image)
    source = model.write(tmp_path / "source")
    (source / "labels.json").write_text(json.dumps(["white", "grey", "fluid"]))
    made = import_published(source, tmp_path, ImportOptions("tiny_t1_segmentation"))
    assert any("channel 0, white, is no background" in note for note in made.notes)
    assert Bundle.open(made.path).labels == {0: "white", 1: "grey", 2: "fluid"}
    _without_range(made.path)
    path = save(image, _HEAD, tmp_path / "images" / "a.nii.gz")
    run = CliRunner().invoke(app, ["infer", str(made.path), str(path), "-o", str(tmp_path / "out"), "--device", "cpu"])
    assert run.exit_code == 0, run.output
    assert (load(tmp_path / "out" / "a_seg.nii.gz")[0] != expected).mean() < 1e-3


def test_one_channel_of_scores_has_no_largest(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="one channel of scores"):
        import_published(TfjsModel.stack(classes=1).write(tmp_path / "source"), tmp_path / "out", ImportOptions())


def test_a_comment_is_read_in_no_time_and_a_licence_is_no_link(tmp_path: Path) -> None:
    model = TfjsModel.stack()
    model.extra = {"_comment": "9" * 200_000 + "% quantile " * 10_000}
    source = model.write(tmp_path / "source")
    (tmp_path / "secret").write_text("secret")
    (source / "LICENSE").symlink_to(tmp_path / "secret")
    made = import_published(source, tmp_path / "out", ImportOptions())
    assert "secret" not in (made.path / "LICENSE").read_text()
