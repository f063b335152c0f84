"""What an encoder makes of the cases of a folder: their codes, and a picture of which cases lie near which."""

from __future__ import annotations

import io
from os import PathLike
from pathlib import Path
from typing import Any, Literal

import numpy as np
from ignite.engine import Engine, Events
from monai.data import MetaTensor
from numpy.typing import NDArray
from PIL import Image

from medseg.errors import UsageError
from medseg.files import write_bytes, write_text
from medseg.ingest.record import case_id_of
from medseg.tables import table_text
from medseg.training.pictures import Picture, pictures, save_picture

_PAGE_PX, _THUMBNAIL_PX, _SMALLEST_PX = 1200, 96, 24


class Codes:
    """Handler of an evaluator whose network gives one code ``(F,)`` per case; at the end it leaves in ``folder``

    ``codes.npz`` (``ids``, ``codes`` of ``(N, F)``, ``places`` of ``(N, 2)``), ``codes.csv`` (the same, with the
    nearest other case of each), and ``neighbourhoods.png``, in which a plane of every case stands at its place.

    Parameters
    ----------
    method
        How codes become places: ``"pca"``, which keeps large distances, or ``"tsne"``, which keeps small ones.

    Raises
    ------
    UsageError
        While running, if there are fewer than three cases, or codes are not finite.
    """

    def __init__(self, folder: str | PathLike[str], method: Literal["pca", "tsne"] = "pca") -> None:
        if method not in ("pca", "tsne"):
            raise ValueError(f"found the method {method!r}, expected pca or tsne")
        self.folder, self.method = Path(folder), method
        self._ids: list[str] = []
        self._codes: list[NDArray[np.float32]] = []
        self._thumbnails: list[Picture] = []

    def attach(self, engine: Engine) -> None:
        """Register with the evaluator."""
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._gather)
        engine.add_event_handler(Events.COMPLETED, self._write)

    def _gather(self, engine: Engine) -> None:
        for item in engine.state.output:
            image: MetaTensor = item["image"]
            self._ids.append(case_id_of(str(image.meta["filename_or_obj"])))
            self._codes.append(np.asarray(item["pred"].float().cpu().numpy(), dtype=np.float32).ravel())
            affine = np.asarray(image.affine, dtype=np.float64)
            self._thumbnails.append(pictures(image.as_tensor()[:1], affine)[0])

    def _write(self) -> None:
        ids, codes = np.array(self._ids), np.stack(self._codes) if self._codes else np.empty((0, 0))
        if len(ids) < 3 or not np.isfinite(codes).all():
            raise UsageError(
                f"found {len(ids)} cases with codes, expected three or more, all finite; look at the folder"
            )
        scaled = (codes - codes.mean(0)) / np.maximum(codes.std(0), 1e-6)
        places = projected(scaled, self.method)
        near = nearest_others(scaled)
        packed = io.BytesIO()
        np.savez_compressed(packed, ids=ids, codes=codes, places=places)
        write_bytes(self.folder / "codes.npz", packed.getvalue())
        head = ["case_id", "nearest_case_id", "x", "y", *(f"code_{n}" for n in range(codes.shape[1]))]
        rows = [
            [name, ids[other], *map(float, place), *map(float, code)]
            for name, other, place, code in zip(ids, near, places, codes, strict=True)
        ]
        write_text(self.folder / "codes.csv", table_text([head, *rows]))
        save_picture(neighbourhoods(places, self._thumbnails), self.folder / "neighbourhoods.png")


def projected(codes: NDArray[Any], method: Literal["pca", "tsne"]) -> NDArray[np.float64]:
    """Places ``(N, 2)`` for codes ``(N, F)``; the same on every call."""
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    if method == "pca":
        return np.asarray(PCA(2, svd_solver="full").fit_transform(codes), dtype=np.float64)
    perplexity = min(30.0, (len(codes) - 1) / 3)
    return np.asarray(TSNE(2, perplexity=perplexity, random_state=0).fit_transform(codes), dtype=np.float64)


def nearest_others(codes: NDArray[Any]) -> NDArray[np.intp]:
    """For each code the index of the nearest other one."""
    from sklearn.neighbors import NearestNeighbors

    # without a query a point is not its own neighbour
    return np.asarray(NearestNeighbors(n_neighbors=1).fit(codes).kneighbors(return_distance=False)[:, 0], dtype=np.intp)


def neighbourhoods(places: NDArray[np.float64], thumbnails: list[Picture]) -> Picture:
    """A page on which each thumbnail stands at its place; the more there are, the smaller they are."""
    side = int(np.clip(_PAGE_PX / np.sqrt(len(places)) * 0.8, _SMALLEST_PX, _THUMBNAIL_PX))
    low, extent = places.min(0), np.maximum(np.ptp(places, axis=0), 1e-9)
    page = Image.new("RGB", (_PAGE_PX, _PAGE_PX), "black")
    for (x, y), pixels in zip((places - low) / extent * (_PAGE_PX - side), thumbnails, strict=True):
        picture = Image.fromarray(pixels)
        picture.thumbnail((side, side))
        page.paste(picture, (round(x), round(_PAGE_PX - side - y)))
    return np.asarray(page)
