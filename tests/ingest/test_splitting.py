"""Two contrasts in one stack, also where no two slices share a place; and what differs in sound stacks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence as DicomSequence
from pydicom.uid import MRImageStorage, PositronEmissionTomographyImageStorage

from tests.ingest.synthetic import Series, enhanced, make_series, save
from tests.ingest.verdicts import USABLE, pixels_of, values_of, verdict

SECOND_HALF = (4, 5, 6, 7)
INTERLEAVED = (1, 3, 5, 7)
ONE = (7,)


def _private(tag: int, vr: str, one: Any, other: Any) -> Callable[[Dataset, int], None]:
    return lambda item, second: item.add_new(tag, vr, (one, other)[second])


def _set(name: str, one: Any, other: Any) -> Callable[[Dataset, int], None]:
    return lambda item, second: setattr(item, name, (one, other)[second])


def _only_second(name: str, value: Any) -> Callable[[Dataset, int], None]:
    return lambda item, second: setattr(item, name, value) if second else None


def _window(item: Dataset, second: int) -> None:
    energy = Dataset()
    limits = Dataset()
    limits.EnergyWindowLowerLimit = str((425, 350)[second])
    energy.EnergyWindowRangeSequence = DicomSequence([limits])
    item.EnergyWindowInformationSequence = DicomSequence([energy])


CONTRASTS: dict[str, Callable[[Dataset, int], None]] = {
    "echo time": _set("EchoTime", 10, 90),
    "close echo times": _set("EchoTime", 4.6, 6.9),
    "echo number": _set("EchoNumbers", 1, 2),
    "inversion time": _set("InversionTime", 300, 2500),
    "flip angle": _set("FlipAngle", 4, 26),
    "repetition time": _set("RepetitionTime", 500, 4000),
    "magnitude and phase": _set("ImageType", ["ORIGINAL", "PRIMARY", "M", "ND"], ["ORIGINAL", "PRIMARY", "P", "ND"]),
    "real and imaginary": _set("ImageType", ["ORIGINAL", "PRIMARY", "R"], ["ORIGINAL", "PRIMARY", "I"]),
    "water and fat": _set("ImageType", ["DERIVED", "PRIMARY", "WATER"], ["DERIVED", "PRIMARY", "FAT"]),
    "complex component": _set("ComplexImageComponent", "MAGNITUDE", "PHASE"),
    "GE's image type": _private(0x0043102F, "SS", 0, 1),
    "Philips's image type": _private(0x20051011, "CS", "M", "P"),
    "b-value": _set("DiffusionBValue", 0.0, 1000.0),
    "b-value in some only": _only_second("DiffusionBValue", 800.0),
    "Siemens's b-value": _private(0x0019100C, "IS", "0", "1000"),
    "GE's b-value": _private(0x00431039, "IS", "0\\8\\0\\0", "1000001000\\8\\0\\0"),
    "Philips's b-value": _private(0x20011003, "FL", 0.0, 1000.0),
    "United Imaging's b-value": _private(0x00651009, "FD", 0.0, 1000.0),
    "gradient direction": _set("DiffusionGradientOrientation", [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]),
    "kernel": _set("ConvolutionKernel", "B30f", "B70f"),
    "kernel of two values": _set("ConvolutionKernel", ["Br40f", "3"], ["Br40f", "4"]),
    "tube voltage": _set("KVP", 80, 140),
    "temporal position": _set("TemporalPositionIdentifier", 1, 2),
    "trigger time": _set("TriggerTime", 100, 500),
    "cardiac phase": _set("NominalPercentageOfCardiacPhase", 40.0, 70.0),
    "contrast agent": _set("ContrastBolusAgent", "Gadovist", "Omniscan"),
    "before and after contrast": _only_second("ContrastBolusAgent", "Iomeron"),
    "sequence": _set("SequenceName", "*tse2d1_9", "*fl2d1"),
    "corrections": _set("CorrectedImage", ["DECY", "ATTN"], ["DECY"]),
    "units": _set("Units", "BQML", "GML"),
    "energy window": _window,
    "photometric interpretation": _set("PhotometricInterpretation", "MONOCHROME2", "MONOCHROME1"),
    "modality": _set("Modality", "CT", "PT"),
}


@pytest.mark.parametrize("mark", CONTRASTS.values(), ids=CONTRASTS.keys())
def test_two_contrasts_that_alternate_are_refused(tmp_path: Path, mark: Callable[[Dataset, int], None]) -> None:
    _refused_as_mixed(tmp_path, mark, INTERLEAVED)


@pytest.mark.parametrize("name", ["magnitude and phase", "kernel", "echo time", "temporal position", "trigger time"])
@pytest.mark.parametrize("second", [SECOND_HALF, ONE], ids=["halves", "one slice"])
def test_two_contrasts_in_two_halves_are_refused(tmp_path: Path, name: str, second: tuple[int, ...]) -> None:
    _refused_as_mixed(tmp_path, CONTRASTS[name], second)


def _refused_as_mixed(folder: Path, mark: Callable[[Dataset, int], None], second: tuple[int, ...]) -> None:
    series = make_series(change=lambda item, number: mark(item, int(number in second)))
    code, message = verdict(series.write(folder))
    assert code == "mixed-contrast"
    assert f"{len(second)} slices" in message


def test_phases_that_lie_half_a_slice_apart_are_refused(tmp_path: Path) -> None:
    one = make_series(change=_phase(0))
    other = make_series([1.25 + 2.5 * k for k in range(8)], first_number=8, change=_phase(1))
    assert verdict(Series(one.slices + other.slices).write(tmp_path))[0] == "mixed-contrast"


def _phase(phase: int) -> Callable[[Dataset, int], None]:
    def mark(item: Dataset, _: int) -> None:
        item.TriggerTime, item.SOPClassUID, item.Modality = 100 + 400 * phase, MRImageStorage, "MR"

    return mark


def _frame_facts(item: Dataset, sequence: str, name: str, values: tuple[Any, Any]) -> None:
    for number, group in enumerate(item.PerFrameFunctionalGroupsSequence):
        holder = Dataset()
        setattr(holder, name, values[number % 2])
        setattr(group, sequence, DicomSequence([holder]))


@pytest.mark.parametrize(
    ("sequence", "name", "values"),
    [
        ("MREchoSequence", "EffectiveEchoTime", (10.0, 90.0)),
        ("MRDiffusionSequence", "DiffusionBValue", (0.0, 1000.0)),
        ("MRImageFrameTypeSequence", "ComplexImageComponent", ("MAGNITUDE", "PHASE")),
        ("MRModifierSequence", "InversionTimes", (300.0, 2500.0)),
        ("CTReconstructionSequence", "ConvolutionKernel", ("B30f", "B70f")),
        ("CTXRayDetailsSequence", "KVP", ("80", "140")),
        ("CardiacSynchronizationSequence", "NominalPercentageOfCardiacPhase", (40.0, 70.0)),
    ],
)
def test_two_contrasts_among_the_frames_of_one_file_are_refused(
    tmp_path: Path, sequence: str, name: str, values: tuple[Any, Any]
) -> None:
    item = enhanced(make_series())
    _frame_facts(item, sequence, name, values)
    save(item, tmp_path / "enhanced.dcm")
    assert verdict(tmp_path)[0] == "mixed-contrast"


def _sound(name: str, value: Callable[[int], Any]) -> Callable[[Dataset, int], None]:
    return lambda item, number: setattr(item, name, value(number))


SOUND: dict[str, Callable[[Dataset, int], None]] = {
    "rounded echo times": _sound("EchoTime", lambda n: (2.46, 2.460001)[n % 2]),
    "echo times of 0.01 ms noise": _sound("EchoTime", lambda n: 30 + 0.01 * (n % 3)),
    "content times": _sound("ContentTime", lambda n: f"1010{n:02d}"),
    "acquisition times": _sound("AcquisitionTime", lambda n: f"1010{n // 4:02d}"),
    "acquisition numbers": _sound("AcquisitionNumber", lambda n: n + 1),
    "two acquisitions": _sound("AcquisitionNumber", lambda n: n % 2 + 1),
    "trigger times of all slices": _sound("TriggerTime", lambda n: 37.5 * n),
    "gated repetition times": _sound("RepetitionTime", lambda n: 820 + 17.25 * (n * 3 % 8)),
    "tube current": _sound("XRayTubeCurrent", lambda n: 100 + 50 * (n % 2)),
    "windows": _sound("WindowCenter", lambda n: 40 + n % 2),
    "frame times of two beds": _sound("FrameReferenceTime", lambda n: 90_000 * (n // 4)),
    "beds of two durations": _sound("ActualFrameDuration", lambda n: 60_000 + 30_000 * (n // 4)),
    "slice thickness": _sound("SliceThickness", lambda n: 2.5 + 0.5 * (n % 2)),
    "descriptions": _sound("SeriesDescription", lambda n: f"axial {n % 2}"),
    "image comments": _sound("ImageComments", lambda n: f"slice {n}"),
    "b-values of 0 in some": _sound("DiffusionBValue", lambda n: 0.0),
}


@pytest.mark.parametrize("mark", SOUND.values(), ids=SOUND.keys())
def test_what_differs_between_the_slices_of_sound_stacks_is_read(
    tmp_path: Path, mark: Callable[[Dataset, int], None]
) -> None:
    series = make_series(change=mark)
    assert verdict(series.write(tmp_path))[0] == USABLE
    np.testing.assert_array_equal(values_of(tmp_path), pixels_of(series))


def test_a_pet_stack_has_a_rescale_of_each_slice(tmp_path: Path) -> None:
    def mark(item: Dataset, number: int) -> None:
        item.SOPClassUID, item.Modality, item.Units = PositronEmissionTomographyImageStorage, "PT", "BQML"
        item.RescaleSlope, item.RescaleIntercept = str(0.5 + number), "0"

    series = make_series(change=mark)
    assert verdict(series.write(tmp_path))[0] == USABLE
    slopes = (0.5 + np.arange(8))[:, None, None]
    np.testing.assert_allclose(values_of(tmp_path), pixels_of(series) * slopes)


def test_slices_of_two_frames_of_reference_are_several_volumes(tmp_path: Path) -> None:
    series = make_series(change=lambda item, number: setattr(item, "FrameOfReferenceUID", f"1.2.3.4.{8 + number // 4}"))
    code, message = verdict(series.write(tmp_path))
    assert code == "several-volumes"
    assert "2 frames of reference" in message


def test_slices_without_a_frame_of_reference_are_noted(tmp_path: Path) -> None:
    series = make_series()
    del series.slices[7].FrameOfReferenceUID
    found, notes = verdict(series.write(tmp_path))
    assert found == USABLE
    assert "1 slices name no frame of reference" in notes


def test_a_split_into_parts_of_one_contrast_is_preferred(tmp_path: Path) -> None:
    """Two echoes at each place, the acquisition numbers crosswise: only the echoes give sound volumes."""

    def mark(echo: int) -> Callable[[Dataset, int], None]:
        def change(item: Dataset, number: int) -> None:
            item.AcquisitionNumber, item.EchoTime = (number + echo) % 2 + 1, (10, 90)[echo]

        return change

    one, other = make_series(change=mark(0)), make_series(change=mark(1), first_number=8)
    assert verdict(Series(one.slices + other.slices).write(tmp_path))[0] == "several-volumes"


def test_two_frames_of_reference_at_one_place_are_several_volumes(tmp_path: Path) -> None:
    one, other = make_series(), make_series(first_number=8)
    for item in other.slices:
        item.FrameOfReferenceUID = "1.2.3.4.9"
    assert verdict(Series(one.slices + other.slices).write(tmp_path))[0] == "several-volumes"
