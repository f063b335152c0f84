"""The number format of a run: the context to compute in it, and the layers that stay in fp32."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn

from medseg.devices import FORMATS, Precision, fast_dtype
from medseg.training.layer_check import keep_in_fp32

_NAMES = {dtype: name for name, dtype in FORMATS.items()}


class NumberFormat:
    """The format that the networks of a run compute in: what was asked for, and what a trial has left of it.

    It is part of the checkpoints, so a run that goes on computes in the same formats without another trial, unless it
    goes on with another processor.

    Parameters
    ----------
    device
        Of the run.
    asked
        What was asked for.
    networks
        The networks by name, whose layers may be kept in fp32; those that share names with them follow as ``copies``.

    Attributes
    ----------
    dtype
        What convolutions compute in.
    kept
        Layers that compute in fp32 all the same, by ``"network.module"``, with their relative error.
    disagreement
        Parameters whose gradient differed as a whole, for which everything computes in fp32.
    unchecked
        Why there could be no trial; None if there was one, or needed to be none.
    """

    def __init__(
        self,
        device: torch.device,
        asked: Precision,
        networks: Mapping[str, nn.Module],
        copies: Mapping[str, nn.Module] | None = None,
    ) -> None:
        self.device, self.asked = device, asked
        self.networks, self._copies = dict(networks), dict(copies or {})
        self.first = self.dtype = fast_dtype(device, asked)
        self.kept: dict[str, float] = {}
        self.disagreement: dict[str, float] = {}
        self.unchecked: str | None = None
        self._tried_on: str | None = None

    @property
    def tried(self) -> bool:
        """Whether nothing is left to try: the format is fp32, or this processor has been tried."""
        return self.dtype == torch.float32 or self._tried_on == _processor(self.device)

    def computing(self) -> AbstractContextManager[object]:
        """Context in which networks compute in the format; nothing for fp32."""
        return nullcontext() if self.dtype == torch.float32 else torch.autocast(self.device.type, dtype=self.dtype)

    @property
    def scaled(self) -> bool:
        """Whether gradients may underflow, so that losses have to be scaled."""
        return self.first == torch.float16

    def keep(self, errors: Mapping[str, float]) -> None:
        """Let layers compute in fp32."""
        for layer in errors:
            name, _, path = layer.partition(".")
            for network in (self.networks[name], self._copies.get(name)):
                if network is not None and layer not in self.kept:
                    keep_in_fp32(network.get_submodule(path))
        self.kept.update(errors)

    def give_up(self, disagreement: Mapping[str, float]) -> None:
        """Compute everything in fp32."""
        self.disagreement.update(disagreement)
        self.dtype = torch.float32

    def settle(self, unchecked: str | None = None) -> None:
        """Note that this processor has been tried, or why it could not be."""
        self.unchecked, self._tried_on = unchecked, _processor(self.device)

    def record(self) -> dict[str, Any]:
        """For ``run.json``: what was asked for and used, what computes in fp32 all the same, and why."""
        return {
            "asked": self.asked,
            "used": _NAMES[self.dtype],
            "kept_in_fp32": sorted(self.kept),
            "disagreement": {name: f"{error:.3g}" for name, error in {**self.kept, **self.disagreement}.items()},
            "checked_on": self._tried_on,
            "unchecked": self.unchecked,
        }

    def state_dict(self) -> dict[str, Any]:
        """What has been decided, as JSON."""
        decided = {
            "first": _NAMES[self.first],
            "kept": self.kept,
            "disagreement": self.disagreement,
            "unchecked": self.unchecked,
            "tried_on": self._tried_on,
        }
        return {"json": json.dumps(decided)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with what was decided; in another format than that run's, a new trial decides."""
        decided = json.loads(state["json"])
        if decided["first"] != _NAMES[self.first]:
            return
        self.keep(decided["kept"])
        if decided["disagreement"]:
            self.give_up(decided["disagreement"])
        self.unchecked, self._tried_on = decided["unchecked"], decided["tried_on"]


def _processor(device: torch.device) -> str:
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    else:
        name = f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"
    return f"{name}, torch {torch.__version__}"
