"""What trust is fitted on: results with their ground truth, and training cases; one of them in memory at a time."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medseg.trust.crop import Crop, with_rest_as_background


class Overlap(NamedTuple):
    """Voxels of a structure: those found, those of its reference, and those in both."""

    found: int
    reference: int
    common: int

    @classmethod
    def of(cls, mask: NDArray[np.bool_], truth: NDArray[np.bool_]) -> Overlap:
        """Of two masks of one shape."""
        return cls(int(mask.sum()), int(truth.sum()), int((mask & truth).sum()))

    @property
    def dice(self) -> float | None:
        """None where both masks are empty."""
        total = self.found + self.reference
        return 2.0 * self.common / total if total else None

    @property
    def log_ratio(self) -> float | None:
        """Log of the volume of the reference over what was found; None if that is nothing.

        Without a reference it is far below any that an interval reaches.
        """
        return math.log(max(self.reference, 1e-6) / self.found) if self.found else None


@dataclass(frozen=True)
class TrustCase:
    """A result with its ground truth, of a case that the network was not trained on."""

    crop: Crop  # image and probabilities; of a mask alone, its one-hot
    reference: NDArray[np.uint8]  # label map ``(H, W, D)`` on the crop's grid
    patient: str  # results of one patient are never on both sides of a fold
    fault: str | None = None
    """What was done to the image or to the result; None for the network's own result on an untouched image."""
    measured: Mapping[int, Overlap] | None = None
    """By label, of what is written in the end, where labels are cleaned; None: of the probabilities' labels."""

    def overlap(self, label: int) -> Overlap:
        """Of one structure with its reference."""
        if self.measured is not None:
            return self.measured[label]
        return Overlap.of(self.crop.probabilities.numpy().argmax(0) == label, self.reference == label)

    def dice(self, label: int) -> float | None:
        """Dice of one structure; None where neither mask has it."""
        return self.overlap(label).dice


@dataclass(frozen=True)
class TrainingCase:
    """A case that the network was trained on: image ``(C, H, W, D)`` as it saw it, reference ``(H, W, D)``."""

    image: Tensor
    reference: NDArray[np.uint8]
    spacing_mm: tuple[float, float, float] = (1.0, 1.0, 1.0)


class Subset(Sequence[TrustCase]):
    """Some of the cases, read when asked for."""

    def __init__(self, cases: Sequence[TrustCase], where: Sequence[int] | NDArray[np.int64]) -> None:
        self._cases, self._where = cases, where

    def __len__(self) -> int:
        return len(self._where)

    def __getitem__(self, index: Any) -> Any:
        return self._cases[int(self._where[index])]


class CaseCache(Sequence[TrustCase]):
    """Cases in a temporary folder, removed with the ``with`` block; probabilities in half precision."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="medseg-trust-")
        self._cases: list[TrustCase] = []
        """Without their arrays."""

    def __enter__(self) -> CaseCache:
        return self

    def __exit__(self, *_: object) -> None:
        self._folder.cleanup()

    def append(self, case: TrustCase) -> None:
        """Write one more case."""
        np.savez_compressed(
            self._path(len(self._cases)),
            image=case.crop.image.numpy(),
            structures=case.crop.probabilities[1:].half().numpy(),
            reference=case.reference,
        )
        nothing = torch.empty(0, 0, 0, 0)
        emptied = replace(case.crop, image=nothing, probabilities=nothing)
        self._cases.append(replace(case, crop=emptied, reference=np.empty(0, np.uint8)))

    def __len__(self) -> int:
        return len(self._cases)

    def __getitem__(self, index: Any) -> Any:
        case = self._cases[index]
        with np.load(self._path(range(len(self))[index])) as content:
            structures = torch.from_numpy(content["structures"].astype(np.float32))
            probabilities = torch.cat([torch.zeros_like(structures[:1]), structures])
            with_rest_as_background(probabilities)
            crop = replace(case.crop, image=torch.from_numpy(content["image"]), probabilities=probabilities)
            return replace(case, crop=crop, reference=content["reference"])

    def _path(self, number: int) -> Path:
        return Path(self._folder.name) / f"{number}.npz"
