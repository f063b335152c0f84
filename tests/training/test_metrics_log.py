"""What TensorBoard finds: curves, the chart of both networks, the samples."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medseg.training.metrics_log import write_picture, write_scalars

accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")


def test_curves_balance_and_pictures_are_there(tmp_path: Path) -> None:
    row = {"epoch": 3, "iteration": 30, "loss": 0.5, "adversarial_loss": 0.7, "discriminator_loss": 1.4}
    write_scalars(tmp_path, row)
    pixels = np.zeros((4, 6, 3), np.uint8)
    pixels[1, 2] = (0, 255, 0)
    Image.fromarray(pixels).save(tmp_path / "epoch-0003.png")
    write_picture(tmp_path, "samples", tmp_path / "epoch-0003.png", 3)
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert set(events.Tags()["scalars"]) == {"loss", "adversarial_loss", "discriminator_loss"}
    assert [(e.step, e.value) for e in events.Scalars("loss")] == [(3, 0.5)]
    [picture] = events.Images("samples")
    assert (picture.step, picture.width, picture.height) == (3, 6, 4)
    [layout] = events.Tensors("custom_scalars__config__")
    text = layout.tensor_proto.string_val[0]
    assert b"adversarial_loss" in text
    assert b"discriminator_loss" in text


def test_without_a_discriminator_there_is_no_chart_of_both(tmp_path: Path) -> None:
    write_scalars(tmp_path, {"epoch": 1, "iteration": 5, "loss": 0.5})
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert events.Tags()["tensors"] == []
