"""What every test shares: where the real data lies, and one thread per worker."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:  # workers share the cores; more threads than cores only wait for each other
    os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of real studies; tests that need one skip without it."""
    folder = os.environ.get("MEDSEG_TEST_DATA")
    if not folder:
        pytest.skip("MEDSEG_TEST_DATA is not set: it names the folder of real test data")
    path = Path(folder)
    if not path.is_dir():
        pytest.fail(f"MEDSEG_TEST_DATA names {folder}, which is not a folder")
    return path


@pytest.fixture(scope="session", autouse=True)
def one_fit_of_trees() -> Iterator[None]:
    """One fit of trees instead of the mean of several, which takes as many times as long."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("medseg.trust.gradient_boosting._SEEDS", 1)
        yield
