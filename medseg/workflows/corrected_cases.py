"""Corrected cases: what ``medseg infer`` made of them, and what a person made of that, side by side on one grid.

They are what trust is calibrated on at another hospital. The network looks at each image again, exactly as it did,
since its probabilities were not kept; a label map in the folder that it does not give again was made by other weights
or options, and such a case is left out.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, overload

import numpy as np
from monai.data import MetaTensor
from numpy.typing import NDArray

from medseg.errors import CaseFailed, MedsegError, Refusal, UsageError
from medseg.evaluation.pairing import Collection
from medseg.evaluation.pairing import collect as collect_references
from medseg.inference.cases import InputCase, LoadedCase, collect, load
from medseg.inference.config import channels_of
from medseg.inference.foreground import Crop, ProbabilityCrop
from medseg.inference.predictor import Prediction, Predictor
from medseg.inference.preprocess import Case, geometry_of
from medseg.inference.roi import parse_region
from medseg.inference.worsened import worse_images, worse_masks
from medseg.labels import check_labels, read_label_map
from medseg.results import CaseResult, RunReport
from medseg.trust.fit import TrainingCase, TrustCase

_SAME = 0.999
"""Share of the structures' voxels that must be as in the folder: engines and windows may differ in a few."""


@dataclass(frozen=True)
class Skipped:
    """A case that cannot be used, and why."""

    case_id: str
    message: str


@dataclass
class CorrectedCases:
    """The cases of an infer folder that have a reference; iterating gives one after the other, one in memory.

    Each comes as it is (kind ``"own"``), then made worse in some ways (:mod:`medseg.inference.worsened`).

    Parameters
    ----------
    predictor
        The bundle that made the folder.
    folder
        What ``medseg infer`` left.
    references
        Folder of corrected masks, or a datalist (which may name patients).
    images
        Where the images are now, if ``run.json`` does not lead to them.
    progress
        Called with the number of cases looked at, and of all.
    worse
        How many faults are put into the image of each case, and how many into the result.

    Attributes
    ----------
    case_ids
        The cases that have a reference.
    skipped
        Cases that turned out unusable; complete after the iteration.
    """

    predictor: Predictor
    folder: Path
    references: Path
    images: Sequence[Path] = ()
    progress: Callable[[int, int], None] | None = None
    worse: tuple[int, int] = (2, 3)
    case_ids: tuple[str, ...] = field(init=False)
    skipped: list[Skipped] = field(init=False, default_factory=list)

    def __post_init__(self) -> None:
        self._run = RunReport.read(self.folder)
        self._found: Collection = collect_references(self.references, "references")
        done = {case.case_id: case for case in self._run.cases if case.status == "done"}
        self.case_ids = tuple(case_id for case_id in done if case_id in self._found.files)
        if not self.case_ids:
            raise UsageError(
                f"none of the {len(done)} cases in {self.folder} has a reference in {self.references}; name the"
                " corrected masks by case id, such as CASE.nii.gz or CASE_seg.nii.gz"
            )
        self._sources = self._cases(done)

    def __len__(self) -> int:
        return len(self.case_ids)

    def __iter__(self) -> Iterator[TrustCase]:
        for number, case_id in enumerate(self.case_ids, start=1):
            try:
                yield from self._case(case_id)
            except MedsegError as error:
                self.skipped.append(Skipped(case_id, str(error)))
            if self.progress is not None:
                self.progress(number, len(self))

    def _cases(self, done: Mapping[str, CaseResult]) -> dict[str, InputCase]:
        """The images behind the case ids, found as the run found them."""
        bundle = self.predictor.bundle
        sources = [Path(done[case_id].source) for case_id in self.case_ids]
        places = list(self.images) or [source for source in dict.fromkeys(sources) if source.exists()]
        if not places:
            raise UsageError(f"the images that {self.folder} was made from are gone; name them with --images")
        taken, resample = channels_of(bundle), bool(self._run.options.get("allow_resample"))
        found = {}
        for case in collect(places, bundle.input_channels):
            known = InputCase(case.case_id, case.source, case.channels, resample, taken)
            found[case.case_id] = found[case.source] = known
        by_id = {case_id: found.get(case_id) or found.get(done[case_id].source) for case_id in self.case_ids}
        return {case_id: case for case_id, case in by_id.items() if case is not None}

    def _case(self, case_id: str) -> Iterator[TrustCase]:
        if case_id not in self._sources:
            raise CaseFailed("its image was not found; name it with --images")
        loaded = load(self._sources[case_id])
        given = self._found.files[case_id]
        truth = read_label_map(given.path, mapping=given.mapping)
        reference, grid = truth.array, truth.geometry
        if not grid.matches(loaded.geometry):
            raise Refusal("geometry-mismatch", "the corrected mask is on another grid than the image")
        case, labels = self._in_region(loaded, self._known_labels(reference))
        patient = self._found.files[case_id].patient
        prediction, own = self._looked_at(case, labels, patient)
        self._check_same(case_id, prediction.label_map, loaded)
        yield own
        rng = np.random.default_rng(zlib.crc32(case_id.encode()))
        yield from worse_masks(own, rng, self.worse[1])
        for name, worse in worse_images(case["image"], rng, self.worse[0]):
            yield replace(self._looked_at({**case, "image": worse}, labels, patient)[1], kind=name)

    def _looked_at(self, case: Case, labels: NDArray[np.uint8], patient: str) -> tuple[Prediction, TrustCase]:
        """Label a case; the result beside the reference, in a box round both on the network's grid."""
        keeper = ProbabilityCrop(self.predictor.config.post.decoding)
        prediction = self.predictor.predict(case, watch=keeper)
        assert prediction.prepared is not None
        moved = _nearest(labels, case["image"], prediction.prepared)
        crop = keeper.crop(prediction.prepared.shape[1:], include=moved > 0)
        if crop is None:
            raise CaseFailed("its structures are too large to be judged")
        return prediction, _trust_case(prediction.prepared, crop, moved, patient)

    def _known_labels(self, reference: NDArray[Any]) -> NDArray[np.uint8]:
        labels, _ = check_labels(reference, "the corrected mask", declared=self.predictor.bundle.labels)
        return np.asarray(labels, dtype=np.uint8)

    def _in_region(self, loaded: LoadedCase, reference: NDArray[np.uint8]) -> tuple[Case, NDArray[np.uint8]]:
        """The case and its reference, cut to the region of interest of the run."""
        asked = self._run.options.get("roi")
        if not asked:
            return loaded.images, reference
        box = parse_region(str(asked)).box(loaded.geometry)
        return {**loaded.images, "image": box.crop(loaded.images["image"])}, reference[box.slices]

    def _check_same(self, case_id: str, found: NDArray[Any], loaded: LoadedCase) -> None:
        path = self.folder / f"{case_id}_seg.nii.gz"
        if not path.is_file():
            return
        old = read_label_map(path).array
        asked = self._run.options.get("roi")
        old = old[parse_region(str(asked)).box(loaded.geometry).slices] if asked else old
        either = int(np.count_nonzero((old > 0) | (found > 0)))
        if either and np.count_nonzero(old != found) > max((1.0 - _SAME) * either, 3):
            raise CaseFailed(
                "the network does not give the label map in the folder again: other weights or options made it, or it"
                " was corrected in place; run medseg infer again and keep corrected masks in a folder of their own"
            )


class TrainingCases(Sequence[TrainingCase]):
    """Cases of a datalist as the network sees them; each is read when asked for.

    Parameters
    ----------
    predictor
        The bundle.
    datalist
        Names image and label of the cases that the network was trained on.
    """

    def __init__(self, predictor: Predictor, datalist: Path) -> None:
        self._predictor = predictor
        self._labels = collect_references(datalist, "references").files
        taken = channels_of(predictor.bundle)
        found = collect([datalist], predictor.bundle.input_channels)
        self._cases = [replace(case, taken=taken) for case in found if case.case_id in self._labels]
        if not self._cases:
            raise UsageError(f"{datalist} names no image with its label; give the datalist of the training")

    def __len__(self) -> int:
        return len(self._cases)

    @overload
    def __getitem__(self, index: int) -> TrainingCase: ...
    @overload
    def __getitem__(self, index: slice) -> list[TrainingCase]: ...
    def __getitem__(self, index: int | slice) -> TrainingCase | list[TrainingCase]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        loaded = load(self._cases[index])
        given = self._labels[loaded.case.case_id]
        labels = read_label_map(given.path, declared=self._predictor.bundle.labels, mapping=given.mapping)
        prepared = self._predictor.prepare(loaded.images)
        reference = _nearest(labels.array.astype(np.uint8), loaded.images["image"], prepared)
        return TrainingCase(prepared.as_tensor().float(), reference, geometry_of(prepared).spacing_mm)


def _trust_case(prepared: MetaTensor, crop: Crop, reference: NDArray[np.uint8], patient: str) -> TrustCase:
    image = prepared.as_tensor()[(slice(None), *crop.slices)].float().contiguous()
    labels = np.ascontiguousarray(reference[crop.slices])
    return TrustCase(image, crop.probabilities, labels, patient, geometry_of(prepared).spacing_mm)


def _nearest(labels: NDArray[np.uint8], source: MetaTensor, prepared: MetaTensor) -> NDArray[np.uint8]:
    """Labels on the network's grid: those of the nearest voxel, background outside the source grid."""
    from scipy.ndimage import affine_transform

    affines = [np.asarray(image.affine, dtype=np.float64) for image in (source, prepared)]
    matrix = np.linalg.solve(affines[0], affines[1])
    shape = tuple(prepared.shape[1:])
    # "constant" would take a voxel that lies a rounding error outside for background, "grid-constant" does not
    moved = affine_transform(labels, matrix, output_shape=shape, order=0, mode="grid-constant", cval=0)
    return np.asarray(moved, dtype=np.uint8)
