"""DICOM objects of regions: segments and ROIs overlap, and each is read again as the whole region."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import highdicom as hd
import numpy as np
import pydicom
import pytest

from medseg.errors import UsageError
from medseg.labels import ImageGrid, LabelScheme, ReadingRules, read_label
from medseg.outputs.common import WriteOptions
from medseg.outputs.write import write
from tests.outputs.series import CODES, FakeBundle, write_series

_SCHEME = LabelScheme.of({"labels": {"whole": [1, 2], "core": 2}})
_SHAPE = (8, 10, 6)


@dataclass(frozen=True)
class _Regions(FakeBundle):
    labels: dict[int, str] = field(default_factory=lambda: {1: "whole", 2: "core"})
    label_codes: dict[int, Any] = field(default_factory=lambda: dict(zip((1, 2), CODES.values(), strict=False)))
    scheme: LabelScheme = _SCHEME


@pytest.mark.parametrize("kind", ["seg", "rtstruct", "sr"])
def test_structures_that_overlap_are_written_whole(kind: str, tmp_path: Path) -> None:
    record, geometry = write_series(tmp_path / "in", np.diag([1.0, 1.0, 2.0, 1.0]), _SHAPE)
    labels = np.zeros(geometry.shape, np.uint8)
    labels[2:7, 2:8, 1:5], labels[4:6, 4:6, 2:4] = 1, 2
    path = write(kind, labels, geometry, record, _Regions(), tmp_path / "o.dcm")
    written = pydicom.dcmread(path)
    if kind == "seg":
        assert [segment.SegmentLabel for segment in written.SegmentSequence] == ["whole", "core"]
        for name, other, expected in (("whole", "core", labels > 0), ("core", "whole", labels == 2)):
            rules = ReadingRules(names={other: None})
            found = read_label(path, scheme=LabelScheme({1: name}), rules=rules, image=ImageGrid(geometry))
            assert np.array_equal(found.array == 1, expected)
        hd.seg.segread(path)
    elif kind == "rtstruct":
        assert [roi.ROIName for roi in written.StructureSetROISequence] == ["whole", "core"]
        assert all("1.0000" in roi.ROIDescription for roi in written.StructureSetROISequence)
        rings = [len(roi.ContourSequence) for roi in written.ROIContourSequence]
        assert rings == [4, 2]  # the whole has no hole where the core is
    else:
        told = str(written)
        assert f"{(labels > 0).sum() * geometry.voxel_volume_mm3 / 1000:.6g}"[:5] in told


def test_a_label_map_object_holds_no_regions(tmp_path: Path) -> None:
    record, geometry = write_series(tmp_path / "in", np.eye(4), _SHAPE)
    labels = np.ones(geometry.shape, np.uint8)
    with pytest.raises(UsageError, match="regions overlap"):
        write("seg", labels, geometry, record, _Regions(), tmp_path / "o.dcm",
              options=WriteOptions(segmentation_type="LABELMAP"))  # fmt: skip
