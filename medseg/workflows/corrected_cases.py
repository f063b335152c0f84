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
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from medseg.errors import CaseFailed, MedsegError, Refusal, UsageError
from medseg.evaluation.pairing import CaseFile
from medseg.evaluation.pairing import collect as collect_references
from medseg.evaluation.scoring import along
from medseg.inference.cases import InputCase, LoadedCase, collect, load
from medseg.inference.config import channels_of
from medseg.inference.interpolation import nearest_labels
from medseg.inference.roi import IndexBox, parse_region
from medseg.labels import ImageGrid, LabelScheme, read_label, read_label_map
from medseg.results import RunReport
from medseg.trust.crop import ProbabilityCrop, spacing_mm_of
from medseg.trust.fit_cases import Overlap, TrainingCase, TrustCase
from medseg.trust.synthetic_faults import with_image_faults, with_mask_faults
from medseg.trust.trust_files import TrustFiles

if TYPE_CHECKING:
    from medseg.inference.predictor import Prediction, Predictor
    from medseg.inference.preprocess import Case

IMAGE_FAULTS_EACH, MASK_FAULTS_EACH = 2, 3
"""How many faults are put into the image of each case, and how many into its result."""

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

    Each comes as it is, then with some faults (:mod:`medseg.trust.synthetic_faults`).
    """

    predictor: Predictor  # the bundle that made the folder
    folder: Path  # what ``medseg infer`` left
    # folder of corrected masks, or a datalist (which may name patients). A mask whose axes run in another order or
    # direction than those of its image is turned, which changes no value
    references: Path
    images: Sequence[Path] = ()  # where the images are now, if ``run.json`` does not lead to them
    progress: Callable[[int, int], None] = lambda _, __: None  # called with the number of cases looked at, and of all
    case_ids: tuple[str, ...] = field(init=False)  # the cases that have a reference
    # cases that turned out unusable; complete after the iteration
    skipped: list[Skipped] = field(init=False, default_factory=list)

    def __post_init__(self) -> None:
        run = RunReport.read(self.folder)
        self._options, self._cleans = run.options, bool(TrustFiles(self.predictor.bundle).cleaning)
        found = collect_references(self.references, "references").files
        named = {file.alias: file for file in found.values() if file.alias}  # objects whose series the run did not know
        self._references = {**named, **found}
        done = {case.case_id: case.source for case in run.cases if case.status == "done"}
        self.case_ids = tuple(case_id for case_id in done if case_id in self._references)
        if not self.case_ids:
            raise UsageError(
                f"none of the {len(done)} cases in {self.folder} has a reference in {self.references}; name the"
                " corrected masks by case id, such as CASE.nii.gz or CASE_seg.nii.gz"
            )
        self._sources = self._inputs({case_id: done[case_id] for case_id in self.case_ids})

    def __iter__(self) -> Iterator[TrustCase]:
        for number, case_id in enumerate(self.case_ids, start=1):
            try:
                yield from self._results(case_id)
            except MedsegError as error:
                self.skipped.append(Skipped(case_id, str(error)))
            self.progress(number, len(self.case_ids))

    def _inputs(self, sources: Mapping[str, str]) -> dict[str, InputCase]:
        """The images behind the case ids, found as the run found them."""
        bundle = self.predictor.bundle
        places = list(self.images) or [path for path in map(Path, dict.fromkeys(sources.values())) if path.exists()]
        if not places:
            raise UsageError(f"the images that {self.folder} was made from are gone; name them with --images")
        taken, resample = channels_of(bundle), bool(self._options.get("allow_resample"))
        known: dict[str, InputCase] = {}
        for case in collect(places, bundle.input_channels):
            known[case.case_id] = known[case.source] = replace(case, allow_resample=resample, taken=taken)
        by_id = {case_id: known.get(case_id) or known.get(source) for case_id, source in sources.items()}
        return {case_id: case for case_id, case in by_id.items() if case is not None}

    def _results(self, case_id: str) -> Iterator[TrustCase]:
        """The network's own result, then those with faults."""
        if case_id not in self._sources:
            raise CaseFailed("its image was not found; name it with --images")
        loaded = load(self._sources[case_id])
        labels = _labels_of(self._references[case_id], loaded, self.predictor)
        roi = self._options.get("roi")
        box = parse_region(str(roi)).box(loaded.geometry) if roi else None
        case = loaded.images if box is None else {**loaded.images, "image": box.crop(loaded.images["image"])}
        labels = labels if box is None else labels[box.slices]
        patient = self._references[case_id].patient
        prediction, own = self._result(case, labels, patient)
        self._check_same(case_id, prediction.label_map, box)
        yield own
        rng = np.random.default_rng(zlib.crc32(case_id.encode()))
        yield from with_mask_faults(own, rng, MASK_FAULTS_EACH)
        for name, changed in with_image_faults(case["image"], rng, IMAGE_FAULTS_EACH):
            yield replace(self._result({**case, "image": changed}, labels, patient)[1], fault=name)

    def _result(self, case: Case, labels: NDArray[np.uint8], patient: str) -> tuple[Prediction, TrustCase]:
        """Label a case; the result beside the reference, in a box round both on the network's grid."""
        kept = ProbabilityCrop(self.predictor.config.post.decoding)
        prediction = self.predictor.predict(case, watch=lambda chunk: kept.add(chunk.start, chunk.scores))
        assert prediction.prepared is not None
        reference = nearest_labels(labels, case["image"], prediction.prepared)
        crop = kept.crop(prediction.prepared.as_tensor(), prediction.prepared.affine.numpy(), include=reference > 0)
        if crop is None:
            raise CaseFailed("its structures are too large to be judged")
        measured = None
        if self._cleans:  # what is written is no longer what the probabilities say
            written = prediction.label_map
            measured = {label: Overlap.of(written == label, labels == label) for label in self.predictor.bundle.labels}
        own = TrustCase(crop, np.ascontiguousarray(reference[crop.slices]), patient, measured=measured)
        return prediction, own

    def _check_same(self, case_id: str, labels: NDArray[Any], box: IndexBox | None) -> None:
        path = self.folder / f"{case_id}_seg.nii.gz"
        if not path.is_file():
            return
        old = read_label_map(path).array
        old = old if box is None else old[box.slices]
        either = int(np.count_nonzero((old > 0) | (labels > 0)))
        if either and np.count_nonzero(old != labels) > max((1.0 - _SAME) * either, 3):
            raise CaseFailed(
                "the network does not give the label map in the folder again: other weights, options or cleaning made"
                " it, or it was corrected in place; run medseg infer again, with corrected masks in another folder"
            )


class TrainingCases(Sequence[TrainingCase]):
    """Cases of a datalist as the network sees them; each is read when asked for.

    ``predictor``: The bundle. ``datalist``: Names image and label of the cases that the network was trained on.
    """

    def __init__(self, predictor: Predictor, datalist: Path) -> None:
        self._predictor = predictor
        self._labels = collect_references(datalist, "references").files
        taken = channels_of(predictor.bundle)
        cases = collect([datalist], predictor.bundle.input_channels)
        self._cases = [
            replace(case, taken=taken) for case in cases if (one := self._labels.get(case.case_id)) and not one.unknown
        ]
        if not self._cases:
            raise UsageError(f"{datalist} names no image with its label; give the datalist of the training")

    def __len__(self) -> int:
        return len(self._cases)

    def __getitem__(self, index: Any) -> Any:
        loaded = load(self._cases[index])
        labels = _labels_of(self._labels[loaded.case.case_id], loaded, self._predictor)
        prepared = self._predictor.prepare(loaded.images)
        reference = nearest_labels(labels, loaded.images["image"], prepared)
        return TrainingCase(prepared.as_tensor().float(), reference, spacing_mm_of(prepared.affine.numpy()))


def _labels_of(file: CaseFile, loaded: LoadedCase, predictor: Predictor) -> NDArray[np.uint8]:
    """The labels of a case on the grid of its image; axes in another order or direction are turned."""
    image = loaded.geometry
    if file.unknown:
        raise Refusal("unexpected-labels", f"{file.path.name} is partly annotated; trust needs complete references")
    read = read_label(
        file.path if file.entry is None else file.entry,
        scheme=LabelScheme(predictor.bundle.labels, file.mapping),
        rules=file.rules,
        image=lambda: replace(ImageGrid.of(loaded.case.channels[0]), geometry=image),
    )
    labels, grid = along(read.array, read.geometry, image)
    if not grid.matches(image):
        raise Refusal("geometry-mismatch", f"{file.path.name}, on another grid than the image, {grid.mismatch(image)}")
    return np.asarray(labels, dtype=np.uint8)
