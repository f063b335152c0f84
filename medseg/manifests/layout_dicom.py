"""A DICOM tree as it comes from an archive: series, and the SEG and RTSTRUCT objects that refer to them."""

from __future__ import annotations

import logging
import os
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from medseg.errors import Refusal, UsageError
from medseg.ingest import SeriesRecord
from medseg.ingest.selection import Rule, select, selected_studies
from medseg.labels.scheme import listed
from medseg.manifests.items import Item, one_or_list, relative_name
from medseg.manifests.label_objects import LabelObject, objects_among, open_object, person_of, series_of
from medseg.manifests.manifest import Manifest

Several = Literal["refuse", "latest", "join", "raters"]
"""What several label objects of one series are: nothing is guessed, the latest counts, each holds some of the
structures, or each is another rater's."""

_SHOWN = 8
_Channels = tuple[SeriesRecord, ...]
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class DicomChoices:
    """What decides where a tree leaves several answers."""

    several: Several = "refuse"  # what several objects of one series are
    modality: str = ""  # take series of this modality alone, such as ``"MR"``
    rules: Sequence[Rule] = ()
    """One for each channel, as ``medseg index --select`` reads them: the series of each study that are its image."""
    links: Path | None = None  # folder for links that sort series apart which share a folder
    leave_out: bool = False  # leave out what cannot be matched, with a warning, instead of refusing the tree


def read_dicom_tree(records: Sequence[SeriesRecord], start: Path, choices: DicomChoices) -> Manifest:
    """Pair every SEG and RTSTRUCT among the records with the series that it refers to.

    A case is a series with a label, or the series of a study that the rules choose. Patients and sessions are
    pseudonyms, as in the index. Series without a label are left out and counted. Raises a ``UsageError`` with the list
    of what cannot be matched: objects whose series is not there, cannot be used or is of another patient, several
    objects of one series, labelled series of several modalities, persons who share a patient id.
    """
    usable, refused = ([one for one in records if one.usable is wanted] for wanted in (True, False))
    held = Counter(folder for record in usable for folder in Path(record.files[0]).parents)
    cases = _cases(usable, choices)
    labels: dict[int, list[LabelObject]] = defaultdict(list)
    problems: list[str] = []
    case_of = {id(record): number for number, channels in enumerate(cases) for record in channels}
    for record in objects_among(records):
        for path in record.files:
            found = _series(path, record, usable, refused)
            if isinstance(found, str):
                problems.append(found)
            elif id(found[1]) in case_of:
                labels[case_of[id(found[1])]].append(found[0])
    chosen = {number: cases[number] for number in sorted(labels)}
    problems += _shared_ids([channels[0] for channels in chosen.values()])
    _refuse_modalities(list(chosen.values()), choices)
    items: list[Item] = []
    for number, channels in chosen.items():
        try:
            items.append(_item(channels, labels[number], start, held, choices))
        except UsageError as error:
            problems.append(str(error))
    _tell(problems, choices.leave_out, found=bool(items))
    _tell_unlabelled(usable, chosen.values())
    return Manifest({"name": start.name, "labels": {}, "training": items}, start)


def _cases(usable: Sequence[SeriesRecord], choices: DicomChoices) -> list[_Channels]:
    """The series of each possible case: one each, or one for each rule."""
    dicom = [record for record in usable if record.kind == "dicom"]
    if choices.modality:
        dicom = [record for record in dicom if record.modality == choices.modality]
    if not choices.rules:
        return [(record,) for record in dicom]
    studies = selected_studies(select(dicom, choices.rules), choices.rules)
    return [tuple(study.channels.values()) for study in studies if not study.missing]


def _series(
    path: str, record: SeriesRecord, usable: Sequence[SeriesRecord], refused: Sequence[SeriesRecord]
) -> tuple[LabelObject, SeriesRecord] | str:
    if "!/" in path:
        return f"{record.modality} {Path(path).name} lies in an archive, where labels are not read; unpack it"
    try:
        one = open_object(path, record.patient_hash)
    except Refusal as refusal:
        return str(refusal)
    found = series_of(one, usable, refused)
    return found if isinstance(found, str) else (one, found)


def _shared_ids(records: Sequence[SeriesRecord]) -> list[str]:
    """Patient ids under which there are several persons: nobody knows which images are whose."""
    persons: dict[str, dict[str, str]] = defaultdict(dict)
    for record in records:
        if name := person_of(record):
            persons[record.patient_hash].setdefault(name, record.source)
    return [
        f"one patient id, {len(names)} names of patients: {listed([Path(source).name for source in names.values()])}; "
        "say who is who with --patient-pattern"
        for names in persons.values()
        if len(names) > 1
    ]


def _refuse_modalities(cases: Sequence[_Channels], choices: DicomChoices) -> None:
    counts = Counter(channels[0].modality for channels in cases)
    if len(counts) > 1 and not choices.rules:
        found = listed([f"{count} {modality}" for modality, count in counts.most_common()])
        raise UsageError(
            f"the labelled series are {found}; one datalist is for one kind of image: choose with --modality "
            f"{counts.most_common(1)[0][0]}, or say with --select RULES which series are the channels of a case"
        )


def _item(
    channels: _Channels,
    objects: Sequence[LabelObject],
    start: Path,
    held: Mapping[Path, int],
    choices: DicomChoices,
) -> Item:
    first = channels[0]
    return {
        "image": one_or_list([_image(record, start, held, choices.links) for record in channels]),
        "label": _label(first, objects, start, choices.several),
        "case_id": first.case_id,
        "patient_id": first.patient_hash,
        "session": first.study_uid_hash[:12],
        "modality": first.modality,
    }


def _image(record: SeriesRecord, start: Path, held: Mapping[Path, int], links: Path | None) -> str:
    """The folder that holds a series and no other one; where there is none, a folder of links to its files.

    ``held`` is the number of usable volumes below each folder.
    """
    folder = Path(record.source)
    if held[folder] == 1 and "!/" not in record.files[0]:
        return relative_name(folder, start)
    if links is None:
        raise UsageError(
            f"{folder.name} holds {held[folder]} usable series: give --links DIR, a folder in which links sort them "
            "apart (nothing is copied)"
        )
    target = links / record.case_id
    target.mkdir(parents=True, exist_ok=True)
    for number, file in enumerate(record.files):
        link = target / f"{number:05d}.dcm"
        if not link.is_symlink():
            link.symlink_to(os.path.relpath(file, target))
    return relative_name(target, start)


def _label(record: SeriesRecord, objects: Sequence[LabelObject], start: Path, several: Several) -> Any:
    ordered = sorted(objects, key=lambda one: (one.made, one.path))
    names = [relative_name(Path(one.path), start) for one in ordered]
    if len(ordered) == 1:
        return names[0]
    if several == "latest" and ordered[-1].made > ordered[-2].made:
        return names[-1]
    if several == "raters":
        return [{"rater": str(number), "label": name} for number, name in enumerate(names, start=1)]
    holders: dict[str, list[str]] = defaultdict(list)
    for one, name in zip(ordered, names, strict=True):
        for structure in one.names:
            holders[structure].append(name)
    twice = [structure for structure, files in holders.items() if len(files) > 1]
    if several == "join" and not twice:
        return {structure: files[0] for structure, files in holders.items()}
    which = listed([f"{one.shown} ({', '.join(one.names[:_SHOWN]) or 'nothing'})" for one in ordered])
    raise UsageError(f"{which} all label {record.case_id} ({record.modality}); {_remedy(several, twice)}")


def _remedy(several: Several, twice: Sequence[str]) -> str:
    if several == "latest":
        return "none of them is the latest, since they carry one time; remove one"
    if several == "join":
        return f"{listed(twice[:_SHOWN])} stands in more than one: remove one, or say --several latest or raters"
    return "say what they are with --several latest, join (each holds some structures) or raters"


def _tell(problems: Sequence[str], leave_out: bool, *, found: bool) -> None:
    if not problems and found:
        return
    word = "label" if len(problems) == 1 else "labels"
    lines = [f"\n  {problem}" for problem in problems[:_SHOWN]]
    lines += [f"\n  and {len(problems) - _SHOWN} more"] * (len(problems) > _SHOWN)
    if leave_out and found:
        _log.warning("left out:%s", "".join(lines))
    elif problems:
        raise UsageError(
            f"{len(problems)} {word} cannot be matched with an image:{''.join(lines)}\nCorrect them, or leave them out "
            "with --leave-out"
        )
    else:
        raise UsageError("no usable series of those asked for has a label; see: medseg index, and --modality, --select")


def _tell_unlabelled(usable: Sequence[SeriesRecord], cases: Any) -> None:
    taken = {id(record) for channels in cases for record in channels}
    counts = Counter(record.modality or record.kind for record in usable if id(record) not in taken)
    if counts:
        found = listed([f"{count} {modality}" for modality, count in counts.most_common()])
        _log.warning("left out: %s series, which are not chosen or have no label", found)
