"""Secondary capture: colour pictures of slices with their outlines, for viewers that know neither SEG nor RTSTRUCT."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pydicom
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from pydicom.dataset import Dataset
from pydicom.uid import MultiFrameTrueColorSecondaryCaptureImageStorage, RLELossless
from scipy.ndimage import binary_erosion

from medseg.errors import CaseFailed
from medseg.ingest import read_volume
from medseg.outputs.common import Job, save_checked, series_description, start_dataset
from medseg.outputs.source import Frame

__all__ = ["chosen_frames", "write_sc"]

_SMALLEST_PX, _LARGEST_PX = 384, 768
_FOOT_PX = 18


def write_sc(job: Job, path: Path) -> Path:
    """Write a multi-frame true colour secondary capture: the worst slice first, then every slice with a structure.

    Raises
    ------
    CaseFailed
        If the pictures read again differ from what was drawn.
    """
    job.covered()
    image, _, _ = (
        read_volume(job.record) if job.record is not None else (np.zeros(job.labels.shape, np.float32), None, None)
    )
    window = _window(image)
    frames = chosen_frames(job)
    pictures = np.stack(
        [_picture(job, image, frame, (n, len(frames), window)) for n, frame in enumerate(frames, start=1)]
    )
    dataset = start_dataset(job, "sc", MultiFrameTrueColorSecondaryCaptureImageStorage, job.source.first.Modality)
    dataset.SeriesDescription = series_description(job, "Overlay")
    _describe(dataset, job, frames)
    _add_pixels(dataset, pictures)

    def check(partial: Path) -> None:
        if not np.array_equal(pydicom.dcmread(partial).pixel_array.reshape(pictures.shape), pictures):
            raise CaseFailed(f"{path.name}: the pictures read again differ; nothing was written, please report this")

    return save_checked(dataset, path, check)


def chosen_frames(job: Job) -> list[Frame]:
    """Frames to draw: where doubt is greatest (or the largest area), then all that show a structure, in order."""
    scored: list[tuple[float, Frame]] = []
    for frame in job.frames:
        marked = job.view(job.labels, frame) > 0
        doubt = marked if job.options.doubt is None else job.view(job.options.doubt, frame)
        if marked.any():
            scored.append((float(np.sum(doubt)), frame))
    if not scored:
        return [job.frames[len(job.frames) // 2]]
    worst = max(scored, key=lambda item: item[0])[1]
    return [worst, *(frame for _, frame in scored)]


def _window(image: NDArray[np.generic]) -> tuple[float, float]:
    low, high = np.percentile(np.nan_to_num(np.asarray(image, np.float32)), (1.0, 99.5))
    return float(low), max(float(high), float(low) + 1e-6)


def _picture(
    job: Job, image: NDArray[np.generic], frame: Frame, shown: tuple[int, int, tuple[float, float]]
) -> NDArray[np.uint8]:
    number, count, (low, high) = shown
    grey, labels = job.view(image, frame), job.view(job.labels, frame)
    values = np.clip((np.asarray(grey, np.float32) - low) / (high - low), 0, 1) * 255
    row_mm, column_mm = np.linalg.norm(frame.along_rows), np.linalg.norm(frame.along_columns)
    size = _size(frame.shape, (float(row_mm), float(column_mm)))
    picture = np.asarray(
        Image.fromarray(values.astype(np.uint8)).resize(size, Image.Resampling.BILINEAR).convert("RGB")
    ).copy()
    large = np.asarray(Image.fromarray(np.asarray(labels, np.uint16)).resize(size, Image.Resampling.NEAREST))
    for code in job.codes.values():
        mask = large == code.label
        picture[mask & ~binary_erosion(mask, iterations=2)] = code.rgb
    return _with_foot(picture, f"{job.options.notice}   {job.bundle.name} {job.bundle.version}   {number}/{count}")


def _size(shape: tuple[int, int], spacing_mm: tuple[float, float]) -> tuple[int, int]:
    """Width and height with square pixels, the longer one between the limits."""
    height_mm, width_mm = shape[0] * spacing_mm[0], shape[1] * spacing_mm[1]
    longest = min(max(max(shape), _SMALLEST_PX), _LARGEST_PX)
    scale = longest / max(height_mm, width_mm)
    return max(round(width_mm * scale), 8), max(round(height_mm * scale), 8)


def _with_foot(picture: NDArray[np.uint8], text: str) -> NDArray[np.uint8]:
    foot = Image.new("RGB", (picture.shape[1], _FOOT_PX))
    ImageDraw.Draw(foot).text((4, 3), text, fill=(220, 220, 220))
    return np.concatenate([picture, np.asarray(foot)])


def _describe(dataset: Dataset, job: Job, frames: list[Frame]) -> None:
    first = job.source.first
    dataset.Laterality = first.get("Laterality", "")
    dataset.PatientOrientation = None
    dataset.ConversionType = "WSD"
    dataset.SecondaryCaptureDeviceManufacturer = "medseg"
    dataset.BurnedInAnnotation = "NO"
    dataset.ImageType = ["DERIVED", "SECONDARY"]
    dataset.ImageComments = f"{job.options.notice}; {job.bundle.name} {job.bundle.version} {job.bundle.sha256}"
    dataset.DerivationDescription = "contours of a segmentation drawn on its source images"
    dataset.SourceImageSequence = []
    for index in sorted({frame.dataset for frame in frames}):
        item = Dataset()
        item.ReferencedSOPClassUID = job.source.datasets[index].SOPClassUID
        item.ReferencedSOPInstanceUID = job.source.datasets[index].SOPInstanceUID
        dataset.SourceImageSequence.append(item)
    dataset.PageNumberVector = list(range(1, len(frames) + 1))
    dataset.FrameIncrementPointer = 0x00182001


def _add_pixels(dataset: Dataset, pictures: NDArray[np.uint8]) -> None:
    dataset.NumberOfFrames, dataset.Rows, dataset.Columns = pictures.shape[:3]
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation, dataset.PlanarConfiguration = 3, "RGB", 0
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 8, 8, 7, 0
    dataset.compress(RLELossless, pictures if len(pictures) > 1 else pictures[0], generate_instance_uid=False)
