"""The networks of a predictor, run in the chosen way: engines, windows, integers."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from medseg.inference.averaging import Averaged, View
from medseg.inference.choice import Choice
from medseg.inference.engines import REFERENCE, Engine, build_engine
from medseg.inference.footprint import Footprint, large_window, measure_footprint
from medseg.inference.memory import share_bytes
from medseg.inference.quantised import INT8, QuantisedEngine
from medseg.inference.recipe import Recipe
from medseg.inference.windows import WindowSettings, plan_windows, spread_windows

__all__ = ["Networks", "settled"]

_WHOLE = WindowSettings((0, 0, 0))
_MEMORY_FRACTION = 0.4
_LARGEST_FRACTION = 0.9
_CALIBRATION_WINDOWS = 12


class Networks:
    """The bundle's network and those that are averaged with it.

    Parameters
    ----------
    members
        The networks in float32, in evaluation mode; the bundle's own first.
    recipe
        What the bundle asks for.
    device
        Torch device.
    kept
        One folder per network that keeps it in integers; empty keeps them in memory.
    """

    def __init__(
        self, members: Sequence[torch.nn.Module], recipe: Recipe, device: str, kept: Sequence[Path] = ()
    ) -> None:
        self.members, self.device = tuple(members), device
        self.choice = Choice()
        self._recipe, self._kept = recipe, tuple(kept)
        self._engines: list[Engine] = []
        self._footprint: Footprint | None = None

    @property
    def own_windows(self) -> WindowSettings:
        """The bundle's own sliding window; one as large as the volume if its inferer takes the whole volume."""
        return self._recipe.windows or _WHOLE

    def use(self, choice: Choice) -> None:
        """Run the networks in the given way from now on."""
        self.choice = settled(choice, self.device)
        self._engines = [self._engine(choice.engine, member) for member in range(len(self.members))]

    def copy_of(self, member: int = 0) -> torch.nn.Module:
        """A copy of a network in float32, to build an engine around."""
        return copy.deepcopy(self.members[member])

    def averaged(self, looks: Sequence[View]) -> Averaged:
        """What maps windows to the mean of some views."""
        return Averaged(self._engines, looks, self._recipe.activation)

    def learn(self, volume: torch.Tensor) -> None:
        """Learn what integers need from a volume ``(C, H, W, D)`` on the network's grid, if that is still to do."""
        for engine in self._engines:
            if isinstance(engine, QuantisedEngine) and not engine.ready:
                engine.calibrate(list(spread_windows(volume, self.own_windows, _CALIBRATION_WINDOWS)))

    def windows(self, volume: torch.Tensor) -> WindowSettings:
        """The windows for a volume ``(C, H, W, D)``: the bundle's own, or as large as memory allows."""
        own = self.own_windows
        if self.choice.windows != "large" or self._recipe.windows is None:
            return own
        if self._footprint is None:
            reference: Engine = build_engine(REFERENCE, self.copy_of(), self.device)
            window = torch.zeros(1, volume.shape[0], *plan_windows(volume.shape[1:], own).roi_size)
            self._footprint = measure_footprint(reference, window)
        budget = min(self.choice.memory_bytes or 0, share_bytes(self.device) * _LARGEST_FRACTION)
        return large_window(volume.shape[1:], own, self._footprint, budget)

    def _engine(self, name: str, member: int) -> Engine:
        if name == INT8:
            return QuantisedEngine(self.copy_of(member), self._kept[member] if self._kept else None)
        return build_engine(name, self.copy_of(member), self.device)


def settled(choice: Choice, device: str) -> Choice:
    """A choice of large windows with the memory that they may take, if it does not say so yet: a part of what this
    process may have now, so that others that begin later find their share, rounded down to a power of two, so that a
    few megabytes more or less do not move the windows from one run to the next."""
    if choice.windows != "large" or choice.memory_bytes is not None:
        return choice
    part = max(1, int(share_bytes(device) * _MEMORY_FRACTION))
    return replace(choice, memory_bytes=1 << (part.bit_length() - 1))
