"""Every error medseg raises, as one tree.

::

    MedsegError                     exit code 2 unless a branch says otherwise
    ├── UsageError                  wrong arguments, unusable input, a missing file
    │   ├── MissingDependency       an optional extra is not installed
    │   ├── UndecidedNames          names of structures whose meaning a person has to say; carries ``proposals``
    │   └── OutputUnusable          the place for the results cannot be written
    ├── Refusal                     one volume or case cannot be used; carries a stable ``code``
    ├── CaseFailed                  one case could not be finished (disk full, out of memory, a crash)
    ├── BundleError                 a bundle is incomplete or contradicts itself
    │   ├── UntrustedBundle         a bundle would execute code that the audit does not allow
    │   ├── OtherWeights            a part of a bundle was made for other weights than it has
    │   └── OtherCleaning           a bundle's trust was fitted on labels that were cleaned in another way
    ├── TrainingFailed              a training ended before its last iteration; carries a stable ``reason``
    │   └── TrainingDiverged        the losses stopped being finite and stayed so
    ├── OutputLocked                another run is writing to the same folder
    └── Interrupted                 stopped by a signal; start again to go on (exit code 75)

Libraries raise; only :mod:`medseg.cli` prints and exits. A message says what was found, what was expected
and what to do, in this order.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from typing import Any, Literal, get_args

__all__ = [
    "REASON_CODES",
    "BundleError",
    "CaseFailed",
    "ExitCode",
    "Interrupted",
    "MedsegError",
    "MissingDependency",
    "OtherCleaning",
    "OtherWeights",
    "OutputLocked",
    "OutputUnusable",
    "ReasonCode",
    "Refusal",
    "TrainingDiverged",
    "TrainingFailed",
    "UndecidedNames",
    "UntrustedBundle",
    "UsageError",
]


class ExitCode(IntEnum):
    """Exit codes of the ``medseg`` command."""

    DONE = 0
    INCOMPLETE = 1
    USAGE = 2
    INTERRUPTED = 75


ReasonCode = Literal[
    "missing-slices",
    "non-uniform-spacing",
    "mixed-orientation",
    "mixed-grid",
    "mixed-contrast",
    "mixed-rescale",
    "duplicate-slices",
    "no-geometry",
    "no-pixel-data",
    "undecodable",
    "not-an-image",
    "truncated",
    "unreadable",
    "non-finite",
    "not-3d",
    "single-slice",
    "colour",
    "singular-affine",
    "too-large",
    "several-volumes",
    "mixed-patients",
    "mosaic",
    "outside-training-range",
    "geometry-mismatch",
    "unexpected-labels",
    "unmapped-structure",
    "overlapping-labels",
    "other-frame-of-reference",
    "malformed-object",
    "off-slice-contours",
    "missing-contours",
    "outside-image",
    "no-image-grid",
    "wrong-modality",
    "channel-mismatch",
    "no-dicom-source",
    "own-output",
    "not-judged",
    "not-located",
]
"""Stable identifiers of why a volume or a case was refused."""

REASON_CODES: tuple[str, ...] = get_args(ReasonCode)


class MedsegError(Exception):
    """Base class of every error that medseg raises on purpose."""

    exit_code: ExitCode = ExitCode.USAGE


class UsageError(MedsegError):
    """The call cannot be carried out as written."""


class MissingDependency(UsageError):
    """An optional dependency is needed that is not installed."""

    def __init__(self, package: str, extra: str | None, purpose: str) -> None:
        wanted = f"'medseg[{extra}]'" if extra else package
        super().__init__(f"{package} is not installed; {purpose} needs it. Install it with: pip install {wanted}")


class UndecidedNames(UsageError):
    """Names of segments, ROIs or mask files whose structure a person has to say.

    ``message``: what was found. ``proposals``: lines of the table that is to be accepted:
    :class:`medseg.manifests.roi_names.Proposal`.
    """

    def __init__(self, message: str, proposals: Sequence[Any]) -> None:
        super().__init__(message)
        self.proposals = proposals


class OutputUnusable(UsageError):
    """Results cannot be written where they were asked for: no room, no permission, a file where a folder should be."""


class Refusal(MedsegError):
    """A volume or case that must not be used as it is.

    Parameters
    ----------
    code
        Stable identifier, one of :data:`REASON_CODES`.
    message
        What was found, what was expected, what to do; names the file and the tag, never the patient.

    Notes
    -----
    A batch notes it with its case and goes on (exit code 1); where it ends a command, the input was unusable (2).
    """

    def __init__(self, code: ReasonCode, message: str) -> None:
        super().__init__(code, message)
        self.code: ReasonCode = code
        self.message = message

    def __str__(self) -> str:
        return f"[{self.code}] {self.message}"


class CaseFailed(MedsegError):
    """A case that was accepted but could not be finished."""

    exit_code = ExitCode.INCOMPLETE


class BundleError(MedsegError):
    """A bundle lacks a part or contradicts itself."""


class UntrustedBundle(BundleError):
    """Running the bundle would execute code that the audit does not allow."""


class OtherWeights(BundleError):
    """A part of a bundle was made for other weights than those that it has."""


class OtherCleaning(BundleError):
    """A bundle's trust was fitted on results whose labels were cleaned in another way than they are now."""


class TrainingFailed(MedsegError):
    """A training that ended before its last iteration, or without leaving what it should.

    Parameters
    ----------
    message
        What was found, what was expected, what to do.
    reason
        Stable identifier, kept in ``run.json``: ``out-of-memory``, ``disk-full``, ``output-unusable``, ``worker-died``,
        ``data-ended``, ``stopped-early``, ``nothing-saved``, ``other-process``, ``unexpected``.
    error
        Name of the exception's class behind it.
    """

    def __init__(self, message: str, reason: str = "unexpected", error: str | None = None) -> None:
        super().__init__(message)
        self.reason = reason
        self.error = type(self).__name__ if error is None else error


class TrainingDiverged(TrainingFailed):
    """Losses or weights stopped being finite and did not recover."""

    def __init__(self, message: str) -> None:
        super().__init__(message, "diverged")


class OutputLocked(MedsegError):
    """Another process is writing to the same output folder."""


class Interrupted(MedsegError):
    """A signal stopped the work; what is finished is kept and the same command continues it."""

    exit_code = ExitCode.INTERRUPTED
