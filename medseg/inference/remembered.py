"""How a network is best run on this machine, remembered between runs, so that it is measured once.

One small JSON file per bundle, machine and set of versions lies in the user's cache folder (``MEDSEG_CACHE_DIR`` names
another one). A file that is damaged, or names what this machine does not have, counts as absent. No name of a case or
of a file is kept.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import logging
import os
import platform
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import torch
from platformdirs import user_cache_path

import medseg
from medseg.bundle import Bundle
from medseg.files import write_json
from medseg.inference.choice import SMALLEST_AGREEMENT, Choice, Windows
from medseg.inference.engines import REFERENCE, candidates
from medseg.inference.members import member_digest

__all__ = ["CACHE_VARIABLE", "Measured", "Subject", "recall", "remember"]

CACHE_VARIABLE = "MEDSEG_CACHE_DIR"
"""Environment variable that names the cache folder."""

_EARLIER = "an earlier run on this machine"
_PACKAGES = ("torch", "monai", "openvino", "nncf")
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Subject:
    """What a measurement holds for, beside the machine.

    Parameters
    ----------
    bundle
        The bundle.
    device
        Torch device.
    mirror, ensemble
        As for :class:`~medseg.inference.Predictor`.
    """

    bundle: Bundle
    device: str = "cpu"
    mirror: Sequence[str] = ()
    ensemble: Sequence[str] = ()


@dataclass(frozen=True)
class Measured:
    """What was found.

    Parameters
    ----------
    choice
        The fastest way that gives the same labels.
    reference_s
        Seconds that the reference takes for one case.
    thorough
        Whether engines that are slow to start were tried, too.
    """

    choice: Choice
    reference_s: float
    thorough: bool


def remember(subject: Subject, measured: Measured) -> None:
    """Keep what was measured; a cache that cannot be written is no reason to stop."""
    content = {
        "choice": replace(measured.choice, measured_on=_EARLIER, memory_bytes=None).to_json(),
        "reference_s": measured.reference_s,
        "thorough": measured.thorough,
    }
    path = _file(subject)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, content)
    except OSError as error:
        _log.info("the choice of engine cannot be remembered: %s", type(error).__name__)


def recall(subject: Subject) -> Measured | None:
    """What was measured before on this machine, or None."""
    try:
        return _read(json.loads(_file(subject).read_bytes()), subject.device)
    except (OSError, ValueError, TypeError, KeyError):
        return None


def _read(content: Any, device: str) -> Measured | None:
    found = Measured(Choice.from_json(content["choice"]), float(content["reference_s"]), content["thorough"] is True)
    choice = found.choice
    usable = choice.engine in candidates(device) and choice.windows in get_args(Windows)
    reference = (choice.engine, choice.windows) == (REFERENCE, "bundle")
    if choice.windows == "large" and choice.measured_shape is None:
        return None  # nobody knows up to which size they agree
    if not usable or not (reference or float(choice.agreement or 0.0) >= SMALLEST_AGREEMENT):
        return None
    return replace(found, choice=replace(choice, measured_on=_EARLIER, memory_bytes=None))


def _file(subject: Subject) -> Path:
    parts = {
        "bundle": subject.bundle.sha256,
        "ensemble": [member_digest(place) for place in subject.ensemble],
        "mirror": sorted(subject.mirror),
        "device": _device(subject.device),
        "threads": torch.get_num_threads(),
        "versions": {"medseg": medseg.__version__, **{name: _version(name) for name in _PACKAGES}},
    }
    name = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]
    return _folder() / "engines" / f"{name}.json"


def _folder() -> Path:
    return Path(os.environ.get(CACHE_VARIABLE) or user_cache_path("medseg"))


def _device(device: str) -> list[str]:
    if torch.device(device).type == "cuda":
        return [torch.cuda.get_device_name(device)]
    return [platform.machine(), _processor(), torch.backends.cpu.get_cpu_capability()]


def _processor() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
