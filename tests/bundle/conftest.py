"""A sample bundle, written once and copied for each test."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.bundle.sample import SAMPLE_NAME, write_bundle


@pytest.fixture(scope="session")
def pristine_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sample bundle; do not change it."""
    return write_bundle(tmp_path_factory.mktemp("pristine"))


@pytest.fixture
def bundle(pristine_bundle: Path, tmp_path: Path) -> Path:
    """A copy of the sample bundle to change."""
    return Path(shutil.copytree(pristine_bundle, tmp_path / SAMPLE_NAME))
