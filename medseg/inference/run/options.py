"""How a batch is run: what was asked for, what all its cases share, and whose the output folder is.

Imports nothing heavy, since the command line takes its options from :class:`RunOptions`.
"""

from __future__ import annotations

import hashlib
import json
import re
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from medseg._version import medseg_version
from medseg.errors import Interrupted, MedsegError, UsageError
from medseg.files import write_text

if TYPE_CHECKING:
    from medseg.bundle import Bundle, Permission, TrainingData
    from medseg.inference.engines import EngineChoice
    from medseg.inference.roi import Region

Precision = Literal["auto", "fp32", "bf16"]
Windows = Literal["auto", "bundle"]
EngineName = Literal[
    "auto",
    "torch-fp32",
    "torch-fp32-channels-last",
    "torch-bf16-channels-last",
    "cuda-fp16-autocast",
    "openvino-fp32",
    "openvino-bf16",
]
"""Engines of any machine; which of them this one has is known once torch is imported."""

_GONE = {
    "int8": "integers cost too much Dice; --engine openvino-fp32 is fast and keeps the labels",
    "large": "it gave other labels than the bundle's own windows; --engine openvino-fp32 is fast and keeps the labels",
}
"""Values that older versions took, and what to do instead."""

KINDS = {
    "nifti": "seg.nii.gz",
    "probabilities": "probabilities.nii.gz",
    "doubt": "doubt.nii.gz",
    "seg": "seg.dcm",
    "sr": "sr.dcm",
    "rtstruct": "rtstruct.dcm",
    "sc": "sc.dcm",
}
"""Kinds of output and the ends of their file names; a report refers to the segmentation, so that comes first."""

_MOST_MARGIN_MM = 1000.0
"""As in a bundle's metadata; no patient is larger, and no number of voxels overflows."""
_DEVICE = re.compile(r"auto|cpu|mps|cuda(:\d+)?")
_PLACES = (
    "local:N (N processes on this machine), slurm, slurm:FILE or the address of a Dask scheduler (tcp://HOST:PORT)"
)


@dataclass(frozen=True)
class Place:
    """Where the workers of a cluster are: processes on this machine, jobs, or whatever an address leads to.

    ``detail`` is the number of processes, the settings file (may be empty), or the address.
    """

    kind: Literal["local", "slurm", "scheduler"]
    detail: str


def parse_place(text: str) -> Place:
    """Read what ``--cluster`` says; none of the known forms is a ``UsageError``."""
    kind, _, detail = text.partition(":")
    if kind == "local" and re.fullmatch(r"[1-9]\d{0,3}", detail):
        return Place("local", detail)
    if kind == "slurm":
        return Place("slurm", detail)
    if re.fullmatch(r"(\w+://)?[^/\s]+:\d+", text) and kind != "local":
        return Place("scheduler", text)
    raise UsageError(f"--cluster {text}: expected {_PLACES}")


def _option(default: Any, words: str, *, reported: bool = True, option: bool = True) -> Any:
    """A field with its help, and whether ``run.json`` holds it, and whether it is an option of the command."""
    return field(default=default, metadata={"help": words, "reported": reported, "option": option})


@dataclass(frozen=True)
class RunOptions:
    """How a batch is run; every field is an option of ``medseg infer``, whose help says what it means.

    ``device``, ``precision``, ``engine``, ``mirror`` and ``ensemble`` are as for :class:`~medseg.inference.Predictor`.

    Raises ``UsageError`` if a value makes no sense.
    """

    write: tuple[str, ...] = _option(("nifti",), f"Comma-separated: {', '.join(KINDS)}.")
    select: str | None = _option(
        None, "JSON file with selection rules: which series of each study to use, per channel."
    )
    allow_resample: bool = _option(False, "Resample uneven spacing or a gantry tilt onto a regular grid.")
    roi: str | None = _option(
        None,
        "Look only here: x0,y0,z0,x1,y1,z1, two corners in mm (RAS: right, anterior, superior positive);"
        " voxels:i0,j0,k0,i1,j1,k1, both ends included; or a mask image.",
    )
    locate: str | None = _option(
        None,
        "Find a structure with another bundle first, and label a crop round each part of it: BUNDLE:STRUCTURE, or"
        " auto, as this bundle's metadata say.",
    )
    locate_margin: float | None = _option(None, "Margin of these crops in mm; else as the metadata say, or 5.")
    locate_sides: bool = _option(True, "Whether there is one part on the left and one on the right, named so.")
    section: str | None = _option(None, "Only these items of a datalist: training, validation or test.")
    fold: int | None = _option(None, "Only the items that this fold of a datalist holds out.")
    device: str = _option("auto", "auto (CUDA, else MPS, else CPU), cpu, cuda, cuda:N or mps.")
    precision: Precision = _option(  # noqa: RUF009  a field
        "auto", "auto (float32; on CUDA automatic mixed precision), fp32 or bf16."
    )
    engine: str = _option(
        "auto", "What runs the network, by name, such as openvino-fp32; auto: torch, as --precision says."
    )
    windows: Windows = _option("auto", "bundle (and auto): the bundle's own.")  # noqa: RUF009  a field
    workers: int = _option(1, "Cases read ahead and written behind at once.", reported=False)
    cluster: str | None = _option(
        None, "Where workers do the work: local:N processes, slurm[:FILE], or a Dask scheduler's address."
    )
    mirror: tuple[str, ...] = _option(
        (),
        "Also look at every window mirrored, and average: comma-separated axes of the patient, ap, is, lr"
        " (front-back, head-foot, left-right).",
    )
    ensemble: tuple[str, ...] = _option(
        (), "Another bundle for the same task, or other weights, to average with; may be repeated."
    )
    structures: tuple[str, ...] = _option(
        (), "Comma-separated: only these structures, for bundles that are asked by class (VISTA3D)."
    )
    trust: bool = _option(True, "Judge every case, if the bundle has a trust calibration.")
    fresh: bool = _option(False, "Start over instead of continuing.", reported=False)
    stall_s: float = _option(
        900.0,
        "After this time in one stage a case is named in the log; reading and writing are then given up.",
        reported=False,
        option=False,
    )

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
        self._check_locate()
        choices = {"precision": Precision, "windows": Windows, "engine": EngineName}
        for name, known in ((name, get_args(choice)) for name, choice in choices.items()):
            if (value := getattr(self, name)) in _GONE:
                raise UsageError(f"--{name} {value} is gone: {_GONE[value]}")
            if value not in known:
                raise UsageError(f"--{name} {value}: expected one of {', '.join(known)}")
        if not _DEVICE.fullmatch(self.device):
            raise UsageError(f"--device {self.device}: expected auto, cpu, cuda, cuda:N or mps")
        if self.section is not None:
            _check_section(self.section)
        if self.cluster is not None:
            parse_place(self.cluster)
        if self.workers < 1 or self.stall_s <= 0:
            raise UsageError(f"found {self.workers} workers and a limit of {self.stall_s} s, expected positive numbers")

    def _check_locate(self) -> None:
        if (margin := self.locate_margin) is not None and not (self.locate and 0 <= margin <= _MOST_MARGIN_MM):
            most = f"{_MOST_MARGIN_MM:.0f}"
            raise UsageError(
                f"--locate-margin {margin}: expected millimetres of at least 0, at most {most}, and --locate"
            )
        if self.locate is not None and "probabilities" in self.write:
            raise UsageError("--locate: crops give no probabilities of the whole image; leave them out of --write")

    @property
    def resolved(self) -> RunOptions:
        """With the device that ``auto`` stands for; of other machines this one knows nothing, so there it is the CPU.

        A device that this machine does not have is a ``UsageError``.
        """
        from medseg.devices import resolve_device

        if self.cluster is None or parse_place(self.cluster).kind == "local":
            return replace(self, device=resolve_device(self.device))
        return replace(self, device="cpu") if self.device == "auto" else self

    @property
    def engine_choice(self) -> EngineChoice:
        """What runs the network, by the rule of :meth:`medseg.inference.engines.EngineChoice.by_rule`."""
        from medseg.inference.engines import EngineChoice

        return EngineChoice.by_rule(self.resolved.device, self.precision, self.engine)

    def to_json(self) -> dict[str, Any]:
        """What ``run.json`` says under ``options``."""
        from medseg.inference.ensemble import member_digest

        values = {one.name: getattr(self, one.name) for one in fields(self) if one.metadata["reported"]}
        members = [{"name": Path(place).name, "sha256": member_digest(place)} for place in self.ensemble]
        return {**values, "write": list(self.write), "mirror": list(self.mirror), "ensemble": members}

    def bundle_of(self, bundle: Bundle) -> Bundle:
        """The bundle as its results are: itself, or behind another one that locates first.

        If there is no such bundle or structure, or no recipe for ``auto``, that is a ``UsageError``.
        """
        if self.locate is None:
            return bundle
        from medseg.inference.located_bundle import LocatedBundle, Locating

        return LocatedBundle(bundle, Locating.read(bundle, self.locate, self.locate_margin, sides=self.locate_sides))

    def network_key(self, bundle: Bundle) -> str:
        """Digest of what the opened networks depend on: the bundle's bytes, and how they are run."""
        how = {name: getattr(self, name) for name in ("precision", "engine", "mirror", "trust", "structures")}
        parts = {
            **how,
            "ensemble": self.to_json()["ensemble"],
            "device": self.resolved.device,
            "bundle": bundle.sha256,
            "permission": bundle.permission,
        }
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    def key(self, bundle: Bundle, region: Region | None) -> str:
        """Digest of all but the input that a result depends on; ``bundle`` is as :meth:`bundle_of` gives it."""
        asked = self.to_json()
        unasked = ("select", "section", "fold", "cluster", "precision", "windows")  # which cases, where, said below
        for name in (*unasked, "locate", "locate_margin", "locate_sides"):  # in the bundle's hash
            del asked[name]
        parts = {
            **asked,
            "medseg": medseg_version(),
            "bundle": bundle.sha256,
            "write": sorted(self.write),
            "roi": region.key if region else None,
            "engine": self.engine_choice.engine,
            "device": self.resolved.device,
            "mirror": sorted(self.mirror),
            "ensemble": [member["sha256"] for member in asked["ensemble"]],
        }
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


Options = RunOptions  # the name in the documented interface


def _check_section(section: str) -> None:
    from medseg.manifests.items import SECTIONS

    if section not in SECTIONS:
        raise UsageError(f"--section {section}: expected one of {', '.join(SECTIONS)}")


# --- whose the folder is --------------------------------------------------------------------------------------------
# A worker of a cluster may outlive the run that it works for: its driver was killed, and another run has begun, perhaps
# with another bundle. Before it writes, it looks here, so that nothing of an old run lands among a new one's files.

LEASE_NAME = ".medseg-run"
_SEEN_WITHIN_S = 60.0
"""How long a network file system may take to show a new file on another machine."""


@contextmanager
def leased(folder: Path) -> Iterator[str]:
    """Make ``folder`` this run's and give the name of its lease; use it under the folder's lock."""
    lease = secrets.token_hex(8)
    write_text(folder / LEASE_NAME, lease)
    try:
        yield lease
    finally:
        (folder / LEASE_NAME).unlink(missing_ok=True)


def holds_lease(folder: Path, lease: str) -> bool:
    """Whether the folder still belongs to the run with this lease."""
    try:
        return (folder / LEASE_NAME).read_text() == lease
    except OSError:
        return False


# --- what the cases of a run share ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class RunContext:
    """What every case of a run shares.

    Results go to ``folder``, of which the ``lease`` is the run's hold; the options have the device that is computed on;
    a ``region`` of None is everywhere; ``run_key`` is that of :meth:`RunOptions.key`; ``training_data`` is what the
    bundle says that it has learnt from.
    """

    bundle: Bundle
    folder: Path
    options: RunOptions
    region: Region | None
    run_key: str
    lease: str
    training_data: TrainingData | None = None

    def require_lease(self) -> None:
        """Be interrupted if the folder belongs to another run by now, or to none."""
        if not holds_lease(self.folder, self.lease):
            what = "the run that this case belongs to has ended, or another one has taken over"
            raise Interrupted(f"{what} {self.folder}")


@dataclass(frozen=True, repr=False)
class RunSpec:
    """What a worker needs to know of a run: paths are absolute, since it has another working directory."""

    bundle: str
    bundle_sha256: str
    permission: Permission
    folder: str
    options: RunOptions
    region: Region | None
    run_key: str
    lease: str
    medseg: str

    @classmethod
    def of(cls, context: RunContext) -> RunSpec:
        """The run behind a context."""
        from medseg.inference.located_bundle import LocatedBundle

        bundle, options = context.bundle, context.options
        ensemble = tuple(str(Path(place).absolute()) for place in options.ensemble)
        locate = bundle.locating.spelled_out if isinstance(bundle, LocatedBundle) else None
        return cls(
            str(bundle.path.absolute()),
            bundle.sha256,
            bundle.permission,
            str(context.folder.absolute()),
            replace(options, ensemble=ensemble, locate=locate),
            context.region,
            context.run_key,
            context.lease,
            medseg_version(),
        )

    def open(self) -> RunContext:
        """The context of the run in this process.

        One that does not see the output folder, or has another medseg, bundle or network, cannot work: ``MedsegError``.
        """
        from medseg.bundle import Bundle, trained_on

        self._see_folder()
        if medseg_version() != self.medseg:
            found = f"found medseg {medseg_version()} there, the run uses {self.medseg}"
            raise MedsegError(f"{found}; install the same one")
        bundle = self.options.bundle_of(Bundle.open(self.bundle, self.permission))
        if bundle.sha256 != self.bundle_sha256:
            raise MedsegError(f"its {self.bundle} is another bundle than the run's; give all workers the same files")
        if self.options.key(bundle, self.region) != self.run_key:
            raise MedsegError("the networks of --ensemble differ from the run's there; give all workers the same files")
        asked = self.options, self.region, self.run_key, self.lease
        return RunContext(bundle, Path(self.folder), *asked, trained_on(bundle))

    def _see_folder(self) -> None:
        deadline = time.monotonic() + _SEEN_WITHIN_S
        while not holds_lease(Path(self.folder), self.lease):
            if not Path(self.folder).is_dir() or time.monotonic() > deadline:
                what = f"it does not see {self.folder}"
                raise MedsegError(f"{what}; the output folder must be on a file system that all share")
            time.sleep(0.5)
