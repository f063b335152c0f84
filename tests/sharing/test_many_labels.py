"""A bundle for fourteen structures is planned."""

from __future__ import annotations

from pathlib import Path

from medseg.bundle import Bundle
from medseg.files import write_json
from medseg.phantom import write_dataset
from medseg.phantom.catalogue import label_names
from medseg.sharing import create_bundle

NAMES = label_names(14)


def write_patients(folder: Path, count: int) -> Path:
    """Trunks from the lungs to the kidneys, all fourteen structures labelled."""
    shape, spacing_mm = (30, 24, 36), (11.0, 10.0, 11.0)
    patients = write_dataset(
        folder, count, form="nifti", shape=shape, spacing_mm=spacing_mm, structures=14, lesion=True, noise=0.5
    )
    items = [
        {
            "image": str(patient.image.relative_to(folder)),
            "label": str(patient.label.relative_to(folder)),
            "patient_id": patient.patient_id,
            "fold": 0 if number == 0 else 1,
        }
        for number, patient in enumerate(patients)
    ]
    labels = {"0": "background", **{str(value): name for value, name in NAMES.items()}}
    write_json(folder / "datalist.json", {"modality": {"0": "CT"}, "labels": labels, "training": items})
    return folder / "datalist.json"


def test_fourteen_labels_are_planned(tmp_path: Path) -> None:
    folder, plan = create_bundle("trunk_ct_segmentation", write_patients(tmp_path / "data", 2), tmp_path)
    bundle = Bundle.open(folder)
    assert bundle.labels == NAMES
    assert bundle.output_channels == plan.network["out_channels"] == 15
    assert bundle.config("train")["discriminator_def"]["label_channels"] == 15
    assert plan.normalisation[0]["_target_"] == "ScaleIntensityRanged"
    text = (folder / "docs" / "plan.md").read_text()
    assert all(f"| {name} |" in text for name in NAMES.values())
