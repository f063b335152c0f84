"""What a run says of one case, and how an error becomes such a result."""

from __future__ import annotations

import errno
import traceback
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from medseg.errors import CaseFailed, Refusal
from medseg.geometry import Geometry
from medseg.json_shape import FILE_NAME, FLAG, NUMBER, PLACE, TEXT, WHOLE, Spec, number, one_of
from medseg.labels.scheme import LabelScheme
from medseg.results.verdict import DECISIONS, DiscriminatorVerdict, Interval, Judged, Verdict

Status = Literal["done", "refused", "failed"]

_VERDICT = {
    "predicted_dice": NUMBER,
    "lower_bound": NUMBER,
    "verdict": one_of(*DECISIONS),
    "flags": [TEXT],
    "look_at_mm": PLACE,
    "case_class": {"name!": TEXT, "probability!": NUMBER},
    "structures": [{"label!": WHOLE, "name!": TEXT, "predicted_dice!": NUMBER, "lower_bound!": NUMBER}],
}
_DISCRIMINATOR = {"structures!": [{"label!": WHOLE, "name!": TEXT, "share": NUMBER, "patches!": WHOLE}]}
CASE: Spec = {
    "case_id!": FILE_NAME,
    "source": TEXT,
    "status": TEXT,
    "reason": TEXT,
    "message": TEXT,
    "seconds": NUMBER,
    "outputs": [FILE_NAME],
    "structures": [
        {
            "label!": WHOLE,
            "name!": TEXT,
            "volume_ml": NUMBER,
            "interval": {"low_ml!": number(0.0, 1e12), "high_ml!": number(0.0, 1e12), "coverage!": number(0.0, 1.0)},
            "values": [WHOLE],
        }
    ],
    "trust": _VERDICT,
    "discriminator": _DISCRIMINATOR,
    "stages": {"*": NUMBER},
    "not_written": {"*": {"reason!": TEXT, "message!": TEXT}},
    "trained_on": FLAG,
    "checksums": {"*": {"bytes!": WHOLE, "sha256!": TEXT}},
    "parts": [
        {
            "name!": TEXT,
            "located_ml!": NUMBER,
            "low!": PLACE,
            "high!": PLACE,
            "mirrored!": FLAG,
            "trust": _VERDICT,
            "discriminator": _DISCRIMINATOR,
        }
    ],
}
"""A case as in ``run.json``, as far as it is read again."""


@dataclass(frozen=True)
class StructureVolume:
    """How much of one structure a label map holds; no volume is known where an older run did not state it."""

    label: int
    name: str
    volume_ml: float | None = None
    values: tuple[int, ...] = ()  # of a region: what belongs to it in a label map; empty for its label alone
    interval: Interval | None = None  # in ml, see :meth:`Verdict.volume_interval`

    def to_json(self) -> dict[str, Any]:
        """The structure as in ``run.json``."""
        stated: dict[str, Any] = {"label": self.label, "name": self.name, "volume_ml": self.volume_ml}
        if self.interval is not None:
            low, high, coverage = self.interval
            stated["interval"] = {"low_ml": low, "high_ml": high, "coverage": coverage}
        return {**stated, "values": list(self.values)} if self.values else stated

    @classmethod
    def from_json(cls, item: Mapping[str, Any]) -> StructureVolume:
        """The structure behind an entry of ``structures``."""
        known = item.get("interval")
        interval = Interval(known["low_ml"], known["high_ml"], known["coverage"]) if known else None
        return cls(item["label"], item["name"], item.get("volume_ml"), tuple(item.get("values") or ()), interval)


@dataclass(frozen=True)
class LocatedPart:
    """A part of a structure that was located and labelled in a crop of its own."""

    name: str  # its side, ``left`` or ``right``, or its number
    located_ml: float  # how much of it the first bundle has found
    low: tuple[int, int, int]
    high: tuple[int, int, int]
    """``low``, ``high``: the crop in voxels of the source grid, ``high`` exclusive."""
    mirrored: bool = False  # whether the network saw it mirrored, left for right
    trust: Verdict | None = None
    discriminator: DiscriminatorVerdict | None = None
    """``trust``, ``discriminator``: what is said of this crop alone; None where nothing judges."""

    def moved(self, shift: tuple[int, int, int]) -> LocatedPart:
        """The part on a grid of which its own is a crop that begins at ``shift``."""
        i, j, k = shift
        low, high = ((a + i, b + j, c + k) for a, b, c in (self.low, self.high))
        return replace(self, low=low, high=high)

    def to_json(self) -> dict[str, Any]:
        """The part as in ``run.json``."""
        judged = {"trust": self.trust, "discriminator": self.discriminator}
        stated = {"name": self.name, "located_ml": self.located_ml, "low": list(self.low), "high": list(self.high)}
        return {**stated, "mirrored": self.mirrored, **{key: one and one.to_json() for key, one in judged.items()}}

    @classmethod
    def from_json(cls, item: Mapping[str, Any]) -> LocatedPart:
        """The part behind an entry of ``parts``."""
        i, j, k = map(int, item["low"])
        a, b, c = map(int, item["high"])
        trust, real = item.get("trust"), item.get("discriminator")
        return cls(
            item["name"],
            item["located_ml"],
            (i, j, k),
            (a, b, c),
            item["mirrored"],
            Verdict.from_json(trust) if trust else None,
            DiscriminatorVerdict.from_json(real) if real else None,
        )


@dataclass(frozen=True)
class Reason:
    """Why something is not there: a stable code, and words."""

    reason: str
    message: str


@dataclass(frozen=True)
class FileStamp:
    """Number of bytes and SHA-256, by which a later run knows a file again."""

    bytes: int
    sha256: str


@dataclass(frozen=True)
class CaseResult(Judged):
    """One case of a run."""

    case_id: str
    source: str = ""
    """``case_id``, ``source``: its name and the path as given."""
    status: Status = "done"
    reason: str | None = None
    message: str = ""
    """``status``, ``reason``, ``message``: what became of it; a reason code and its explanation if it is not done."""
    seconds: float = 0.0  # wall time from reading to writing
    outputs: tuple[str, ...] = ()  # file names in the output folder
    structures: tuple[StructureVolume, ...] = ()  # volume of every structure of the bundle
    trust: Verdict | None = None
    """The verdict; None where it was not asked for or its calibration cannot be used, and if the case is not done."""
    stages: Mapping[str, float] = field(default_factory=dict)  # wall time per stage, seconds
    not_written: Mapping[str, Reason] = field(default_factory=dict)
    """Why the source cannot have an output that was asked for, by kind."""
    trained_on: bool | None = None
    """Whether the image is one that the bundle has learnt from; None if the bundle does not tell."""
    checksums: Mapping[str, FileStamp] = field(default_factory=dict)  # of every output, by its name
    discriminator: DiscriminatorVerdict | None = None
    """What the bundle's discriminator takes the result for; None unless it has been accepted as a judge."""
    parts: tuple[LocatedPart, ...] = ()
    """What was located and labelled in crops; none where the volume was labelled as a whole."""

    def to_json(self) -> dict[str, Any]:
        """The case as in ``run.json``; ``parts`` where some were located."""
        stated = asdict(replace(self, parts=()))
        del stated["parts"]
        return {
            **stated,
            **({"parts": [one.to_json() for one in self.parts]} if self.parts else {}),
            "outputs": list(self.outputs),
            "structures": [one.to_json() for one in self.structures],
            "trust": self.trust and self.trust.to_json(),
            "discriminator": self.discriminator and self.discriminator.to_json(),
        }

    @classmethod
    def from_json(cls, item: Mapping[str, Any]) -> CaseResult:
        """The case behind an entry of ``cases`` that fits :data:`medseg.results.run_report.RUN`, of older runs too."""
        trust = item.get("trust") or {}
        return cls(
            item["case_id"],
            item.get("source") or "",
            item.get("status") or "done",
            item.get("reason"),
            item.get("message") or "",
            float(item.get("seconds") or 0.0),
            tuple(item.get("outputs") or ()),
            tuple(StructureVolume.from_json(one) for one in item.get("structures") or ()),
            Verdict.from_json(trust) if trust.get("verdict") else None,
            item.get("stages") or {},
            {kind: Reason(why["reason"], why["message"]) for kind, why in (item.get("not_written") or {}).items()},
            item.get("trained_on"),
            {name: FileStamp(stamp["bytes"], stamp["sha256"]) for name, stamp in (item.get("checksums") or {}).items()},
            DiscriminatorVerdict.from_json(item["discriminator"]) if item.get("discriminator") else None,
            tuple(map(LocatedPart.from_json, item.get("parts") or ())),
        )

    @classmethod
    def of_error(
        cls, case_id: str, source: str, error: BaseException, stage: str, bundle: Path | None = None
    ) -> CaseResult:
        """The result of a case that raised while it was in a stage (``reading``, ``computing``, ``writing``).

        If code in the folder ``bundle`` raised it, the result names the place.

        Messages of errors that are not medseg's own are left out: a library may have put a header's text into them.
        """
        if isinstance(error, Refusal):
            return cls(case_id, source, "refused", error.code, error.message)
        reason, message = _failure(error, stage)
        if reason == "unexpected" and bundle is not None:
            place, is_own = place_of(error, bundle)
            message = f"{stage} raised {place}, the bundle's own code; ask whoever wrote it" if is_own else message
        return cls(case_id, source, "failed", reason, message)

    @property
    def label_map(self) -> str:
        """The name of its label map among its outputs, or the name that one would have."""
        start = f"{self.case_id}_seg."
        found = (name for name in self.outputs if name.startswith(start) and not name.endswith(".dcm"))
        return next(found, f"{start}nii.gz")


def volumes_of(
    label_map: NDArray[np.integer[Any]], geometry: Geometry, scheme: LabelScheme, verdict: Verdict | None = None
) -> tuple[StructureVolume, ...]:
    """Volume of every structure in a label map on a grid, 0 where it was not found; regions have what overlaps, too.

    With intervals, where the verdict on the result has them.
    """
    members, structures = scheme.members, scheme.structures
    largest = max((value for values in members.values() for value in values), default=0)
    counts = np.bincount(label_map.reshape(-1), minlength=largest + 1)
    ml = geometry.voxel_volume_mm3 / 1000.0
    found = {label: float(counts[list(members[label])].sum() * ml) for label in structures}
    return tuple(
        StructureVolume(
            label,
            name,
            found[label],
            members[label] if scheme.regions else (),
            None if verdict is None else verdict.volume_interval(label, found[label]),
        )
        for label, name in structures.items()
    )


def place_of(error: BaseException, bundle: Path) -> tuple[str, bool]:
    """Type and place of an error, and whether that is in the folder of a bundle, whose own code comes first.

    Without the error's text, which a library may have taken from a header. MONAI raises a ``RuntimeError`` from what
    fails in a transform.
    """
    chain = [error]
    while (cause := chain[-1].__cause__) is not None and not any(cause is known for known in chain):
        chain.append(cause)
    frames = [(type(one).__name__, frame) for one in chain for frame in traceback.extract_tb(one.__traceback__)]
    root = bundle.resolve()
    for kind, frame in reversed(frames):
        if (file := Path(frame.filename)).is_relative_to(root):
            return f"{kind} at {file.relative_to(root).as_posix()}:{frame.lineno}", True
    kind, last = frames[-1] if frames else (type(error).__name__, None)
    return kind + (f" at {last.filename}:{last.lineno}" if last else ""), False


def _failure(error: BaseException, stage: str) -> tuple[str, str]:
    if isinstance(error, CaseFailed) and not isinstance(error.__cause__, OSError):
        return "case-failed", str(error)
    error = error.__cause__ if isinstance(error, CaseFailed) and error.__cause__ else error
    if isinstance(error, TimeoutError):
        return "timeout", f"{stage} gave {error}; look at the source, then run the same command again"
    if is_out_of_memory(error):
        return "out-of-memory", f"{stage} ran out of memory; crop with --roi or use a machine with more"
    if isinstance(error, OSError):
        what = errno.errorcode.get(error.errno or 0, "OSError")
        if what in {"ENOSPC", "EDQUOT", "EFBIG"}:
            return "disk-full", f"{stage} found no space left ({what}); make room and run the same command again"
        return ("unwritable" if stage == "writing" else "unreadable"), f"{stage} failed with {what}; check the files"
    return "unexpected", f"{stage} raised {type(error).__name__}; run with --verbose to see where, and report it"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, in Python, on a GPU, or in torch's allocator on the CPU, which has no type for it."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)
