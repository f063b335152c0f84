"""A batch: what it leaves, what it does again, and what one bad case does to the others."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medseg.errors import Interrupted, OutputLocked, UsageError
from medseg.inference import CaseResult, Options, Predictor, run_batch
from medseg.inference.run.state import locked
from medseg.ingest import read_volume
from tests.inference.bundles import ORIENTED, Design, write_bundle
from tests.inference.run.states import unsettle
from tests.inference.volumes import blobs, grid, load, save
from tests.ingest.synthetic import make_series


def _run_json(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "run.json").read_text()))


def test_leaves_label_maps_on_the_sources_own_grid(thresholds: Path, images: Path, tmp_path: Path) -> None:
    report = run_batch(thresholds, [images], tmp_path / "out")
    assert report.complete
    for number in range(3):
        source, affine = load(images / f"case{number}.nii.gz")
        found, found_affine = load(tmp_path / "out" / f"case{number}_seg.nii.gz")
        intensity = blobs((18, 14, 10 + number), number)
        assert source.shape == found.shape
        np.testing.assert_allclose(found_affine, affine, atol=1e-6)
        np.testing.assert_array_equal(found, (intensity > 10).astype(int) + (intensity > 30))


def test_run_json_and_results_csv_say_what_was_found(thresholds: Path, images: Path, tmp_path: Path) -> None:
    run_batch(thresholds, [images], tmp_path / "out")
    content = _run_json(tmp_path / "out")
    assert {"medseg", "bundle", "device", "precision", "started", "finished", "cases", "summary"} <= content.keys()
    assert content["bundle"]["name"] == "thresholds"
    assert content["summary"]["done"] == 3
    case = content["cases"][0]
    assert case["status"] == "done"
    assert case["outputs"] == ["case0_seg.nii.gz"]
    assert (case["trust"]["verdict"], case["trust"]["flags"]) == ("review", ["cut-off", "not calibrated"])
    intensity = blobs((18, 14, 10), 0)
    voxel_ml = 1.1 * 1.4 * 2.6 / 1000
    assert case["structures"][0]["volume_ml"] == pytest.approx(np.sum((intensity > 10) & (intensity <= 30)) * voxel_ml)
    rows = list(csv.DictReader((tmp_path / "out" / "results.csv").read_text().splitlines()))
    assert [row["case_id"] for row in rows] == ["case0", "case1", "case2"]
    assert float(rows[0]["large_volume_ml"]) == pytest.approx(np.sum(intensity > 30) * voxel_ml)


def test_runs_again_without_computing_anything_again(thresholds: Path, images: Path, tmp_path: Path) -> None:
    first = run_batch(thresholds, [images], tmp_path / "out")
    second = run_batch(thresholds, [images], tmp_path / "out")
    assert first.content["summary"]["computed"] == 3
    assert second.content["summary"]["computed"] == 0
    assert second.content["cases"] == first.content["cases"]


def test_computes_what_changed_or_is_gone(thresholds: Path, images: Path, tmp_path: Path) -> None:
    run_batch(thresholds, [images], tmp_path / "out")
    (tmp_path / "out" / "case0_seg.nii.gz").unlink()
    save(blobs((18, 14, 11), 77), grid("oblique"), images / "case1.nii.gz")
    (images / "case2.nii.gz").touch()  # another time, the same bytes
    again = run_batch(thresholds, [images], tmp_path / "out")
    assert again.content["summary"]["computed"] == 2
    found, _ = load(tmp_path / "out" / "case1_seg.nii.gz")
    np.testing.assert_array_equal(found > 0, blobs((18, 14, 11), 77) > 10)


def test_computes_everything_for_another_bundle_and_on_request(thresholds: Path, images: Path, tmp_path: Path) -> None:
    run_batch(thresholds, [images], tmp_path / "out")
    assert run_batch(thresholds, [images], tmp_path / "out", Options(fresh=True)).content["summary"]["computed"] == 3
    other = write_bundle(tmp_path / "other", Design(transforms=ORIENTED, roi_size=(8, 8, 8)))
    assert run_batch(other, [images], tmp_path / "out").content["summary"]["computed"] == 3


def test_one_bad_case_never_stops_the_others(thresholds: Path, images: Path, tmp_path: Path) -> None:
    whole = (images / "case0.nii.gz").read_bytes()
    (images / "broken.nii.gz").write_bytes(whole[: len(whole) // 2])
    nan = blobs((18, 14, 10))
    nan[3, 3, 3] = np.nan
    save(nan, grid("plain"), images / "nan.nii.gz")
    (images / "text.nii.gz").write_text("not an image")
    report = run_batch(thresholds, [images], tmp_path / "out")
    by_id = {case.case_id: case for case in report.cases}
    assert not report.complete
    assert {case_id for case_id, case in by_id.items() if case.status == "done"} == {"case0", "case1", "case2"}
    for name in ("broken", "nan", "text"):
        assert by_id[name].status == "refused"
        assert by_id[name].reason
        assert not (tmp_path / "out" / f"{name}_seg.nii.gz").exists()
    assert by_id["nan"].reason == "non-finite"


def test_same_names_in_two_folders_never_overwrite_each_other(thresholds: Path, tmp_path: Path) -> None:
    for seed, folder in enumerate("ab"):
        save(blobs((12, 12, 12), seed), grid("plain"), tmp_path / folder / "image.nii.gz")
    report = run_batch(thresholds, [tmp_path / "a", tmp_path / "b"], tmp_path / "out")
    assert report.complete
    names = sorted(path.name for path in (tmp_path / "out").glob("*_seg.nii.gz"))
    assert len(names) == 2
    for case in report.cases:
        seed = "ab".index(Path(case.source).parent.name)
        found, _ = load(tmp_path / "out" / case.outputs[0])
        np.testing.assert_array_equal(found > 0, blobs((12, 12, 12), seed) > 10)


def test_a_later_run_never_overwrites_another_case_of_the_same_name(thresholds: Path, tmp_path: Path) -> None:
    for seed, folder in enumerate("ab"):
        save(blobs((12, 12, 12), seed), grid("plain"), tmp_path / folder / "image.nii.gz")
        run_batch(thresholds, [tmp_path / folder], tmp_path / "out")
    first, _ = load(tmp_path / "out" / "image_seg.nii.gz")
    np.testing.assert_array_equal(first > 0, blobs((12, 12, 12), 0) > 10)
    again = run_batch(thresholds, [tmp_path / "b"], tmp_path / "out")
    assert again.content["summary"]["computed"] == 0
    second, _ = load(tmp_path / "out" / again.cases[0].outputs[0])
    np.testing.assert_array_equal(second > 0, blobs((12, 12, 12), 1) > 10)


def test_a_second_run_on_the_same_folder_is_refused(thresholds: Path, images: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with locked(tmp_path / "out"), pytest.raises(OutputLocked, match="another run"):
        run_batch(thresholds, [images], tmp_path / "out")
    assert run_batch(thresholds, [images], tmp_path / "out").complete


def test_refuses_what_the_bundle_was_not_trained_on(images: Path, tmp_path: Path) -> None:
    limits = {"fov_mm": {"low": [10, 10, 10], "high": [60, 60, 27]}}
    bundle = write_bundle(tmp_path / "narrow", Design(transforms=ORIENTED, training_range=limits))
    report = run_batch(bundle, [images / "case0.nii.gz", images / "case1.nii.gz"], tmp_path / "out")
    assert [case.status for case in report.cases] == ["done", "refused"]
    assert report.cases[1].reason == "outside-training-range"


def test_a_region_of_interest_is_pasted_back(thresholds: Path, images: Path, tmp_path: Path) -> None:
    run_batch(thresholds, [images / "case1.nii.gz"], tmp_path / "out", Options(roi="voxels:2,3,1,9,8,6"))
    found, _ = load(tmp_path / "out" / "case1_seg.nii.gz")
    inside = np.zeros(found.shape, bool)
    inside[2:10, 3:9, 1:7] = True
    np.testing.assert_array_equal(found > 0, (blobs((18, 14, 11), 1) > 10) & inside)


def test_a_failed_case_is_tried_again(
    thresholds: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Predictor.predict

    def short_of_memory(self: Predictor, case: Any, *given: Any, **options: Any) -> Any:
        if case["image"].shape[-1] == 11:
            raise MemoryError
        return whole(self, case, *given, **options)

    monkeypatch.setattr(Predictor, "predict", short_of_memory)
    first = run_batch(thresholds, [images], tmp_path / "out")
    assert [case.status for case in first.cases] == ["done", "failed", "done"]
    assert first.cases[1].reason == "out-of-memory"
    monkeypatch.setattr(Predictor, "predict", whole)
    second = run_batch(thresholds, [images], tmp_path / "out")
    assert second.complete
    assert second.content["summary"]["computed"] == 1


def test_an_interruption_keeps_what_is_finished(thresholds: Path, images: Path, tmp_path: Path) -> None:
    seen: list[str] = []

    def stop(_: int, __: int, result: CaseResult) -> None:
        seen.append(result.case_id)
        raise Interrupted("stopped by SIGTERM")

    with pytest.raises(Interrupted, match="run the same command again"):
        run_batch(thresholds, [images], tmp_path / "out", progress=stop)
    assert _run_json(tmp_path / "out")["summary"]["pending"] > 0
    again = run_batch(thresholds, [images], tmp_path / "out")
    assert again.complete
    assert again.content["summary"]["computed"] < 3


def test_half_written_files_of_a_killed_run_are_removed(thresholds: Path, images: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / ".medseg-partial-00-case0_seg.nii.gz").write_text("half")
    run_batch(thresholds, [images], tmp_path / "out")
    assert not list((tmp_path / "out").glob(".medseg-partial-*"))


def test_a_case_that_keeps_killing_the_process_is_given_up(thresholds: Path, images: Path, tmp_path: Path) -> None:
    from medseg.inference.run.state import MAX_DEATHS

    run_batch(thresholds, [images], tmp_path / "out")
    unsettle(tmp_path / "out", case1=MAX_DEATHS)
    report = run_batch(thresholds, [images], tmp_path / "out")
    assert [case.reason for case in report.cases] == [None, "crashed", None]


def test_wrong_calls_are_refused(thresholds: Path, images: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such file"):
        run_batch(thresholds, [tmp_path / "nowhere"], tmp_path / "out")
    with pytest.raises(UsageError, match="--write"):
        Options(write=("stl",))
    with pytest.raises(UsageError, match="six"):
        run_batch(thresholds, [images], tmp_path / "out", Options(roi="1,2,3"))
    shutil.rmtree(images)
    images.mkdir()
    with pytest.raises(UsageError, match="found no image"):
        run_batch(thresholds, [images], tmp_path / "out")


def test_uneven_spacing_is_refused_and_resampled_only_on_request(thresholds: Path, tmp_path: Path) -> None:
    series = make_series((0, 3, 6, 9, 15, 21, 27)).write(tmp_path / "uneven")
    refused = run_batch(thresholds, [series], tmp_path / "plain", Options()).cases[0]
    assert (refused.status, refused.reason) == ("refused", "non-uniform-spacing")
    asked = Options(allow_resample=True)
    done = run_batch(thresholds, [series], tmp_path / "asked", asked).cases[0]
    assert done.status == "done"
    assert "resampled onto a regular grid on request, because of uneven slice spacing" in done.message
    label, affine = load(tmp_path / "asked" / done.outputs[0])
    _, geometry, _ = read_volume(series, allow_resample=True)
    assert label.shape == geometry.shape
    assert np.allclose(affine, geometry.affine, atol=1e-4)
