"""Distances between sets of images."""

import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from monai.networks.nets import BasicUNet
from safetensors.torch import save_file
from torch import Tensor

from benchmarks.synthesis import nearest
from medseg.networks import encoder_state
from medseg.training import (
    FeatureEncoder,
    FrechetDistance,
    SpectrumDistance,
    Thumbnails,
    frechet_distance,
    lower_is_better,
    radial_spectrum,
    spectrum_distance,
)

FEATURES = (2, 2, 4, 4, 6, 2)


def exact(mean: float, spread: float) -> Tensor:
    """Two features, uncorrelated, with exactly this mean and standard deviation."""
    corners = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
    return mean + spread * corners * math.sqrt(3 / 4)


@given(st.floats(-3, 3), st.floats(0.1, 3), st.floats(-3, 3), st.floats(0.1, 3))
def test_frechet_distance_by_hand(mean: float, spread: float, other_mean: float, other_spread: float) -> None:
    """For uncorrelated features: squared difference of the means plus that of the standard deviations, each."""
    wanted = 2.0 * ((mean - other_mean) ** 2 + (spread - other_spread) ** 2)
    found = frechet_distance(exact(mean, spread), exact(other_mean, other_spread))
    assert found == pytest.approx(wanted, abs=1e-4, rel=1e-4)


def test_frechet_distance_sees_correlation_and_is_symmetric() -> None:
    generator = torch.Generator().manual_seed(0)
    plain = torch.randn(500, 4, generator=generator)
    mixed = plain @ torch.tensor([[1.0, 0.9, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0.5], [0, 0, 0, 1]])
    assert frechet_distance(plain, plain) == pytest.approx(0.0, abs=1e-6)
    assert frechet_distance(plain, mixed) > 0.3
    assert frechet_distance(plain, mixed) == pytest.approx(frechet_distance(mixed, plain), rel=1e-6)


def test_frechet_distance_agrees_with_monai() -> None:
    import warnings

    from monai.metrics import FIDMetric

    generator = torch.Generator().manual_seed(1)
    one, other = torch.randn(200, 6, generator=generator), 1.3 * torch.randn(150, 6, generator=generator) + 0.2
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # MONAI calls scipy as it was
        wanted = float(FIDMetric()(one, other))
    assert frechet_distance(one, other) == pytest.approx(wanted, rel=1e-5)


def test_a_copy_is_found_as_its_own_neighbour() -> None:
    references = torch.randn(50, 16, generator=torch.Generator().manual_seed(2))
    distance, place = nearest(torch.stack([references[17], references[3] + 0.5]), references)
    assert place.tolist() == [17, 3]
    assert distance.tolist() == pytest.approx([0.0, 0.5], abs=1e-3)


def test_features_do_not_depend_on_brightness_or_contrast(tmp_path: Path) -> None:
    unet = BasicUNet(3, 1, 2, FEATURES, norm="batch", bias=False)
    save_file(encoder_state(unet.state_dict()), tmp_path / "encoder.safetensors")
    encoder = FeatureEncoder(tmp_path / "encoder.safetensors", FEATURES)
    volumes = torch.randn(2, 1, 16, 16, 32)
    found = encoder(volumes)
    assert found.shape == (2, 6)
    assert not found.requires_grad
    assert torch.allclose(encoder(3.0 * volumes - 7.0), found, atol=1e-4)
    assert not torch.allclose(found[0], found[1])
    save_file({"conv_0.x": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="lacks"):
        FeatureEncoder(tmp_path / "other.safetensors", FEATURES)


def test_the_handler_gathers_over_batches() -> None:
    generator = torch.Generator().manual_seed(3)
    created, real = torch.randn(12, 1, 4, 4, 4, generator=generator), torch.randn(12, 1, 4, 4, 4, generator=generator)

    def encoder(volumes: Tensor) -> Tensor:
        return volumes.flatten(1)[:, :3]

    metric = FrechetDistance(encoder)
    for part in range(3):
        chosen = slice(4 * part, 4 * part + 4)
        metric.update([list(created[chosen]), list(real[chosen])])
    assert metric.compute() == pytest.approx(frechet_distance(encoder(created), encoder(real)), rel=1e-5)


@pytest.mark.parametrize(
    ("current", "best", "better"),
    [(3.0, -1.0, True), (2.0, 3.0, True), (3.0, 2.0, False), (math.nan, -1.0, False), (2.0, math.nan, True)],
)
def test_the_smaller_distance_is_better(current: float, best: float, better: bool) -> None:
    assert lower_is_better(current, best) is better


@pytest.mark.parametrize("waves", [3, 9])
def test_a_wave_lies_in_the_ring_of_its_frequency(waves: int) -> None:
    places = torch.arange(32) / 32
    image = torch.cos(2 * math.pi * waves * places).view(1, 1, 32, 1).expand(1, 1, 32, 48)
    power = radial_spectrum(image)[0]
    assert power.shape == (16,)
    # a window spreads a wave over its neighbours
    assert abs(int(power.argmax()) - (waves - 1)) <= 1


@pytest.mark.parametrize("size", [(32, 24), (16, 16, 24)])
def test_the_spectrum_sees_grain_and_blur_that_thumbnails_do_not(size: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(4)

    def images() -> Tensor:
        return torch.randn(40, 1, *size, generator=generator)

    def blurred(values: Tensor) -> Tensor:
        pool = torch.nn.functional.avg_pool3d if values.ndim == 5 else torch.nn.functional.avg_pool2d
        return pool(values, 3, 1, 1)

    real, again, soft = images(), images(), blurred(images())
    grain = torch.ones(size)
    grain[..., ::2] = -1.0  # two voxels a wave, in one direction: power in the last ring alone
    spectra = [radial_spectrum(values) for values in (real, again, soft, real + grain)]
    same, blur, grainy = (spectrum_distance(spectra[0], other) for other in spectra[1:])
    assert same < 1.0
    assert min(blur, grainy) > 2.0
    shown = [Thumbnails(4)(values) for values in (real, again, real + grain)]
    assert shown[0].shape == (40, 4 ** len(size))
    assert frechet_distance(shown[0], shown[2]) < frechet_distance(shown[0], shown[1])


def test_brightness_counts_nothing_and_contrast_counts_in_db() -> None:
    images = torch.randn(4, 1, 16, 16, 16)
    spectrum = radial_spectrum(images)
    assert torch.allclose(radial_spectrum(images + 5.0), spectrum, rtol=1e-3)
    assert spectrum_distance(radial_spectrum(10.0 * images), spectrum) == pytest.approx(20.0, abs=1e-3)


def test_the_spectrum_is_gathered_over_batches() -> None:
    batches = [{"pred": torch.randn(3, 1, 16, 16), "label": torch.randn(3, 1, 16, 16)} for _ in range(4)]
    handler = SpectrumDistance(lambda output: (output["pred"], output["label"]))
    handler.reset()
    for batch in batches:
        handler.update((batch["pred"], batch["label"]))
    joined = [torch.cat([batch[key] for batch in batches]) for key in ("pred", "label")]
    assert handler.compute() == pytest.approx(spectrum_distance(*map(radial_spectrum, joined)), rel=1e-5)
