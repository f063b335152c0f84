"""The kinds of DICOM objects that a label map can become, each written by a module of its own."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medseg.errors import UsageError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from medseg.geometry import Geometry
    from medseg.ingest import SeriesRecord
    from medseg.labels.codes import BundleLike
    from medseg.outputs.common import WriteOptions

KINDS = ("seg", "sr", "rtstruct", "sc")
_MODULES = {"seg": "seg", "sr": "sr", "rtstruct": "rtstruct", "sc": "secondary_capture"}


def write(
    kind: str,
    label_map: NDArray[np.integer[Any]],
    geometry: Geometry,
    record: SeriesRecord,
    bundle: BundleLike,
    path: str | Path,
    *,
    options: WriteOptions | None = None,
) -> Path:
    """Write one DICOM object.

    Parameters
    ----------
    kind
        ``"seg"``, ``"sr"``, ``"rtstruct"`` or ``"sc"``. The report refers to the Segmentation of the same result
        by its identifier, so write both.
    label_map
        Integers, axes (i, j, k) as in ``geometry``; 0 is background.
    geometry
        The source's grid; any order and direction of axes.
    record
        The DICOM source, from :func:`medseg.ingest.scan`.
    bundle
        What made the result; its metadata states a coded term for each label.
    path
        The file to write; it appears whole, checked, or not at all.
    options
        Wording, run, type of segmentation, trust.

    Returns
    -------
    Path
        The file.

    Raises
    ------
    UsageError
        If there is no such kind.
    Refusal
        ``no-dicom-source``, ``geometry-mismatch`` or ``unexpected-labels``.
    BundleError
        If the bundle states no coded term for a label.
    CaseFailed
        If the file cannot be written or does not hold what it should.
    """
    if kind not in _MODULES:
        raise UsageError(f"no DICOM object is called {kind!r}; give one of {', '.join(KINDS)}")
    from medseg.outputs.common import Job, WriteOptions
    from medseg.outputs.source import read_source

    job = Job(label_map, geometry, read_source(record), bundle, options or WriteOptions(), record)
    room = import_module(f"{__package__}.{_MODULES[kind]}")
    return Path(getattr(room, f"write_{kind}")(job, Path(path)))
