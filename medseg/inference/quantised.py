"""The network in 8-bit integers, by OpenVINO and its quantiser nncf.

Quantising needs windows of real images, to learn how large the numbers between the layers get. They come from the
first case of a run; what was learnt is kept beside the results, so that every process that works on the run, now or
when it goes on, computes with the same integers.
"""

from __future__ import annotations

import importlib.util
import io
import logging
import secrets
import shutil
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import torch
from torch import nn

from medseg.errors import CaseFailed, MissingDependency
from medseg.inference.engines import OpenVinoEngine, import_openvino

INT8 = "openvino-int8"
"""Name of the engine."""

_MODEL = "network.xml"
_PREFIX = ".medseg-int8-"


class QuantisedEngine(OpenVinoEngine):
    """The network in 8-bit integers.

    Parameters
    ----------
    network
        The network in evaluation mode.
    place
        Folder that keeps the quantised network; None keeps it in memory only.

    Raises
    ------
    MissingDependency
        If OpenVINO or nncf is not installed.
    """

    def __init__(self, network: nn.Module, place: Path | None = None) -> None:
        super().__init__(INT8, network, "f32")
        if importlib.util.find_spec("nncf") is None:
            raise MissingDependency("nncf", "openvino", "int8")
        self._place = place
        self._quantised: Any = None

    @property
    def ready(self) -> bool:
        """Whether the network is quantised."""
        if self._quantised is None and self._place is not None and (self._place / _MODEL).is_file():
            self._quantised = import_openvino().Core().read_model(self._place / _MODEL)
        return self._quantised is not None

    def calibrate(self, windows: Sequence[torch.Tensor]) -> None:
        """Quantise the network with windows ``(1, C, H, W, D)``, all of one size; the first process to do so wins."""
        model = super().model(windows[0])
        with redirect_stdout(io.StringIO()):  # its progress bars would mix with what a command prints
            import nncf

            nncf.set_log_level(logging.ERROR)
            data = nncf.Dataset([window.contiguous().numpy() for window in windows])
            self._quantised = nncf.quantize(model, data, subset_size=len(windows))
        self._keep()

    def model(self, example: torch.Tensor) -> Any:
        """OpenVINO's quantised model."""
        if not self.ready:
            raise CaseFailed("the network is not quantised yet")
        self._quantised.reshape([-1, *example.shape[1:]])
        return self._quantised

    def _keep(self) -> None:
        if self._place is None:
            return
        partial = self._place.with_name(f"{self._place.name}-{secrets.token_hex(4)}")
        partial.mkdir(parents=True)
        try:
            import_openvino().save_model(self._quantised, partial / _MODEL, compress_to_fp16=False)
            partial.rename(self._place)
        except OSError:
            shutil.rmtree(partial, ignore_errors=True)
            if not (self._place / _MODEL).is_file():
                raise
        self._quantised = None  # what was kept is read again: all processes compute with the same file


def place_of(folder: Path, digest: str) -> Path:
    """Where the output folder of a run keeps the network with this digest."""
    return folder / f"{_PREFIX}{digest[:16]}"


def forget_quantised(folder: Path) -> None:
    """Let go of what an output folder keeps, so that the next run learns anew."""
    for place in folder.glob(f"{_PREFIX}*"):
        shutil.rmtree(place, ignore_errors=True)


def can_quantise() -> bool:
    """Whether OpenVINO and nncf are installed."""
    return all(importlib.util.find_spec(name) is not None for name in ("openvino", "nncf"))
