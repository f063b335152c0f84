"""Time of one adversarial training step against a stock MONAI loop with the same networks, batches and losses.

    python -m benchmarks.bench_training [--repeats 5] [--size 48] [--batch-size 4] [--json FILE]

The stock loop does what MONAI's ``AdversarialTrainer`` does, with pairs of image and segmentation: the generator's step
through the discriminator, then the discriminator's step on real and fake pairs; float32, contiguous tensors, MONAI's
``PatchAdversarialLoss``. Before timing, both loops see the same batches with learning rates of 0 and must report the
same losses. One thread, CPU seconds, interleaved in one process, medians.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from monai.losses import DiceCELoss, PatchAdversarialLoss
from monai.networks import one_hot
from monai.networks.nets import BasicUNet, UNet
from torch import Tensor, nn

from medseg.files import write_json
from medseg.networks import ConditionalPatchDiscriminator
from medseg.training import AdversarialSchedule, AdversarialSegmentationTrainer, Adversary

CLASSES = 3
WEIGHT = 0.02
STOCK = "MONAI stock fp32"
LOSSES = ("loss", "adversarial_loss", "discriminator_loss")
Batch = dict[str, Tensor]
Step = Callable[[Batch], dict[str, float]]


def generator(name: str) -> nn.Module:
    """MONAI's U-Net as in its tutorials, or the flagship's."""
    if name == "unet":
        return UNet(3, 1, CLASSES, (16, 32, 64, 128, 256), (2, 2, 2, 2), num_res_units=2, norm="batch")
    act = ("LeakyReLU", {"negative_slope": 0.1, "inplace": True})
    return BasicUNet(3, 1, CLASSES, (16, 16, 32, 64, 128, 16), act, "batch", bias=False)


def supervised() -> DiceCELoss:
    return DiceCELoss(include_background=False, to_onehot_y=True, softmax=True, batch=True)


def batches(count: int, size: int, batch_size: int) -> list[Batch]:
    shape = (batch_size, 1, size, size, size)
    return [{"image": torch.randn(shape), "label": torch.randint(CLASSES, shape).float()} for _ in range(count)]


def stock_step(network: nn.Module, judge: nn.Module, rate: float) -> Step:
    """A loop as MONAI's classes suggest it; ``judge`` is MONAI's ``PatchDiscriminator``."""
    optimizers = [torch.optim.AdamW(net.parameters(), lr=rate) for net in (network, judge)]
    loss, adversarial = supervised(), PatchAdversarialLoss(criterion="bce")

    def step(batch: Batch) -> dict[str, float]:
        image, label = batch["image"], batch["label"]
        network.train()
        optimizers[0].zero_grad(set_to_none=True)
        logits = network(image)
        soft = logits.softmax(1)
        fake = one_hot(soft.argmax(1, keepdim=True), CLASSES) + soft - soft.detach()
        recon = loss(logits, label)
        deceive = adversarial(judge(torch.cat([image, fake], 1))[-1], target_is_real=True, for_discriminator=False)
        (recon + WEIGHT * deceive).backward()
        optimizers[0].step()
        optimizers[1].zero_grad(set_to_none=True)
        real = one_hot(label.long(), CLASSES)
        judged = [judge(torch.cat([image, part], 1))[-1] for part in (real, fake.detach())]
        sides = [
            adversarial(j, target_is_real=r, for_discriminator=True) for j, r in zip(judged, (True, False), strict=True)
        ]
        (sides[0] + sides[1]).backward()
        optimizers[1].step()
        return dict(zip(LOSSES, (recon.item(), deceive.item(), (sides[0] + sides[1]).item()), strict=True))

    return step


def medseg_step(network: nn.Module, judge: nn.Module, rate: float, **options: Any) -> Step:
    """The engine's own iteration, run on one batch at a time."""
    discriminator = ConditionalPatchDiscriminator(CLASSES, channels=16, layers=2)
    discriminator.scales[0] = judge
    optimizers = [torch.optim.AdamW(net.parameters(), lr=rate) for net in (network, discriminator)]
    schedule = AdversarialSchedule(share=WEIGHT)
    trainer = AdversarialSegmentationTrainer(
        device="cpu",
        max_epochs=1,
        train_data_loader=[0],
        network=network,
        optimizer=optimizers[0],
        loss_function=supervised(),
        adversary=Adversary(discriminator, optimizers[1], schedule, wrong_pairs=0.0, noise=0.0),
        decollate=False,
        **options,
    )
    trainer.state.iteration = trainer.state.epoch = 1

    def step(batch: Batch) -> dict[str, float]:
        output = trainer._iteration(trainer, batch)
        return {name: float(output[name]) for name in LOSSES}

    return step


def peers(name: str, rate: float) -> dict[str, Step]:
    """All loops, each with its own copy of the same networks."""
    network = generator(name)
    judge = ConditionalPatchDiscriminator(CLASSES, channels=16, layers=2).scales[0]

    def copies() -> tuple[nn.Module, nn.Module]:
        return deepcopy(network), deepcopy(judge)

    return {
        "medseg": medseg_step(*copies(), rate),
        "medseg, contiguous": medseg_step(*copies(), rate, channels_last=False),
        STOCK: stock_step(*copies(), rate),
    }


def largest_difference(name: str, data: Sequence[Batch]) -> float:
    """Largest relative difference of a loss between the loops on the same batches, with learning rates of 0."""
    steps = peers(name, rate=0.0)
    worst = 0.0
    for batch in data:
        found = {peer: step(batch) for peer, step in steps.items()}
        truth = found.pop(STOCK)
        worst = max(worst, *(abs(losses[key] / truth[key] - 1.0) for losses in found.values() for key in LOSSES))
    return worst


def measure(name: str, data: Sequence[Batch]) -> dict[str, float]:
    """Median milliseconds of a step per loop; the first batch warms up."""
    steps = peers(name, rate=1e-3)
    seconds: dict[str, list[float]] = {peer: [] for peer in steps}
    for number, batch in enumerate(data):
        for peer, step in steps.items():
            begun = time.process_time()
            step(batch)
            if number:
                seconds[peer].append(time.process_time() - begun)
    return {peer: statistics.median(values) * 1000.0 for peer, values in seconds.items()}


def main() -> None:
    """Check, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--size", type=int, default=48)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    results: dict[str, Any] = {}
    for name in ("unet", "flagship"):
        data = batches(options.repeats + 1, options.size, options.batch_size)
        difference = largest_difference(name, data[:2])
        assert difference < 1e-4, f"the losses of the loops differ by {difference:.1e}"
        medians = measure(name, data)
        for peer, milliseconds in medians.items():
            print(f"{name:9s} {peer:20s} {milliseconds:8.0f} ms  stock / this {medians[STOCK] / milliseconds:5.2f}")
        results[name] = {"milliseconds": medians, "largest_relative_difference_of_losses": difference}
    if options.json:
        shape = {"size": options.size, "batch_size": options.batch_size, "repeats": options.repeats}
        write_json(options.json, {**shape, **results})


if __name__ == "__main__":
    main()
