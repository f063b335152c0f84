"""Bundles and inputs of this room's tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.inference.bundles import ORIENTED, Design, write_bundle
from tests.inference.volumes import blobs, grid, save


@pytest.fixture(scope="session")
def thresholds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle that labels 1 above 10 and 2 above 30."""
    return write_bundle(tmp_path_factory.mktemp("bundles") / "thresholds", Design(transforms=ORIENTED))


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Three sound volumes on different grids."""
    for number, kind in enumerate(("plain", "oblique", "sheared")):
        save(blobs((18, 14, 10 + number), number), grid(kind), tmp_path / "images" / f"case{number}.nii.gz")
    return tmp_path / "images"
