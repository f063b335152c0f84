"""Ordinary pictures: any size and colour becomes one size, and a broken one is named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medseg.errors import UsageError
from medseg.training import picture_items
from medseg.transforms import LoadPictured


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P", "1", "I;16"])
@pytest.mark.parametrize("channels", [1, 3])
def test_every_kind_of_file_becomes_the_same_tensor(tmp_path: Path, mode: str, channels: int) -> None:
    picture = np.zeros((10, 20), dtype=np.uint8)
    picture[:5] = 255  # the upper half is white
    path = tmp_path / "a.png"
    if mode == "I;16":
        Image.fromarray(picture.astype(np.uint16) * 257).save(path)
    else:
        Image.fromarray(picture).convert(mode).save(path)
    values = LoadPictured("image", (20, 40), channels)({"image": str(path), "name": "a"})["image"]
    assert values.shape == (channels, 20, 40)
    assert values[:, :8].min() == 1.0
    assert values[:, -8:].max() == -1.0


def test_sixteen_bits_keep_their_shades(tmp_path: Path) -> None:
    shades = np.array([[0, 0x1000, 0x8000, 0xFFFF]], dtype=np.uint16)
    Image.fromarray(shades).save(tmp_path / "a.png")
    values = LoadPictured("image", (1, 4), 1)({"image": str(tmp_path / "a.png")})["image"]
    np.testing.assert_allclose(values.flatten(), np.array([0, 0x10, 0x80, 0xFF]) / 127.5 - 1.0, atol=1e-6)


def test_a_broken_picture_is_named(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (64, 64), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "whole.png")
    (tmp_path / "half.png").write_bytes((tmp_path / "whole.png").read_bytes()[:1000])
    (tmp_path / "text.png").write_text("no picture")
    for name in ("half.png", "text.png", "missing.png"):
        with pytest.raises(UsageError, match=name):
            LoadPictured("image", (8, 8))({"image": str(tmp_path / name)})


def test_every_fifth_picture_of_each_class_is_held_out(tmp_path: Path) -> None:
    for name in (*(f"cat/{n}.png" for n in range(10)), *(f"dog/{n}.JPG" for n in range(5)), "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    names = {
        part: [str(Path(item["image"]).relative_to(tmp_path)) for item in picture_items(tmp_path, 1, part)]
        for part in ("training", "validation")
    }
    assert names["validation"] == ["cat/1.png", "cat/6.png", "dog/1.JPG"]
    assert len(names["training"]) == 12
    assert not set(names["training"]) & set(names["validation"])
    assert len(picture_items(tmp_path, -1, "training")) == 15
    assert len(picture_items(tmp_path, 0, "training", 3)) == 3


@pytest.mark.parametrize(("folder", "fold"), [("empty", 0), (".", 7)])
def test_no_pictures_are_no_training(tmp_path: Path, folder: str, fold: int) -> None:
    (tmp_path / "a.png").touch()
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="at least five pictures"):
        picture_items(tmp_path / folder, fold, "training")
