"""Volumes for the viewer: small display copies, inlined within a budget or written beside the report."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import nibabel as nib
import numpy as np
from isal import igzip
from numpy.typing import NDArray

from medseg.evaluation.report.volumes import CaseVolumes
from medseg.files import write_text

__all__ = ["ViewerStore", "display_copy", "library"]

_LARGEST_LABEL = 255


def library() -> str:
    """NiiVue's script, compressed and in base64; the page unpacks it when a viewer is first opened."""
    source = files("medseg.evaluation.report").joinpath("assets/niivue.umd.js").read_bytes()
    return base64.b64encode(igzip.compress(source, mtime=0)).decode()


def display_copy(array: NDArray[np.generic], affine: NDArray[np.float64], *, labels: bool) -> str:
    """NIfTI of 8 bits per voxel in base64, with a fresh header: nothing of the source's header travels along.

    Intensities are quantised between the 0.2nd and 99.8th percentile; they serve the eye, not measurement.
    Labels above 255 become 255.
    """
    if labels:
        image = nib.Nifti1Image(np.minimum(array, _LARGEST_LABEL).astype(np.uint8), affine)
    else:
        values = np.nan_to_num(np.asarray(array, np.float32))
        low, high = (float(v) for v in np.percentile(values, (0.2, 99.8)))
        step = max(high - low, 1e-6) / 255.0
        image = nib.Nifti1Image(np.rint((np.clip(values, low, high) - low) / step).astype(np.uint8), affine)
        image.header.set_slope_inter(step, low)
    image.header.set_xyzt_units("mm")
    return base64.b64encode(igzip.compress(image.to_bytes(), mtime=0)).decode()


@dataclass
class ViewerStore:
    """Takes in cases worst first and keeps the page within its budget.

    Parameters
    ----------
    folder
        Where files beside the report go; None if everything must fit into the page.
    budget_bytes
        Total size of inlined volumes.
    """

    folder: Path | None
    budget_bytes: int
    used_bytes: int = 0

    def add(self, key: str, volumes: CaseVolumes) -> tuple[str, str]:
        """Return what the page inlines for this case and the name of its side file; both empty if it did not fit."""
        pieces = _pieces(volumes)
        size = sum(len(piece) for piece in pieces.values())
        if self.used_bytes + size <= self.budget_bytes:
            self.used_bytes += size
            return json.dumps(pieces), ""
        if self.folder is None:
            return "", ""
        # A page opened from a disk may not fetch files, but it may run scripts beside it.
        write_text(self.folder / f"{key}.js", f"medsegVolumes({json.dumps(key)},{json.dumps(pieces)});\n")
        return "", f"{self.folder.name}/{key}.js"


def _pieces(volumes: CaseVolumes) -> dict[str, str]:
    arrays: Iterable[tuple[str, NDArray[np.generic] | None]] = (
        ("image", volumes.image),
        ("prediction", volumes.prediction),
        ("reference", volumes.reference),
    )
    return {
        name: display_copy(array, volumes.affine, labels=name != "image") for name, array in arrays if array is not None
    }
