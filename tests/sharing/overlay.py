"""A Python with a few packages of its own in front of those that run the tests."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest


def overlay(folder: Path, *packages: str) -> Path:
    """Create the environment and return its interpreter; skip the test where pip cannot install the packages.

    The packages come without what they depend on, so that PyTorch, NumPy and the like stay those of the tests.
    """
    venv.create(folder)
    python = folder / "bin" / "python"
    below = f"import site; site.addsitedir({sysconfig.get_paths()['purelib']!r})\n"
    own = subprocess.run(
        [str(python), "-c", "import sysconfig; print(sysconfig.get_paths()['purelib'])"],
        capture_output=True,
        text=True,
        check=True,
    )
    first = "00_below.pth"  # Holoscan's own .pth file needs packages from below
    (Path(own.stdout.strip()) / first).write_text(below)
    pip = [sys.executable, "-m", "pip", "--python", str(python)]
    install = [*pip, "install", "--quiet", "--no-deps", "--ignore-installed"]
    done = subprocess.run([*install, *packages], capture_output=True, text=True, check=False, timeout=900)
    if done.returncode:
        pytest.skip(f"pip cannot install {packages[0]} here: {done.stderr.strip()[-300:]}")
    return python
