"""A bundle is planned from sound labels alone, and says of others what training and audit say of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medseg.errors import Refusal, UsageError
from medseg.ingest import read_volume, save_nifti
from medseg.manifests import Manifest
from medseg.planning.fingerprint import fingerprint_of_data
from tests.planning.test_create import write_dataset


def changed(folder: Path, change: Any, **content: Any) -> Manifest:
    datalist = write_dataset(folder, cases=3)
    for path in folder.glob("label*.nii.gz"):
        array, geometry, _ = read_volume(path)
        save_nifti(change(array), geometry.affine, path)
    datalist.write_text(json.dumps({**json.loads(datalist.read_text()), **content}))
    return Manifest.read(datalist)


@pytest.mark.parametrize(
    ("change", "content", "words"),
    [
        (lambda label: label * np.float32(0.5), {}, "the labels are not whole numbers"),
        (lambda label: label * 7, {}, "7 in .* voxels, declared are 0 .background. and 1 .ball."),
        (lambda label: label * 7, {"labels": {}}, "--map 7=1"),
        (lambda label: label + 1, {"labels": {}}, "no voxel of any label map read is 0.*--map 1=0,2=1"),
        (lambda label: label * 0, {}, "nothing but background"),
        (lambda label: label, {"labels": {"ball": [1, 2], "core": [2, 3]}}, "no `regions_class_order`"),
        (lambda label: label * 0 + 2, {"labels": {"ball": 1, "ignore": 2}}, "nothing but background"),
    ],
)
def test_labels_that_are_no_classes_are_refused(change: Any, content: Any, words: str, tmp_path: Path) -> None:
    with pytest.raises((UsageError, Refusal), match=words):
        fingerprint_of_data(changed(tmp_path, change, **content))


@pytest.mark.parametrize(
    ("change", "content"),
    [
        (lambda label: label * np.float32(0.99999), {}),
        (lambda label: label * 255, {"label_mapping": {"255": 1}}),
        (lambda label: label + 1, {"label_mapping": {"1": 0, "2": 1}}),
    ],
)
def test_rounded_and_mapped_labels_give_the_same_plan(change: Any, content: Any, tmp_path: Path) -> None:
    right = fingerprint_of_data(changed(tmp_path / "right", lambda label: label))
    found = fingerprint_of_data(changed(tmp_path / "changed", change, **content))
    assert (found.labels, found.structure_ml) == (right.labels, right.structure_ml)
    assert found.intensity == right.intensity


def test_regions_and_ignored_voxels_are_described(tmp_path: Path) -> None:
    """Of a region all its parts count; what nobody judged is neither structure nor background to look at."""

    def two(label: Any) -> Any:
        label = label.copy()
        label[:4], label[-1] = label[:4] * 2, 3
        return label

    data = fingerprint_of_data(changed(tmp_path, two, labels={"whole": [1, 2], "core": 2, "ignore": 3}))
    assert (data.labels, data.outputs, data.fully_known) == ({1: "whole", 2: "core"}, 2, False)
    assert set(data.structure_ml) <= {1, 2}
    assert data.structure_ml[1] >= data.structure_ml.get(2, 0.0)
