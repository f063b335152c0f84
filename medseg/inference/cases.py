"""From what the user gives (files, folders, datalists) to cases: volumes of the right modality, each with a name."""

from __future__ import annotations

import hashlib
import logging
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from monai.data import MetaTensor
from numpy.typing import NDArray

from medseg.bundle import Bundle
from medseg.errors import Refusal, UsageError
from medseg.files import sha256_file, shown
from medseg.geometry import Geometry
from medseg.inference.config import Channels
from medseg.inference.preprocess import check_together
from medseg.ingest import SeriesRecord, case_id_of, read_volume, scan
from medseg.ingest import walk as archives
from medseg.ingest.record import first_of_pair, plain_name
from medseg.ingest.selection import Rule, SelectedStudy, select, selected_studies
from medseg.manifests import Manifest, Part

_LONGEST_ID_BYTES = 200
"""Of a case id: names of outputs, also the temporary ones, must not get longer than 255 bytes."""
_CODES = {
    **dict.fromkeys(("MR", "MRI", "T1", "T1W", "T1C", "T1CE", "T1GD", "T2", "T2W", "FLAIR", "DWI", "ADC"), "MR"),
    **dict.fromkeys(("CT", "CTA", "CBCT"), "CT"),
    **dict.fromkeys(("PT", "PET", "SUV"), "PT"),
    **dict.fromkeys(("NM", "SPECT"), "NM"),
    "US": "US",
}
"""What metadata say in free text, and the code of Modality (0008,0060) that it stands for (PS3.3 C.7.3.1.1.1)."""
_WORDS = re.compile(r"[A-Za-z0-9]+")
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class InputCase:
    """One thing to label: one record per input channel in the network's order, as the bundle takes them (``taken``).

    ``case_id`` is unique in the run, ``source`` the path as given, to show. With ``allow_resample`` uneven spacing or a
    tilt is resampled onto a regular grid instead of being refused or kept.
    """

    case_id: str
    source: str
    channels: tuple[SeriesRecord, ...]
    allow_resample: bool = False
    taken: Channels = field(default_factory=Channels)

    @property
    def files(self) -> tuple[str, ...]:
        """Every file that the case is read from."""
        return tuple(file for record in self.channels for file in record.files)

    @property
    def refusal(self) -> Refusal | None:
        """Why the case cannot be used, if a record says so."""
        for record in self.channels:
            if not record.usable and not (self.allow_resample and record.reason == "non-uniform-spacing"):
                return Refusal(record.reason or "not-an-image", record.message)
        return None

    @property
    def absolute(self) -> InputCase:
        """The case with the paths of its files as they are from any working directory."""
        channels = (replace(record, files=tuple(map(_absolute, record.files))) for record in self.channels)
        return replace(self, channels=tuple(channels))


def _absolute(file: str) -> str:
    path, mark, member = file.partition(archives.MARK)
    return str(Path(path).absolute()) + mark + member


@dataclass(frozen=True)
class LoadedCase:
    """A case in memory.

    ``images`` holds ``image``, ``(C, H, W, D)`` on the source grid ``geometry``; for a bundle that takes channels on
    different grids the first channel, and the others by the bundle's keys. The ``note`` says what was done to the
    source on request, and how well other channels cover the first.
    """

    case: InputCase
    images: Mapping[str, MetaTensor]
    geometry: Geometry
    note: str = ""


def collect(
    inputs: Sequence[str | Path],
    channels: int = 1,
    rules: Sequence[Rule] = (),
    *,
    part: Part | None = None,
    skipped: list[SeriesRecord] | None = None,
) -> list[InputCase]:
    """Find the cases behind any mixture of files, folders and datalists, in a stable order.

    Parameters
    ----------
    inputs
        NIfTI, .mha or .nrrd files, folders with any number of images or DICOM studies, datalists (``.json``).
    channels
        Number of the network's input channels. With more than one, a datalist or rules say what belongs together.
    rules
        Selection rules, one per channel, applied to every study among the files and folders; what they do not choose
        is left out.
    part
        Which items of the datalists; all by default.
    skipped
        Gets what is left out with a warning: what medseg itself wrote, and objects of a study that hold no volume
        (reports, dose reports, single slices) where the study has one. By rules, objects are left out silently.

    Raises
    ------
    UsageError
        If an input does not exist, or nothing was found.
    """
    missing = [str(path) for path in inputs if not Path(path).exists()]
    if missing:
        raise UsageError(f"no such file or folder: {', '.join(missing[:5])}")
    datalists = [Path(path) for path in inputs if Path(path).suffix == ".json"]
    paths = [Path(path) for path in inputs if Path(path).suffix != ".json"]
    if rules and len(rules) != channels:
        raise UsageError(f"found {len(rules)} selection rules, the bundle has {channels} channels; give one for each")
    if part is not None and not datalists:
        raise UsageError("--section and --fold choose items of a datalist; give one (.json) as INPUT")
    left_out: list[SeriesRecord] = [] if skipped is None else skipped
    records = scan(paths, own=left_out) if paths else []
    if rules:
        cases = _selected(records, rules)
    else:
        volumes = _without_objects(records, left_out)
        cases = [InputCase(r.case_id, r.source, (r,)) for r in volumes]
    for path in datalists:
        cases += _cases_of_datalist(path, part or Part(), left_out)
    if not cases:
        found = f"found no image in {', '.join(map(shown, inputs))}"
        wrote = f", but {len(left_out)} files that medseg wrote as results" if left_out else ""
        raise UsageError(f"{found}{wrote}; give NIfTI files or DICOM folders")
    return _unique(cases, channels)


def _without_objects(records: Sequence[SeriesRecord], skipped: list[SeriesRecord]) -> list[SeriesRecord]:
    """Records but those of objects that hold no volume, in studies that have one; alone they are refused cases."""
    studies = {record.study_uid_hash for record in records if record.usable and record.study_uid_hash}
    beside = [record for record in records if not record.is_volume and record.study_uid_hash in studies]
    if beside:
        what = ", ".join(f"{count} {reason}" for reason, count in Counter(r.reason for r in beside).items())
        _log.warning("left out beside the volumes of their studies: %s, such as %s", what, shown(beside[0].source))
        skipped += beside
    left_out = {id(record) for record in beside}
    return [record for record in records if id(record) not in left_out]


def _selected(records: Sequence[SeriesRecord], rules: Sequence[Rule]) -> list[InputCase]:
    """One case per study: the series that the rules choose, in the order of the channels."""
    choices = select(records, rules)
    for choice in choices:
        _log.info("%s: %s", choice.record.case_id, choice.explanation)
    first = {choice.study: choice.record for choice in reversed(choices)}
    return [_case_of_study(study, first[study.study]) for study in selected_studies(choices, rules)]


def _case_of_study(study: SelectedStudy, first: SeriesRecord) -> InputCase:
    if not study.missing:
        channels = tuple(study.channels.values())
        return InputCase(channels[0].case_id, channels[0].source, channels)
    message = f"no series of this study fits the rules for {', '.join(study.missing)}; run with --verbose to see why"
    refused = replace(first, usable=False, reason="channel-mismatch", message=message)
    return InputCase(first.case_id, first.source, (refused,))


def _cases_of_datalist(path: Path, part: Part, own: list[SeriesRecord]) -> list[InputCase]:
    manifest = Manifest.read(path)
    items = [(item.get("case_id"), manifest.files(item, "image")) for item in part.of(manifest, path)]
    wrote: list[SeriesRecord] = []
    by_source: dict[str, SeriesRecord] = {}
    for record in [*scan([file for _, files in items for file in files if file.exists()], own=wrote), *wrote]:
        by_source.setdefault(str(Path(record.source)), record)
    own += wrote
    cases = [_case_of_item(_name_of(case_id, files, path), files, by_source) for case_id, files in items if files]
    return [case for case in cases if not all(record.reason == "own-output" for record in case.channels)]


def _name_of(case_id: str | int | None, files: Sequence[Path], datalist: Path) -> str:
    """What the datalist calls a case, which names its results; without a word, as its first file is called."""
    if case_id is None:
        return case_id_of(files[0])
    name = plain_name(str(case_id))
    if name in {"", ".", ".."} or any(char in name for char in "/\\\0"):
        raise UsageError(f"{datalist}: the case_id {name!r} cannot name a file; give a plain name")
    return name


def _case_of_item(case_id: str, files: Sequence[Path], found: dict[str, SeriesRecord]) -> InputCase:
    records = tuple(found.get(first_of_pair(file)) or _absent(file) for file in files)
    return InputCase(case_id, str(files[0]), records)


def _absent(file: Path) -> SeriesRecord:
    what = "the file does not exist" if not file.exists() else "the file was not recognised as one volume"
    return SeriesRecord(
        case_id=case_id_of(file),
        source=str(file),
        kind="nifti",
        files=(),
        reason="unreadable",
        message=f"{file}: {what}; correct the datalist",
    )


def _unique(cases: Sequence[InputCase], channels: int) -> list[InputCase]:
    """Drop the same files given twice; names that occur twice get a part of their path's hash."""
    seen: dict[tuple[str, ...], InputCase] = {}
    for case in cases:
        seen.setdefault((case.source, *case.files), case)
    count = Counter(case.case_id for case in seen.values())
    hashed = {name for name in count if count[name] > 1 or len(name.encode()) > _LONGEST_ID_BYTES}
    unique = [with_path_hash(case) if case.case_id in hashed else case for case in seen.values()]
    return [_with_channels(case, channels) for case in unique]


def _with_channels(case: InputCase, channels: int) -> InputCase:
    if len(case.channels) == channels or case.refusal is not None:
        return case
    message = (
        f"found {len(case.channels)} channel(s), the bundle expects {channels}; give a datalist whose items list one"
        " image per channel"
    )
    first = replace(case.channels[0], usable=False, reason="channel-mismatch", message=message)
    return replace(case, channels=(first, *case.channels[1:]))


def with_path_hash(case: InputCase) -> InputCase:
    """The case under a name that tells it from others of the same file name."""
    path = case.files[0] if case.files else case.source
    digest = hashlib.sha256(path.encode(errors="surrogateescape")).hexdigest()[:8]
    kept = case.case_id.encode()[:_LONGEST_ID_BYTES].decode(errors="ignore")
    return replace(case, case_id=f"{kept}-{digest}")


def expected_modalities(bundle: Bundle) -> tuple[frozenset[str], ...]:
    """DICOM modality codes that a bundle takes, per input channel; empty where its metadata do not tell.

    ``channel_def`` of the input names a channel; a name that holds no modality, such as ``image``, leaves it to the
    input's ``modality``. What ``training_range`` names for the first channel is allowed, too.
    """
    stated = bundle.metadata.get("network_data_format", {}).get("inputs", {})
    image: Mapping[str, Any] = stated.get("image") or next(iter(stated.values()), {})
    channels, overall = image.get("channel_def"), _codes(image.get("modality"))
    names = channels if isinstance(channels, Mapping) else {}
    found = [_codes(names.get(str(number))) or overall for number in range(bundle.input_channels)]
    if found and found[0]:
        found[0] |= _codes((bundle.training_range or {}).get("modality"))
    return tuple(found)


def check_modality(case: InputCase, expected: tuple[frozenset[str], ...], bundle: str) -> InputCase:
    """The case, refused as ``wrong-modality`` if a channel's series states another one; NIfTI files state none."""
    if case.refusal is not None or len(case.channels) != len(expected):
        return case
    channels = tuple(_checked(record, codes, bundle) for record, codes in zip(case.channels, expected, strict=True))
    return replace(case, channels=channels)


def _checked(record: SeriesRecord, codes: frozenset[str], bundle: str) -> SeriesRecord:
    if not codes or not record.modality or record.modality.upper() in codes:
        return record
    message = f"found {record.modality}, {bundle} takes {' or '.join(sorted(codes))}; choose such a series"
    return replace(record, usable=False, reason="wrong-modality", message=message)


def _codes(stated: Any) -> frozenset[str]:
    texts = stated if isinstance(stated, list) else [stated]
    words = (word.upper() for text in texts if isinstance(text, str) for word in _WORDS.findall(text))
    return frozenset(_CODES[word] for word in words if word in _CODES)


def stat_key(case: InputCase) -> str:
    """Digest of the files' names, sizes and times: equal means unchanged, without reading them."""
    digest = hashlib.sha256()
    for file in case.files:
        stat = Path(file.partition(archives.MARK)[0]).stat()  # a member of an archive is as old as its archive
        digest.update(f"{file}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()


def file_sums(case: InputCase) -> dict[str, str]:
    """SHA-256 of each file of a case, in the order of the channels."""
    with archives.on_disk(case.files) as files:
        return {name: sha256_file(file) for name, file in zip(case.files, files, strict=True)}


def content_key(case: InputCase) -> str:
    """Digest of the files' bytes, in the order of the channels."""
    return key_of_sums(file_sums(case))


def key_of_sums(sums: Mapping[str, str]) -> str:
    """:func:`content_key`, from what :func:`file_sums` gives."""
    return hashlib.sha256("".join(sums.values()).encode()).hexdigest()


def load(case: InputCase) -> LoadedCase:
    """Read the volume(s) of a case.

    Raises ``Refusal``: whatever reading refuses; ``geometry-mismatch`` if the channels lie on different grids and the
    bundle does not resample them itself, or cannot be laid over each other.
    """
    if case.refusal is not None:
        raise case.refusal
    volumes = [read_volume(record, allow_resample=case.allow_resample) for record in case.channels]
    geometry = volumes[0][1]
    note = _note([facts for _, _, facts in volumes])
    if case.taken.resampled:
        together = check_together(case.channels, [grid for _, grid, _ in volumes], [facts for _, _, facts in volumes])
        note = "; ".join(part for part in (note, together) if part)
    else:
        _check_one_grid(case, volumes)
    arrays = [np.asarray(array, dtype=np.float32) for array, _, _ in volumes]
    if len(case.taken.keys) == 1:
        return LoadedCase(
            case, {"image": MetaTensor(np.stack(arrays), affine=np.array(geometry.affine))}, geometry, note
        )
    parts = zip(case.taken.keys, arrays, volumes, strict=True)
    images = {key: MetaTensor(array[None], affine=np.array(grid.affine)) for key, array, (_, grid, _) in parts}
    return LoadedCase(case, images, geometry, note)


def _check_one_grid(case: InputCase, volumes: Sequence[tuple[NDArray[Any], Geometry, Mapping[str, Any]]]) -> None:
    geometry = volumes[0][1]
    for record, (_, other, _) in zip(case.channels[1:], volumes[1:], strict=True):
        if not geometry.matches(other):
            raise Refusal(
                "geometry-mismatch",
                f"{record.source} lies on another grid ({other.describe()}) than the first channel"
                f" ({geometry.describe()}); resample the channels onto one grid first",
            )


def _note(channels: Sequence[Mapping[str, Any]]) -> str:
    """What is worth knowing of the volumes: what was left out beside them, what was done to them."""
    resampled = channels[0]["resampled"]
    done = (f"resampled onto a regular grid on request, because of {resampled['because']}",) if resampled else ()
    return "; ".join(dict.fromkeys((*done, *(note for facts in channels for note in facts["notes"]))))
