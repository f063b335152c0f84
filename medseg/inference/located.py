"""Two stages: one bundle locates a structure, the other labels a crop round each of its parts."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from monai.data import MetaTensor
from numpy.typing import NDArray

from medseg.errors import CaseFailed, Refusal, UsageError
from medseg.geometry import Geometry, ras_axes
from medseg.inference.invert import LabelMap
from medseg.inference.locate import SIDES, CropRule, Found, Part, find_parts
from medseg.inference.located_bundle import LocatedBundle
from medseg.inference.predictor import Prediction, Predictor
from medseg.inference.preprocess import Case, geometry_of
from medseg.inference.roi import IndexBox
from medseg.inference.sliding_window import Chunk
from medseg.results.case_result import LocatedPart
from medseg.results.verdict import (
    NOT_CALIBRATED,
    STRUCTURE_MISSING,
    DiscriminatorVerdict,
    RealShare,
    StructureQuality,
    Verdict,
)

Names = Mapping[int, tuple[int, str]]
"""Label and name in the result, by the label in a crop."""
_Stated = TypeVar("_Stated", StructureQuality, RealShare)


@dataclass(frozen=True)
class _Piece:
    """A part, its crop, and what was labelled there, on the crop's own grid and as the patient lies."""

    part: Part
    crop: IndexBox
    names: Names
    found: Prediction
    told: LocatedPart


class LocatedPredictor(Predictor):
    """A predictor of whole images for a bundle that labels crops; see :class:`~medseg.inference.predictor.Predictor`.

    Parameters
    ----------
    bundle
        Both bundles.
    device, precision, asked
        As for :class:`~medseg.inference.predictor.Predictor`; ``mirror``, ``ensemble`` and ``trust`` are for the second
        network alone.
    """

    def __init__(self, bundle: LocatedBundle, device: str = "auto", precision: str = "auto", **asked: Any) -> None:
        super().__init__(bundle.plain, device, precision, **asked)
        self.bundle = self._located = bundle
        self._locator = Predictor(bundle.locator, device, precision, engine=asked.get("engine", "auto"), trust=False)
        self._wanted = bundle.wanted
        self._rule = CropRule.of(bundle.locating.margin_mm, bundle.training_range)
        if bundle.locating.trained_side and len(self.config.channels.keys) > 1:
            raise UsageError(f"--locate: {bundle.name} takes channels on several grids, which cannot be mirrored")

    def predict(
        self,
        image: MetaTensor | Mapping[str, Any],
        modality: str | None = None,
        *,
        error_map: bool = False,
        probabilities: Path | None = None,
        watch: Callable[[Chunk], None] | None = None,
    ) -> Prediction:
        """Locate, label every crop, and lay the results onto the image's grid.

        Raises
        ------
        Refusal
            ``not-located``, or what either bundle refuses.
        CaseFailed
            As :meth:`medseg.inference.predictor.Predictor.predict`.
        UsageError
            If probabilities are asked for, or the network is to be watched: there is one output for each crop.
        """
        if probabilities is not None or watch is not None:
            raise UsageError("what is located first has no probabilities of the whole image; leave --locate out")
        case, begin = self._case(image), time.perf_counter()
        located = self._locate(case["image"], geometry_of(case["image"]), modality)
        seconds = time.perf_counter() - begin
        found = self.label(case, located, modality, error_map=error_map)
        return replace(found, seconds={"locate": seconds, **found.seconds})

    def label(self, case: Case, located: Found, modality: str | None = None, *, error_map: bool = False) -> Prediction:
        """Label the crops of parts that were located, as :meth:`predict` does, and lay the results onto the grid."""
        geometry, seconds = geometry_of(case["image"]), dict[str, float]()
        pieces = [
            self._piece(case, part, crop, number, modality, error_map)
            for number, (part, crop) in enumerate(zip(located.parts, located.crops, strict=True), start=1)
        ]
        for piece in pieces:
            for stage, value in piece.found.seconds.items():
                seconds[stage] = seconds.get(stage, 0.0) + value
        maps = [
            piece.crop.paste(piece.found.error_map, geometry.shape)
            for piece in pieces
            if piece.found.error_map is not None
        ]
        return Prediction(
            _laid(pieces, geometry, max(self._located.scheme.names)),
            geometry,
            seconds,
            self._verdict(pieces),
            np.maximum.reduce(maps) if maps else None,
            discriminator=_real(pieces),
            parts=tuple(piece.told for piece in pieces),
            note=self._note(pieces, located),
        )

    def _locate(self, image: MetaTensor, geometry: Geometry, modality: str | None) -> Found:
        bundle, how = self._located.locator, self._located.locating
        seen = image[self._located.seen]
        try:
            labels = self._locator.predict(seen, modality).label_map
            return find_parts(labels, geometry, self._wanted, self._rule, sides=how.sides)
        except Refusal as refusal:
            raise Refusal(refusal.code, f"{how.structure} by {bundle.name}: {refusal.message}") from refusal

    def _piece(
        self, case: Case, part: Part, crop: IndexBox, number: int, modality: str | None, error_map: bool
    ) -> _Piece:
        """Label one crop, mirrored if the network knows the other side alone."""
        trained, name = self._located.locating.trained_side, part.side or str(number)
        names, image = self._located.names_of(part.side), crop.crop(case["image"])
        geometry = geometry_of(image)
        axis = ras_axes(geometry)[0] if trained not in {None, part.side} else None
        try:
            found = super().predict({**case, "image": _flipped(image, axis)}, modality, error_map=error_map)
        except Refusal as refusal:
            raise Refusal(refusal.code, f"the crop of part {name}: {refusal.message}") from refusal
        except CaseFailed as error:
            raise CaseFailed(f"the crop of part {name}: {error}") from error
        if axis is not None:
            turned = None if found.error_map is None else np.flip(found.error_map, axis)
            found = replace(found, label_map=np.flip(found.label_map, axis), error_map=turned)
        told = LocatedPart(
            name,
            part.voxels * geometry.voxel_volume_mm3 / 1000.0,
            crop.low,
            crop.high,
            axis is not None,
            found.verdict and _renamed(found.verdict, names, geometry, axis),
            found.discriminator and DiscriminatorVerdict(_named(found.discriminator.structures, names)),
        )
        return _Piece(part, crop, names, found, told)

    def _verdict(self, pieces: Sequence[_Piece]) -> Verdict | None:
        """The worst of the parts; a side without a part is flagged."""
        verdicts = [piece.told.trust for piece in pieces if piece.told.trust]
        lacks = self._located.locating.sides and len(pieces) < len(SIDES)
        return Verdict.worst(verdicts, (STRUCTURE_MISSING,) if lacks else ()) if verdicts else None

    def _note(self, pieces: Sequence[_Piece], located: Found) -> str:
        parts = ", ".join(f"{piece.told.name} {piece.told.located_ml:.2f} ml" for piece in pieces)
        verdicts = [piece.told.trust for piece in pieces if piece.told.trust]
        without = () if any(one.calibrated for one in verdicts) else (NOT_CALIBRATED if verdicts else "not judged",)
        return "; ".join((f"located by {self._located.locator.name}: {parts}", *located.notes, *without))


def _flipped(image: MetaTensor, axis: int | None) -> MetaTensor:
    """An image ``(C, H, W, D)`` mirrored in its own frame along an array axis."""
    return image if axis is None else type(image)(image.as_tensor().flip(axis + 1), affine=image.affine)


def _laid(pieces: Sequence[_Piece], geometry: Geometry, largest: int) -> LabelMap:
    """The labels of all crops on one grid; where two crops label a voxel, that whose part is nearer has it."""
    labels: LabelMap = np.zeros(geometry.shape, dtype=np.uint8 if largest < 256 else np.uint16)
    owner = np.zeros(geometry.shape, dtype=np.uint8)
    centres = np.stack([piece.part.centre for piece in pieces])
    for number, piece in enumerate(pieces):
        table = np.arange(max(largest, int(piece.found.label_map.max())) + 1).astype(labels.dtype)
        for label, (value, _) in piece.names.items():
            table[label] = value  # those of regions stay, and what has no name
        new, old, of = table[piece.found.label_map], labels[piece.crop.slices], owner[piece.crop.slices]
        wins = new > 0
        index = np.argwhere(wins & (old > 0))
        if len(index):
            place = index + np.asarray(piece.crop.low)
            others = centres[of[tuple(index.T)]]
            wins[tuple(index.T)] = _far(place - centres[number], geometry) < _far(place - others, geometry)
        old[wins], of[wins] = new[wins], number
    return labels


def _far(steps: NDArray[np.float64], geometry: Geometry) -> NDArray[np.float64]:
    return np.asarray(np.linalg.norm(steps @ geometry.affine[:3, :3].T, axis=1))


def _renamed(verdict: Verdict, names: Names, geometry: Geometry, axis: int | None) -> Verdict:
    """A crop's verdict with the structures of its side, and the place to look at where it is in the patient."""
    place = verdict.look_at_mm
    if place is not None and axis is not None:
        index = np.linalg.solve(geometry.affine, [*place, 1.0])
        index[axis] = geometry.shape[axis] - 1 - index[axis]
        x, y, z = (geometry.affine @ index)[:3].tolist()
        place = (x, y, z)
    return replace(verdict, structures=_named(verdict.structures, names), look_at_mm=place)


def _named(structures: Sequence[_Stated], names: Names) -> tuple[_Stated, ...]:
    return tuple(replace(one, label=names[one.label][0], name=names[one.label][1]) for one in structures)


def _real(pieces: Sequence[_Piece]) -> DiscriminatorVerdict | None:
    """What the discriminator says of all parts; of a structure in several the lowest share."""
    verdicts = [piece.told.discriminator for piece in pieces if piece.told.discriminator]
    shares = sorted((one for verdict in verdicts for one in verdict.structures), key=lambda one: -(one.share or 0.0))
    lowest = {one.label: one for one in shares}
    return DiscriminatorVerdict(tuple(lowest[label] for label in sorted(lowest))) if verdicts else None
