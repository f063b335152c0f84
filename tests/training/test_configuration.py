"""What a resumed run may change, id by id; everything else is refused with its old and its new value."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from medseg.errors import UsageError
from medseg.training.checkpoints import Conditions

BUNDLES = Path(__file__).parents[2] / "bundles"
WRITTEN = {path.parts[-3]: json.loads(path.read_text()) for path in sorted(BUNDLES.glob("*/configs/train.json"))}

FREE = {
    "bundle_root", "dataset_dir", "datalist", "output_dir", "device", "init", "rescale", "val_interval", "num_workers",
    "judge_steps", "precision", "compile", "mlflow", "imports", "known_ids", "initialize", "run", "training",
}  # fmt: skip
APPLIED = {
    "epochs", "learning_rate", "weight_decay", "discriminator_learning_rate", "discriminator_weight_decay",
    "adversarial_share", "wrong_pairs", "warm_up", "ramp", "alternate", "ema_decay", "consistency_weight",
    "consistency_start", "consistency_ramp", "ssim_weight", "discriminator_noise", "r1_penalty", "teacher_weight",
}  # fmt: skip
REFUSED = {
    "fold", "seed", "iterations", "batch_size", "patch_size", "training_cases", "spacing_mm", "label_names",
    "network_def", "deep_supervision", "discriminator_def", "network", "averaged", "optimizer", "scheduler",
    "discriminator", "discriminator_optimizer", "discriminator_scheduler", "adversary", "unlabelled_transforms",
    "unlabelled", "loss", "train", "validate", "intensity_range", "latent", "noise_size", "validation_patches",
    "feature_encoder_def", "channel_keys", "teachers", "distillation",
}  # fmt: skip


def test_every_id_of_every_bundle_is_decided() -> None:
    written = {name for config in WRITTEN.values() for name in config}
    assert written == FREE | APPLIED | REFUSED
    assert len(written) == len(FREE) + len(APPLIED) + len(REFUSED)


@pytest.mark.parametrize("bundle", sorted(WRITTEN))
def test_ids_on_the_first_level(bundle: str) -> None:
    old = Conditions(WRITTEN[bundle])
    for name, value in WRITTEN[bundle].items():
        new = Conditions({**copy.deepcopy(WRITTEN[bundle]), name: "another"})
        if name == "init":
            continue  # its content decides, not its name
        if name in REFUSED:
            with pytest.raises(UsageError, match=name):
                new.changes_since(old)
        else:
            (change,) = new.changes_since(old)
            assert (change.id, change.old, change.new) == (name, value, "another")


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("optimizer#lr", 0.1, True),
        ("scheduler#lr_lambda#rise", 0.2, True),
        ("optimizer#_target_", "torch.optim.SGD", False),
        ("discriminator_optimizer#betas", [0.9, 0.99], True),
        ("scheduler#lr_lambda#rise", 0.3, True),
        ("scheduler#lr_lambda#_target_", "medseg.training.Other", False),
        ("adversary#schedule#settle", 7, True),
        ("adversary#too_good", 0.7, True),
        ("adversary#seed", 3, False),
        ("adversary#loss#kind", "hinge", False),
        ("loss#lambda_ce", 2.0, True),
        ("loss#batch", False, False),
        ("train#trainer#max_norm", 3.0, True),
        ("train#trainer#amp", True, False),
        ("train#handlers#3#interval", 5, True),
        ("train#preprocessing_transforms#4#nonzero", True, False),
        ("train#augmentation_transforms#0#rotate_range", 0.1, False),
        ("validate#inferer#sw_batch_size", 4, True),
        ("validate#inferer#overlap", 0.1, False),
        ("validate#additional_metrics", {}, True),
        ("validate#key_metric", {}, False),
        ("something_new", 1, False),
    ],
)
def test_ids_inside(name: str, value: Any, allowed: bool) -> None:
    old = copy.deepcopy(WRITTEN["hippocampus_mri_segmentation"])
    old["loss"]["lambda_ce"] = 1.0
    new = copy.deepcopy(old)
    *parents, last = name.split("#")
    place: Any = new
    for key in parents:
        place = place[int(key)] if isinstance(place, list) else place[key]
    place[last] = value
    if allowed:
        assert {change.id.rpartition("#val_")[0] or change.id for change in _of(new).changes_since(_of(old))} == {name}
    else:
        with pytest.raises(UsageError, match=name):
            _of(new).changes_since(_of(old))


def _of(configuration: dict[str, Any], **more: Any) -> Conditions:
    return Conditions(configuration, **more)


def test_a_refusal_has_both_values_of_everything_that_is_refused() -> None:
    old, new = _of({"fold": 0, "batch_size": 4, "epochs": 2}), _of({"fold": 1, "batch_size": 2, "epochs": 3})
    with pytest.raises(UsageError, match=r"fold: 0 → 1; batch_size: 4 → 2\. Expected .* --output"):
        new.changes_since(old)


CASES: list[dict[str, Any]] = [{"image": "a", "label": "la"}, {"image": ["b", "c"], "label": "lb"}, {"image": "d"}]


@pytest.mark.parametrize(
    ("now", "message"),
    [
        ({"training": CASES[:1]}, r"cases for training: 2 → 1, 1 left out, 0 that were not there"),
        ({"training": CASES[1::-1]}, r"cases for training: 2 → 2, in another order"),
        ({"training": [{**CASES[0], "label": "x"}, CASES[1]]}, r"1 left out, 1 that were not there"),
        ({"training": CASES[1:], "validation": CASES[:1]}, r"1 of the cases to validate on have been trained on"),
        ({"unlabelled": CASES[2:]}, r"cases for unlabelled: 0 → 1"),
    ],
)
def test_other_cases_are_refused(now: dict[str, Any], message: str) -> None:
    old = {"training": CASES[:2], "validation": CASES[2:]}
    with pytest.raises(UsageError, match=message):
        _of({}, cases={**old, **now}).changes_since(_of({}, cases=old))
    assert _of({}, cases=copy.deepcopy(old)).changes_since(_of({}, cases=old)) == []


def test_starting_weights_are_those_of_the_start() -> None:
    old = _of({"init": "a.pt", "rescale": True}, start="12ab")
    silent = _of({"init": None, "rescale": False})
    assert silent.with_start_of(old) == old
    assert [c.id for c in _of({"init": "b.pt", "rescale": True}, start="12ab").with_start_of(old).changes_since(old)]
    for other in (
        _of({"init": "b.pt", "rescale": True}, start="34"),
        _of({"init": "a.pt", "rescale": False}, start="12ab"),
    ):
        with pytest.raises(UsageError, match=r"starting weights: a\.pt"):
            other.with_start_of(old).changes_since(old)
