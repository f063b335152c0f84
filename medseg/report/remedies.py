"""What each reason code means, in a sentence for the report, and what helps."""

from __future__ import annotations

from typing import cast

from medseg.errors import ReasonCode

_EXPORT_AGAIN = "Export the series again from its source."

REMEDIES: dict[ReasonCode, tuple[str, str]] = {
    "missing-slices": ("A slice is missing from the stack.", "Fetch the complete series again."),
    "non-uniform-spacing": (
        "The slices are not evenly spaced.",
        "Resample the series on purpose, or choose a reconstruction with even spacing.",
    ),
    "mixed-orientation": ("The slices do not share one orientation.", "Select one stack of the series."),
    "mixed-grid": ("The slices differ in size or pixel spacing.", "Select one stack of the series."),
    "mixed-contrast": ("The slices show different contrasts.", "Sort them into one series per contrast."),
    "mixed-rescale": ("Some slices have a rescale, others none.", _EXPORT_AGAIN),
    "duplicate-slices": ("Two images lie at one position.", "Select one time point, echo or b-value."),
    "no-geometry": ("The file does not say where it lies in the patient.", "Export it with position and orientation."),
    "no-pixel-data": ("The file holds no image.", "Leave it out, or fetch the images."),
    "undecodable": (
        "The pixels cannot be decoded.",
        "Run `medseg doctor`; convert the file to a common transfer syntax.",
    ),
    "not-an-image": ("The file is not a medical image.", "Leave it out of the input."),
    "truncated": ("The file ends too early.", _EXPORT_AGAIN),
    "unreadable": ("The file cannot be read.", "Check the file and its permissions."),
    "non-finite": ("The image holds NaN or infinite values.", "Repair the image where it was made."),
    "not-3d": ("The file does not hold one 3D volume.", "Give one 3D volume per case."),
    "single-slice": ("The series has a single slice.", "Choose a volume series; a localizer is none."),
    "colour": ("The image is in colour.", "Choose a grey-scale series."),
    "singular-affine": ("The stated geometry spans no volume.", "Repair the header from the original images."),
    "too-large": ("The volume is larger than the limit.", "Crop it, or raise the limit."),
    "several-volumes": (
        "Several volumes were found where one was asked for.",
        "Select one with --select, or name its files.",
    ),
    "mixed-patients": ("One series mixes several patients.", "Separate them at the source."),
    "mosaic": ("The image is a mosaic of slices.", "Convert it to a volume first."),
    "outside-training-range": (
        "Field of view, spacing or size is far from the training data.",
        "Crop or choose another series, or another bundle.",
    ),
    "geometry-mismatch": ("Two volumes of one case lie on different grids.", "Bring them to one grid."),
    "unexpected-labels": ("The mask holds labels that the bundle does not know.", "Map the labels first."),
    "wrong-modality": (
        "The modality is not the one the bundle was trained on.",
        "Choose another series, or another bundle.",
    ),
    "channel-mismatch": ("The number of channels is not what the bundle expects.", "Give one series per channel."),
    "no-dicom-source": (
        "DICOM output was asked for, but the input is not DICOM.",
        "Give the DICOM series, or write NIfTI only.",
    ),
    "own-output": ("The file is a result that medseg wrote.", "Give the images."),
    "unmapped-structure": (
        "The label holds a name that is no declared structure.",
        "Say what it means, or leave it out, in `roi_mapping` of the datalist.",
    ),
    "overlapping-labels": (
        "Structures overlap, and a voxel has one value.",
        "Declare regions, or say which lies above in `label_reading` of the datalist.",
    ),
    "other-frame-of-reference": (
        "The label was drawn in another frame of reference than the image's.",
        "Pair it with the image it was drawn on.",
    ),
    "malformed-object": (
        "The DICOM object contradicts the standard.",
        "Export it again, or write a label map instead.",
    ),
    "off-slice-contours": ("Contours lie between the image's slices.", "Draw them on the slices of this image."),
    "missing-contours": (
        "Slices between contours have none.",
        "Complete them, or say what they are in `label_reading` of the datalist.",
    ),
    "outside-image": ("The label lies outside the image.", "Pair it with the image it was drawn on."),
    "no-image-grid": ("Contours have no grid of their own.", "Give them with their image."),
    "not-judged": ("The result could not be judged.", "Look at it yourself."),
    "not-located": (
        "The structure to be labelled was not found, or not for certain.",
        "Look whether the image shows it, and what was located; crop with --roi.",
    ),
}
"""Meaning and remedy of every reason code."""


def remedy(code: str) -> tuple[str, str]:
    """Meaning and remedy of a reason code; for an unknown one the message of the case has to do."""
    return cast("dict[str, tuple[str, str]]", REMEDIES).get(code, ("", "See the message of the case."))
