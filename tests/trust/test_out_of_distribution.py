from __future__ import annotations

import json
from dataclasses import asdict

import numpy as np
import pytest
import torch
from monai.networks.nets import BasicUNet, UNet

from medseg.trust.out_of_distribution import (
    OODDetector,
    encode,
    encoder_layers,
    fit_ood_detector,
    image_statistics,
    limits_of,
    smallest_divisor,
)


def rows(n: int, features: int = 30, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    mixing = np.random.default_rng(9).standard_normal((5, features))
    return rng.standard_normal((n, 5)) @ mixing + 0.2 * rng.standard_normal((n, features)) + 3.0


def test_cases_like_the_training_cases_are_near_and_others_far() -> None:
    detector = fit_ood_detector(rows(120))
    near = [detector.distance(row) for row in rows(60, seed=1)]
    usual = rows(1, seed=2)[0]
    across = np.linalg.svd(np.random.default_rng(9).standard_normal((5, 30)))[2][-1]  # where no case varies
    assert 0.3 < np.mean(near) < 1.5
    assert detector.distance(usual + 4.0 * across) > 1.5 * max(near)


def test_the_distance_is_the_one_of_mahalanobis() -> None:
    data = rows(200, 6)
    detector = fit_ood_detector(data)
    scaled = (data - data.mean(0)) / data.std(0)
    from sklearn.covariance import LedoitWolf

    precision = np.linalg.inv(LedoitWolf(assume_centered=True).fit(scaled).covariance_)
    point = (rows(1, 6, 5)[0] - data.mean(0)) / data.std(0)
    expected = np.sqrt(point @ precision @ point / 6)
    assert detector.distance(rows(1, 6, 5)[0]) == pytest.approx(expected, rel=1e-3)


def test_what_is_not_finite_is_infinitely_far() -> None:
    detector = fit_ood_detector(rows(50))
    assert detector.distance(np.full(30, np.nan)) == np.inf


def test_json_keeps_it() -> None:
    detector = fit_ood_detector(rows(50))
    assert OODDetector.from_json(json.loads(json.dumps(asdict(detector)))) == detector


def test_numbers_that_do_not_fit_together_are_refused() -> None:
    content = asdict(fit_ood_detector(rows(50)))
    with pytest.raises(ValueError, match="together"):
        OODDetector.from_json({**content, "scale": content["scale"][1:]})
    with pytest.raises(ValueError, match="one spread for each axis"):
        OODDetector.from_json({**content, "spread": content["spread"][1:]})


@pytest.mark.parametrize(
    "network",
    [
        BasicUNet(spatial_dims=3, in_channels=1, out_channels=2, features=(4, 4, 8, 8, 8, 4)),
        UNet(spatial_dims=3, in_channels=1, out_channels=2, channels=(4, 8, 16), strides=(2, 2)),
    ],
)
def test_the_reinference_is_the_network_itself(network: torch.nn.Module) -> None:
    network = network.eval()
    image = torch.randn(1, 20, 33, 17)
    layers, divisor = encoder_layers(network, image), smallest_divisor(network, 1)
    features, probabilities = encode(network, image, layers, divisor)
    assert probabilities.shape == (2, 20, 33, 17)
    assert not [name for name in layers if "upcat" in name]
    assert np.isfinite(features).all()
    assert encode(network, image, layers, divisor)[0].tolist() == features.tolist()
    assert np.abs(encode(network, image.cumsum(1), layers, divisor)[0] - features).max() > 0.01
    whole = torch.randn(1, 32, 32, 32)
    with torch.inference_mode():
        expected = network(whole[None])[0].softmax(0)
    torch.testing.assert_close(encode(network, whole, layers, divisor)[1], expected)
    assert not any(module._forward_hooks for module in network.modules())


class _Elsewhere(torch.nn.Module):
    """Stands for a network on another device, which takes nothing from this one."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Identity()
        self.weight = torch.nn.Parameter(torch.zeros(1, device="meta"))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        if image.device.type != "meta":
            raise RuntimeError("the image is on another device than the weights")
        found: torch.Tensor = self.layer(torch.zeros(1, 2, *image.shape[2:]))
        return found


def test_an_image_goes_to_the_device_of_the_network() -> None:
    network, image = _Elsewhere(), torch.zeros(1, 20, 20, 20)
    assert smallest_divisor(network, 1) == 4
    assert encoder_layers(network, image) == ("layer",)
    assert encode(network, image, ["layer"], 4)[1].shape == (2, 20, 20, 20)


def test_image_statistics_tell_noise_from_blur() -> None:
    rng = torch.Generator().manual_seed(0)
    noise = torch.randn(1, 20, 20, 20, generator=rng)
    smooth = torch.nn.functional.avg_pool3d(noise, 5, 1, 2)
    first, second = image_statistics(noise), image_statistics(smooth / smooth.std())
    assert first.shape == second.shape == (16,)
    assert (first[-6:] > second[-6:] + 0.5).all()


def test_limits_are_exceeded_as_often_as_stated() -> None:
    rng = np.random.default_rng(0)
    over = []
    for _ in range(200):
        limits = limits_of({"a": rng.standard_normal(99).tolist(), "b": rng.standard_normal(99).tolist()}, 0.1)
        over.append(rng.standard_normal() > limits["a"] or rng.standard_normal() > limits["b"])
    assert 0.04 < np.mean(over) < 0.16
