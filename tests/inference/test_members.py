"""Ensembles: one network alone is that network, two are their mean, and only what belongs together is averaged."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from medseg.errors import BundleError, UsageError
from medseg.inference import Options, Predictor, run_batch
from medseg.inference.ensemble import member_digest
from tests.inference.bundles import ORIENTED, RESAMPLED, UNET, Design, write_bundle
from tests.inference.volumes import blobs, grid, meta_tensor, save

DESIGN = Design(network=UNET, transforms=ORIENTED, roi_size=(16, 16, 16))


def _shuffled(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {key: value.flip(0) for key, value in state.items()}


def _probabilities(predictor: Predictor) -> torch.Tensor:
    scores = predictor.predict(meta_tensor(blobs((16, 16, 16)), grid("plain")), keep_scores=True).scores
    assert scores is not None
    return torch.softmax(scores, dim=0)


def test_two_are_their_mean_and_one_twice_is_that_one(tmp_path: Path) -> None:
    first = write_bundle(tmp_path / "first", DESIGN)
    second = write_bundle(tmp_path / "second", DESIGN, _shuffled)
    alone, other = _probabilities(Predictor(first)), _probabilities(Predictor(second))
    assert not torch.allclose(alone, other, atol=0.01)
    for member in (str(second), str(second / "models" / "model.pt")):
        both = _probabilities(Predictor(first, ensemble=(member,)))
        torch.testing.assert_close(both, (alone + other) / 2, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(_probabilities(Predictor(first, ensemble=(str(first),))), alone, rtol=1e-4, atol=1e-5)


def test_each_network_can_be_asked_alone(tmp_path: Path) -> None:
    first = write_bundle(tmp_path / "first", DESIGN)
    second = write_bundle(tmp_path / "second", DESIGN, _shuffled)
    image = meta_tensor(blobs((16, 16, 16)), grid("plain"))
    found = {view.member: labels for view, labels in Predictor(first, ensemble=(str(second),)).predict_each(image)}
    np.testing.assert_array_equal(found[0], Predictor(first).predict(image).label_map)
    np.testing.assert_array_equal(found[1], Predictor(second).predict(image).label_map)


def test_what_does_not_belong_together_is_refused(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "bundle", DESIGN)
    elsewhere = write_bundle(tmp_path / "elsewhere", Design(network=UNET, transforms=RESAMPLED, roi_size=(16, 16, 16)))
    with pytest.raises(UsageError, match=r"preprocessing in inference\.json of elsewhere and bundle differ"):
        Predictor(bundle, ensemble=(str(elsewhere),))
    windows = write_bundle(tmp_path / "windows", Design(network=UNET, transforms=ORIENTED, roi_size=(32, 16, 16)))
    with pytest.raises(UsageError, match="inferer"):
        Predictor(bundle, ensemble=(str(windows),))
    metadata = json.loads((bundle / "configs" / "metadata.json").read_text())
    metadata["network_data_format"]["outputs"]["pred"]["channel_def"]["1"] = "something else"
    other = write_bundle(tmp_path / "other", DESIGN)
    (other / "configs" / "metadata.json").write_text(json.dumps(metadata))
    with pytest.raises(UsageError, match="something else"):
        Predictor(bundle, ensemble=(str(other),))
    with pytest.raises(UsageError, match="no such bundle or weights file"):
        member_digest(str(tmp_path / "nothing"))
    torch.save({"weight": torch.zeros(3)}, tmp_path / "weights.pt")
    with pytest.raises(BundleError, match="do not fit"):
        Predictor(bundle, ensemble=(str(tmp_path / "weights.pt"),))


def test_the_same_preprocessing_may_be_written_with_references(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "bundle", Design(network=UNET, transforms=RESAMPLED, roi_size=(16, 16, 16)))
    other = write_bundle(tmp_path / "other", Design(network=UNET, transforms=RESAMPLED, roi_size=(16, 16, 16)))
    path = other / "configs" / "inference.json"
    config = json.loads(path.read_text())
    spacing = next(step for step in config["preprocessing"]["transforms"] if step["_target_"] == "Spacingd")
    config["spacing_mm"], spacing["pixdim"] = spacing["pixdim"], "@spacing_mm"
    path.write_text(json.dumps(config))
    assert len(Predictor(bundle, ensemble=(str(other),)).networks.members) == 2


def test_other_weights_under_the_same_name_compute_anew(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "bundle", DESIGN)
    weights = tmp_path / "fold1.pt"
    save(blobs((12, 12, 12)), grid("plain"), tmp_path / "a.nii.gz")
    state = torch.load(bundle / "models" / "model.pt", weights_only=True)
    for factor in (1.0, 2.0):
        torch.save({key: value * factor for key, value in state.items()}, weights)
        options = Options(ensemble=(str(weights),))
        report = run_batch(bundle, [tmp_path / "a.nii.gz"], tmp_path / "out", options)
        assert report.content["summary"]["computed"] == 1
        said = report.content["options"]["ensemble"]
        assert said == [{"name": "fold1.pt", "sha256": member_digest(str(weights))}]
    assert str(tmp_path) not in json.dumps(report.content["options"])
