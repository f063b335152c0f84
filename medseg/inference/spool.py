"""Cases for trust on disk while it is fitted: one is in memory at a time."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import overload

import numpy as np
import torch

from medseg.trust.fit import TrustCase


class CaseCache(Sequence[TrustCase]):
    """A sequence of cases in a temporary folder, removed with the ``with`` block; probabilities in half precision."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="medseg-trust-")
        self._facts: list[TrustCase] = []

    def __enter__(self) -> CaseCache:
        return self

    def __exit__(self, *_: object) -> None:
        self._folder.cleanup()

    def append(self, case: TrustCase) -> None:
        """Write one more case."""
        np.savez_compressed(
            self._path(len(self._facts)),
            image=case.image.numpy(),
            structures=case.probabilities[1:].half().numpy(),
            reference=case.reference,
        )
        nothing = torch.empty(0)
        self._facts.append(TrustCase(nothing, nothing, np.empty(0, np.uint8), case.patient, case.spacing_mm, case.kind))

    def __len__(self) -> int:
        return len(self._facts)

    @overload
    def __getitem__(self, index: int) -> TrustCase: ...
    @overload
    def __getitem__(self, index: slice) -> list[TrustCase]: ...
    def __getitem__(self, index: int | slice) -> TrustCase | list[TrustCase]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        facts = self._facts[index]
        with np.load(self._path(range(len(self))[index])) as content:
            structures = torch.from_numpy(content["structures"].astype(np.float32))
            total = structures.sum(dim=0)
            structures /= total.clamp(min=1.0)
            probabilities = torch.cat([(1.0 - total).clamp(min=0.0)[None], structures])
            image = torch.from_numpy(content["image"])
            return TrustCase(image, probabilities, content["reference"], facts.patient, facts.spacing_mm, facts.kind)

    def _path(self, number: int) -> Path:
        return Path(self._folder.name) / f"{number}.npz"
