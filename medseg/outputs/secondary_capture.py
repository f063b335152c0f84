"""Secondary capture: colour pictures of slices with their outlines, for viewers that know neither SEG nor RTSTRUCT."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.uid import MultiFrameTrueColorSecondaryCaptureImageStorage, RLELossless

from medseg.errors import CaseFailed
from medseg.ingest import read_volume
from medseg.labels.codes import dicom_text
from medseg.outputs.common import Job, reference_to, save_checked, series_description, start_dataset
from medseg.outputs.source import Frame
from medseg.pictures import Entry, Layer, Window, draw, render, sheet, view_of_frame, window_of

_SMALLEST_PX, _LARGEST_PX = 384, 768
_TO_RAS = np.array([-1.0, -1.0, 1.0])


def write_sc(job: Job, path: Path) -> Path:
    """Write a multi-frame true colour secondary capture: the worst slice first, then every slice with a structure.

    Raises ``CaseFailed`` if the pictures read again differ from what was drawn.
    """
    job.covered()
    image = np.zeros(job.labels.shape, np.float32) if job.record is None else read_volume(job.record)[0]
    window = window_of(image)
    frames = chosen_frames(job)
    pictures = _stacked(
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


def _stacked(pictures: list[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """Pictures as frames of one size: a localizer's stack beside another may be turned the other way."""
    height, width = (max(picture.shape[axis] for picture in pictures) for axis in (0, 1))
    frames = np.zeros((len(pictures), height, width, 3), np.uint8)
    for frame, picture in zip(frames, pictures, strict=True):
        frame[: picture.shape[0], : picture.shape[1]] = picture
    return frames


def _picture(job: Job, image: NDArray[np.generic], frame: Frame, shown: tuple[int, int, Window]) -> NDArray[np.uint8]:
    """One frame of the source as the report shows a slice, its case and plane above, what the colours mean below."""
    number, count, window = shown
    view = view_of_frame(*(frame.steps * _TO_RAS))
    panel = draw(
        view,
        job.view(image, frame),
        [Layer(job.view(job.labels, frame))],
        number=number,
        longest_px=min(max(*frame.shape, _SMALLEST_PX), _LARGEST_PX),
        window=window,
    )
    colours = {code.label: code.rgb for code in job.codes.values()}
    legend = [Entry(code.rgb, code.name) for code in job.codes.values()]
    notice = dicom_text(f"{job.options.notice}   {job.bundle.name} {job.bundle.version}", 200) + f"   {number}/{count}"
    # the case's id, never a name from its headers
    title = view.plane if job.record is None else f"{job.record.case_id}   {view.plane}"
    return sheet([(title, [render(panel, colours, fine=1)]), (notice, [])], legend)


def _describe(dataset: Dataset, job: Job, frames: list[Frame]) -> None:
    first = job.source.first
    dataset.Laterality = first.get("Laterality", "")
    dataset.PatientOrientation = None
    dataset.ConversionType = "WSD"
    dataset.SecondaryCaptureDeviceManufacturer = "medseg"
    dataset.BurnedInAnnotation = "NO"
    dataset.ImageType = ["DERIVED", "SECONDARY"]
    dataset.ImageComments = dicom_text(
        f"{job.options.notice}; {job.bundle.name} {job.bundle.version} {job.bundle.sha256}", 1024
    )
    dataset.DerivationDescription = "contours of a segmentation drawn on its source images"
    shown = sorted({frame.dataset for frame in frames})
    dataset.SourceImageSequence = [reference_to(job.source.datasets[index]) for index in shown]
    dataset.PageNumberVector = list(range(1, len(frames) + 1))
    dataset.FrameIncrementPointer = 0x00182001


def _add_pixels(dataset: Dataset, pictures: NDArray[np.uint8]) -> None:
    dataset.NumberOfFrames, dataset.Rows, dataset.Columns = pictures.shape[:3]
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation, dataset.PlanarConfiguration = 3, "RGB", 0
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 8, 8, 7, 0
    dataset.compress(RLELossless, pictures if len(pictures) > 1 else pictures[0], generate_instance_uid=False)
