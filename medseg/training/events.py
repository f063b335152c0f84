"""TensorBoard: curves, both networks against each other, and the pictures of the samples."""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from pathlib import Path

import numpy as np

__all__ = ["write_picture", "write_scalars"]

_BALANCE = {
    "generator and discriminator": {
        "losses": ["Multiline", ["adversarial_loss", "discriminator_loss"]],
        "discriminator": ["Multiline", ["real_accuracy", "fake_accuracy", "discriminator_accuracy"]],
    }
}
"""Charts of how the networks stand against each other, in TensorBoard's tab of custom scalars."""


def write_scalars(folder: str | PathLike[str], row: Mapping[str, float]) -> None:
    """Add the figures of an epoch to ``folder/tensorboard``; with a discriminator also the charts of the balance."""
    from torch.utils.tensorboard import SummaryWriter

    # opened for each epoch: nothing is lost when the process is killed, and no thread stays behind
    with SummaryWriter(str(Path(folder) / "tensorboard")) as writer:
        for name, value in row.items():
            if name not in ("epoch", "iteration"):
                writer.add_scalar(name, value, int(row["epoch"]))
        if "discriminator_loss" in row:
            writer.add_custom_scalars(_BALANCE)


def write_picture(folder: str | PathLike[str], name: str, picture: str | PathLike[str], epoch: int) -> None:
    """Add a picture that has been written already to ``folder/tensorboard``."""
    from PIL import Image
    from torch.utils.tensorboard import SummaryWriter

    with Image.open(picture) as opened:
        pixels = np.asarray(opened.convert("RGB"))
    with SummaryWriter(str(Path(folder) / "tensorboard")) as writer:
        writer.add_image(name, pixels, epoch, dataformats="HWC")
