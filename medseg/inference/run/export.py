"""The files a case leaves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from medseg.bundle import Bundle
from medseg.errors import BundleError, Refusal, UsageError
from medseg.files import sha256_file
from medseg.inference.cases import InputCase
from medseg.inference.config import read_inference_config
from medseg.inference.predictor import Prediction
from medseg.inference.probabilities import STEPS, require_probabilities
from medseg.inference.run.options import KINDS, RunContext
from medseg.ingest import save_nifti
from medseg.ingest.left_out import mark
from medseg.ingest.nifti import save_nifti_channels
from medseg.results.case_result import CaseResult, FileStamp, Reason, Status
from medseg.trust.trust_files import TrustState

_ANY_SOURCE = ("nifti", "probabilities", "doubt")


@dataclass
class Written:
    """What became of the outputs of a case."""

    stamps: dict[str, FileStamp] = field(default_factory=dict)  # of each file, by name
    missing: dict[str, Refusal] = field(default_factory=dict)  # why the source cannot have an output, by kind
    failed: tuple[str, Exception] | None = None
    """Kind and error of the output at which writing stopped; None if it did not."""

    @property
    def not_written(self) -> dict[str, Reason]:
        """Why the source cannot have an output, as the case's result says it."""
        return {kind: Reason(why.code, why.message) for kind, why in self.missing.items()}

    def failure(self, case: InputCase) -> tuple[Status, str | None, str] | None:
        """Status, reason and message of a case that is not done: an output could not be finished, or nothing that was
        asked for can be written of it; None if it is done.
        """
        if self.failed is not None:
            kind, error = self.failed
            failure = CaseResult.of_error(case.case_id, case.source, error, "writing")
            return "failed", failure.reason, f"{kind}: {failure.message}"
        refusal = next((why for kind, why in self.missing.items() if kind != "doubt"), None)
        return None if refusal is None or self.stamps else ("refused", refusal.code, refusal.message)


def check_kinds(bundle: Bundle, kinds: Sequence[str], trust: TrustState, cases: Sequence[InputCase]) -> None:
    """Refuse a run that asks for what none of its cases can have, before the first one is computed.

    Raises ``BundleError`` if DICOM objects are asked for and the bundle states no coded term for a label;
    ``UsageError`` if the bundle gives no probabilities and they are asked for, or nothing judges its weights and doubt
    is, or nothing that is asked for can be written.
    """
    if "doubt" in kinds and trust.state != "ready":
        raise UsageError(f"--write doubt: no case can have it, since {trust.message}; leave doubt out of --write")
    if "probabilities" in kinds:
        require_probabilities(read_inference_config(bundle), bundle.name)
    usable = [case for case in cases if case.refusal is None]
    if usable and all(refusal_of(case, kinds) for case in usable):
        raise UsageError(f"--write {','.join(kinds)}: {_no_source(usable[0]).message}")
    if any(set(kinds) - {*_ANY_SOURCE, *_unavailable(case, kinds)} for case in usable):
        _check_codes(bundle)


def _check_codes(bundle: Bundle) -> None:
    from medseg.labels.codes import segment_codes

    try:
        segment_codes(bundle)
    except (TypeError, ValueError, AttributeError) as error:
        raise BundleError(
            f"segment_codes of {bundle.name} are not an object with label values for keys ({error}); correct"
            " configs/metadata.json, or write nifti only"
        ) from error


def _unavailable(case: InputCase, kinds: Sequence[str]) -> tuple[str, ...]:
    """Kinds that cannot be written for a case: DICOM objects refer to the DICOM images they were made from."""
    return () if case.channels[0].kind == "dicom" else tuple(kind for kind in kinds if kind not in _ANY_SOURCE)


def refusal_of(case: InputCase, kinds: Sequence[str]) -> Refusal | None:
    """Why a case is not worth computing: it cannot be used, or nothing that was asked for could be written of it."""
    return case.refusal or (_no_source(case) if len(_unavailable(case, kinds)) == len(kinds) else None)


def _no_source(case: InputCase) -> Refusal:
    return Refusal(
        "no-dicom-source",
        f"DICOM objects need DICOM images to refer to, {case.source} is {case.channels[0].kind}; give the DICOM series,"
        " or write nifti, too",
    )


def write_outputs(
    case: InputCase, prediction: Prediction, context: RunContext, asked: frozenset[int] = frozenset()
) -> Written:
    """Write what can be written of a case, each file whole or not at all.

    An output that the source cannot have is noted and the others are written. At an error of another kind, such as a
    full disk, writing stops. Files of an older run that do not belong to this result are removed.

    Parameters
    ----------
    case
        The case.
    prediction
        On the grid of its source.
    context
        The run: bundle, kinds of output, folder.
    asked
        The labels that were looked for; empty: all.
    """
    kinds = context.options.write
    found = Written(missing=dict.fromkeys(_unavailable(case, kinds), _no_source(case)))
    for kind in (kind for kind in KINDS if kind in kinds):
        path = context.folder / f"{case.case_id}_{KINDS[kind]}"
        if found.failed is None and kind not in found.missing:
            try:
                _write(kind, case, prediction, context.bundle, path, asked)
                found.stamps[path.name] = FileStamp(path.stat().st_size, sha256_file(path))
                continue
            except Refusal as refusal:
                found.missing[kind] = refusal
            except Exception as error:  # noqa: BLE001  becomes the case's result, beside what was written of it
                found.failed = kind, error
        path.unlink(missing_ok=True)
    return found


def _write(
    kind: str, case: InputCase, prediction: Prediction, bundle: Bundle, path: Path, asked: frozenset[int]
) -> None:
    affine = prediction.geometry.affine
    if kind == "nifti":
        save_nifti(prediction.label_map, affine, path, description=mark("label-map"))
    elif kind == "probabilities" and prediction.probabilities is not None:
        maps = prediction.probabilities
        save_nifti_channels(maps, maps.channels, affine, path, scale=1 / STEPS, description=mark("probability-map"))
    elif kind == "doubt":
        if prediction.error_map is None:
            raise Refusal(
                "not-judged", "the case could not be judged (see the flags of its trust), so there is no doubt"
            )
        save_nifti(prediction.error_map, affine, path, description=mark("doubt-map"))
    else:
        from medseg.outputs.common import WriteOptions
        from medseg.outputs.write import write

        errors = prediction.error_map.astype(np.float32) if prediction.error_map is not None and kind == "sc" else None
        options = WriteOptions(trust=prediction.verdict, doubt=errors, asked=asked)
        write(kind, prediction.label_map, prediction.geometry, case.channels[0], bundle, path, options=options)
