"""How a batch is run."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from typing import Literal, get_args

from medseg._version import medseg_version
from medseg.bundle import Bundle
from medseg.devices import resolve_device
from medseg.errors import UsageError
from medseg.inference.engines import EngineChoice
from medseg.inference.ensemble import member_digest
from medseg.inference.roi import Region
from medseg.inference.run.export import KINDS
from medseg.manifests.items import SECTIONS

Precision = Literal["auto", "fp32", "bf16"]
Windows = Literal["auto", "bundle"]

_GONE = {
    "int8": "integers cost too much Dice; --engine openvino-fp32 is fast and keeps the labels",
    "large": "it gave other labels than the bundle's own windows; --engine openvino-fp32 is fast and keeps the labels",
}
"""Values that older versions took, and what to do instead."""

_FORMS = "local:N (N processes on this machine), slurm, slurm:FILE or the address of a Dask scheduler (tcp://HOST:PORT)"


@dataclass(frozen=True)
class Place:
    """Where the workers are.

    Parameters
    ----------
    kind
        ``"local"``: processes on this machine; ``"slurm"``: jobs; ``"scheduler"``: whatever an address leads to.
    detail
        The number of processes, the settings file (may be empty), or the address.
    """

    kind: Literal["local", "slurm", "scheduler"]
    detail: str


def parse_place(text: str) -> Place:
    """Read what ``--cluster`` says.

    Raises
    ------
    UsageError
        If it is none of the known forms.
    """
    kind, _, detail = text.partition(":")
    if kind == "local" and re.fullmatch(r"[1-9]\d{0,3}", detail):
        return Place("local", detail)
    if kind == "slurm":
        return Place("slurm", detail)
    if re.fullmatch(r"(\w+://)?[^/\s]+:\d+", text) and kind != "local":
        return Place("scheduler", text)
    raise UsageError(f"--cluster {text}: expected {_FORMS}")


@dataclass(frozen=True)
class RunOptions:
    """How a batch is run.

    Parameters
    ----------
    write
        Kinds of output.
    select
        JSON file with selection rules, one per channel.
    allow_resample
        Resample uneven spacing or a gantry tilt onto a regular grid, whose label map is then written, and say so in the
        case's message. Without it uneven spacing is refused and a tilt kept as it is.
    roi
        Region of interest as for :func:`medseg.inference.roi.parse_region`.
    section, fold
        Which items of a datalist, see :class:`medseg.manifests.Part`.
    device, precision, engine
        As for :class:`~medseg.inference.Predictor`.
    windows
        ``"bundle"`` and ``"auto"``: the bundle's own.
    workers
        Cases that are read ahead, and cases that are written behind, at once.
    trust
        Whether a bundle's trust calibration judges every case.
    cluster
        Where workers do the work: see :func:`medseg.inference.run.cluster.parse_place`; None: this process does it.
    mirror
        Axes of the patient (``"lr"``, ``"ap"``, ``"is"``) along which every window is also seen mirrored.
    ensemble
        Bundles or weights files whose networks are averaged with the bundle's own.
    fresh
        Forget what an earlier run finished.
    stall_s
        After this time in one stage a case is named in the log; reading and writing are then given up.

    Raises
    ------
    UsageError
        If a value makes no sense.
    """

    write: tuple[str, ...] = ("nifti",)
    select: str | None = None
    allow_resample: bool = False
    roi: str | None = None
    section: str | None = None
    fold: int | None = None
    device: str = "auto"
    precision: Precision = "auto"
    engine: str = "auto"
    windows: Windows = "auto"
    workers: int = 1
    trust: bool = True
    cluster: str | None = None
    mirror: tuple[str, ...] = ()
    ensemble: tuple[str, ...] = ()
    fresh: bool = False
    stall_s: float = 900.0

    @property
    def judged(self) -> bool:
        """Whether cases are judged: a calibration holds for the probabilities of the plain network alone."""
        return self.trust and not self.mirror and not self.ensemble

    def __post_init__(self) -> None:
        unknown = [kind for kind in self.write if kind not in KINDS]
        if unknown or not self.write:
            raise UsageError(f"--write {','.join(self.write)}: found {unknown}, expected some of {', '.join(KINDS)}")
        if "doubt" in self.write and not self.judged:
            raise UsageError("--write doubt needs trust in the plain network; drop --no-trust, --mirror, --ensemble")
        for option, value in (("precision", self.precision), ("windows", self.windows)):
            if value in _GONE:
                raise UsageError(f"--{option} {value} is gone: {_GONE[value]}")
        if self.precision not in get_args(Precision):
            raise UsageError(f"--precision {self.precision}: expected one of {', '.join(get_args(Precision))}")
        if self.windows not in get_args(Windows):
            raise UsageError(f"--windows {self.windows}: expected one of {', '.join(get_args(Windows))}")
        if self.section not in {None, *SECTIONS}:
            raise UsageError(f"--section {self.section}: expected one of {', '.join(SECTIONS)}")
        if self.cluster is not None:
            parse_place(self.cluster)
        if self.workers < 1 or self.stall_s <= 0:
            raise UsageError(f"found {self.workers} workers and a limit of {self.stall_s} s, expected positive numbers")


def run_key(bundle: Bundle, options: RunOptions, region: Region | None) -> str:
    """Digest of everything but the input that a result depends on."""
    device = resolve_device(options.device) if options.device == "auto" else options.device
    parts = {
        "medseg": medseg_version(),
        "bundle": bundle.sha256,
        "write": sorted(options.write),
        "roi": region.key if region else None,
        "engine": EngineChoice.by_rule(device, options.precision, options.engine).engine,
        "windows": "bundle",
        "allow_resample": options.allow_resample,
        "device": device,
        "trust": options.trust,
        "mirror": sorted(options.mirror),
        "ensemble": [member_digest(place) for place in options.ensemble],
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
