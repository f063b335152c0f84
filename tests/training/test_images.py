"""Restoring and creating images under the same engine."""

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from ignite.engine import Events
from monai.transforms import Compose, CopyItemsd

from medseg.errors import UsageError
from medseg.files import write_json
from medseg.networks import Autoencoder, ConditionalPatchDiscriminator, DCGANDiscriminator, DCGANGenerator
from medseg.training import (
    AdversarialSchedule,
    AdversarialSegmentationTrainer,
    Checkpoints,
    ImageAdversary,
    MetricsLogger,
    NoiseGrids,
    NoSupervision,
    RestorationGrids,
    RestorationLoss,
    TrainingDataset,
    image_items,
    training_loader,
)
from medseg.transforms import RandGraind, RandLatentd
from tests.training.conftest import balls


def gan(folder: Path, epochs: int) -> tuple[AdversarialSegmentationTrainer, DCGANGenerator]:
    torch.manual_seed(0)
    generator = DCGANGenerator(4, 1, (8, 8), (16, 16, 16))
    discriminator = DCGANDiscriminator(1, (8, 8), (16, 16, 16))
    chain = Compose([CopyItemsd("image", names="label"), RandLatentd("image", (4, 1, 1, 1))])
    dataset = TrainingDataset([{"image": case["label"] * 2.0 - 1.0} for case in balls(4)], chain, seed=3)
    trainer = AdversarialSegmentationTrainer(
        device="cpu",
        max_epochs=epochs,
        train_data_loader=training_loader(dataset, 4, 2),
        network=generator,
        optimizer=torch.optim.Adam(generator.parameters(), 0.002, betas=(0.5, 0.999)),
        loss_function=NoSupervision(),
        adversary=ImageAdversary(
            discriminator,
            torch.optim.Adam(discriminator.parameters(), 0.001, betas=(0.5, 0.999)),
            AdversarialSchedule(share=1.0),
        ),
        train_handlers=[
            MetricsLogger(folder, tensorboard=False),
            Checkpoints(folder / "checkpoints"),
            NoiseGrids(folder / "samples", generator, (4, 1, 1, 1), count=2, interval=4),
        ],
    )
    return trainer, generator


def test_the_discriminator_alone_teaches_a_generator_from_noise(tmp_path: Path) -> None:
    """Real patches are mostly dark (−1): the first thing to learn is to be dark."""
    trainer, generator = gan(tmp_path, 8)
    noise = torch.randn(4, 4, 1, 1, 1, generator=torch.Generator().manual_seed(1))
    real = torch.stack([case["label"] * 2.0 - 1.0 for case in balls(4)]).mean()

    def distance() -> float:
        with torch.no_grad():
            return abs(float(generator(noise).mean() - real))

    before = distance()
    trainer.run()
    assert distance() < 0.8 * before
    with (tmp_path / "metrics.csv").open() as handle:
        rows = list(csv.DictReader(handle))
    assert all(float(row["loss"]) == 0.0 for row in rows)
    assert all(float(row["adversarial_loss"]) > 0.0 for row in rows)
    assert sorted(path.name for path in (tmp_path / "samples").iterdir()) == ["epoch-0004.png", "epoch-0008.png"]


def test_a_gan_resumes_to_the_bit(tmp_path: Path) -> None:
    """The noise is part of the data, so it comes again with the counter."""
    whole, wanted = gan(tmp_path / "whole", 3)
    whole.run()
    first, _ = gan(tmp_path / "parts", 2)
    first.run()
    second, found = gan(tmp_path / "parts", 3)
    Checkpoints(tmp_path / "parts" / "checkpoints").resume(second)
    second.run()
    for name, value in wanted.state_dict().items():
        assert torch.equal(found.state_dict()[name], value), name


def test_an_autoencoder_learns_against_a_discriminator(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = Autoencoder(features=(4, 4, 4, 8, 8, 4), norm="batch")
    discriminator = ConditionalPatchDiscriminator(label_channels=1, channels=4, layers=1)
    chain = Compose([CopyItemsd("image", names="label"), RandGraind("image", prob=1.0, strength=(0.3, 0.3))])
    dataset = TrainingDataset([{"image": case["image"]} for case in balls(4)], chain, seed=3, copy_cache=True)
    losses: list[float] = []
    trainer = AdversarialSegmentationTrainer(
        device="cpu",
        max_epochs=10,
        train_data_loader=training_loader(dataset, 4, 2),
        network=network,
        optimizer=torch.optim.Adam(network.parameters(), 0.01),
        loss_function=RestorationLoss(),
        adversary=ImageAdversary(
            discriminator,
            torch.optim.Adam(discriminator.parameters(), 0.001),
            AdversarialSchedule(share=0.01),
            conditional=True,
        ),
        train_handlers=[
            RestorationGrids(tmp_path, dataset, network, lambda image, net: net(image), interval=10, cases=[0, 9])
        ],
    )
    trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda e: losses.append(float(e.state.output[0]["loss"])))
    trainer.run()
    assert losses[-1] < 0.9 * losses[0]
    assert [path.name for path in tmp_path.iterdir()] == ["epoch-0010.png"]


def test_restoration_loss_by_hand() -> None:
    original = torch.randn(1, 1, 12, 12, 12)
    assert float(RestorationLoss(0.5)(original, original)) == pytest.approx(0.0, abs=1e-5)
    assert float(RestorationLoss(0.0)(original + 0.25, original)) == pytest.approx(0.25, abs=1e-6)
    shuffled = original.flatten()[torch.randperm(original.numel())].view_as(original)  # the values, not the structure
    assert float(RestorationLoss(1.0)(shuffled, original) - RestorationLoss(0.0)(shuffled, original)) > 0.8


def test_images_of_a_datalist_labelled_or_not(tmp_path: Path) -> None:
    listed = {
        "training": [{"image": "a.nii", "label": "a_seg.nii", "fold": 0}, {"image": "b.nii", "fold": 1}],
        "unlabelled": ["c.nii", {"image": ["d1.nii", "d2.nii"]}],
    }
    write_json(tmp_path / "datalist.json", listed)
    for name in ("a", "b", "c", "d1", "d2"):
        np.zeros(1).tofile(tmp_path / f"{name}.nii")
    place = {name: str(tmp_path / f"{name}.nii") for name in ("a", "b", "c", "d1", "d2")}

    def found(fold: int, part: str, limit: int | None = None) -> list[object]:
        items = image_items(tmp_path / "datalist.json", tmp_path, fold, part, limit)  # type: ignore[arg-type]
        assert all(set(item) == {"image"} for item in items)
        return [item["image"] for item in items]

    rest = [place["c"], [place["d1"], place["d2"]]]
    assert found(0, "training") == [place["b"], *rest]
    assert found(0, "validation") == [place["a"]]
    assert found(-1, "training") == [place["a"], place["b"], *rest]
    assert found(1, "training", 1) == [place["a"]]
    with pytest.raises(UsageError, match="no volume for validation"):
        found(7, "validation")
    (tmp_path / "a.nii").unlink()
    with pytest.raises(UsageError, match="does not exist"):
        found(0, "validation")
    with pytest.raises(UsageError, match="no datalist"):
        image_items(tmp_path / "other.json", tmp_path, 0, "training")
